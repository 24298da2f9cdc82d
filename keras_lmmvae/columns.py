"""The columns that a model reads: checked and normalised here, once, for all terms."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.effects.combined_keys import with_combined_keys
from keras_lmmvae.effects.random_effect import FEATURES, RandomEffect
from keras_lmmvae.validation import (
    as_features,
    as_float_column,
    as_keys,
    check_columns,
    received,
)

__all__ = ["FEATURES", "Columns", "check_has_end"]


class Columns:
    """The columns of some terms, and what they must hold.

    A column of keys is normalised to int64 or strings, one of numbers to float64. A column that
    one term takes for keys and another for numbers travels as keys.

    Args:
        terms: The terms.

    Attributes:
        keys: Names of the columns with keys.
        numbers: Names of the columns with numbers.
    """

    def __init__(self, terms: Sequence[RandomEffect]) -> None:
        self.terms = tuple(terms)
        self.keys = list(dict.fromkeys(name for term in terms for name in term.keys))
        self.numbers = list(dict.fromkeys(name for term in terms for name in term.numbers))

    @property
    def names(self) -> list[str]:
        """All columns of the terms."""
        return list(dict.fromkeys(name for term in self.terms for name in term.columns))

    def normalised(self, data: Any, num_features: int | None = None) -> dict[str, np.ndarray]:
        """Checks a dict of columns and returns it as arrays of fixed dtypes.

        Raises:
            ValueError: On any bad input of the columns the model reads.
        """
        if isinstance(data, pd.DataFrame):
            raise ValueError(
                "A data frame does not say which columns are features: use "
                "`keras_lmmvae.from_dataframe(df, features=[...], random_effects=...)`. "
                + received(columns=list(data.columns)[:10])
            )
        data = with_combined_keys(data, self.keys)
        check_columns(data, [FEATURES, *self.names])
        columns = {FEATURES: as_features(data[FEATURES], num_features)}
        columns |= {name: as_float_column(name, data[name]) for name in self.numbers}
        columns |= {name: as_keys(name, data[name]) for name in self.keys}
        for term in self.terms:
            columns |= term.conform(columns)
        return columns

    def checked_dataset(
        self, dataset: tf.data.Dataset, num_features: int | None = None
    ) -> tf.data.Dataset:
        """Checks the elements of a dataset and returns it with elements that are dicts.

        Raises:
            ValueError: If elements are not batches of a dict with all columns, or "x" has
                another width than `num_features`.
        """
        spec = dataset.element_spec
        if isinstance(spec, tuple) and len(spec) == 1:
            dataset = dataset.map(lambda element: element)
            spec = dataset.element_spec
        needed = [FEATURES, *self.names]
        if not isinstance(spec, dict) or any(name not in spec for name in needed):
            raise ValueError(
                f"A dataset must yield dicts with the columns {needed}. " + received(element=spec)
            )
        if spec[FEATURES].shape.rank != 2:
            raise ValueError(
                "A dataset must yield batches, with 'x' of shape (rows, features): call "
                "`dataset.batch(...)`. " + received(shape=spec[FEATURES].shape)
            )
        width = spec[FEATURES].shape[1]
        if num_features is not None and width not in (None, num_features):
            raise ValueError(
                f"The features 'x' must have the {num_features} columns that the model was adapted "
                "to. " + received(columns=width)
            )
        return dataset

    def batches(
        self, data: Any, num_features: int | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Normalised columns of a dict at once, or of a dataset batch by batch.

        Raises:
            ValueError: On bad input, or a dataset without end.
        """
        if not isinstance(data, tf.data.Dataset):
            yield self.normalised(data, num_features)
            return
        check_has_end(data)
        for batch in self.checked_dataset(data).as_numpy_iterator():
            yield self.normalised(batch, num_features)


def check_has_end(dataset: tf.data.Dataset) -> None:
    """Raises a ValueError if a dataset cannot be read to its end."""
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "A dataset without end cannot be read as a whole: cut it with `dataset.take(batches)`. "
            + received(cardinality="infinite")
        )
