"""Effect columns of the data and the levels of grouping columns, and checks of arguments."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype

from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE
from keras_lmmvae.validation import (
    NULL_INTEGER,
    as_float_column,
    as_keys,
    check_columns,
    check_not_negative,
    check_positive,
    received,
)

__all__ = [
    "Levels",
    "check_groups",
    "check_training",
    "is_null",
    "key_column",
    "number_column",
]

IntArray = npt.NDArray[np.int64]


def check_training(
    *,
    hidden_units: Sequence[int],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    kl_weight: float,
) -> None:
    """Raises a ValueError if an argument of the training is out of its range."""
    if isinstance(hidden_units, int) or len(hidden_units) == 0:
        raise ValueError(
            "`hidden_units` must be a list with the width of at least one layer. "
            + received(hidden_units=hidden_units)
        )
    for units in hidden_units:
        check_positive("hidden_units", units, integer=True, minimum=1)
    check_positive("epochs", epochs, integer=True, minimum=1)
    check_positive("batch_size", batch_size, integer=True, minimum=1)
    check_positive("learning_rate", learning_rate)
    check_not_negative("kl_weight", kl_weight)


def check_groups(groups: Sequence[str], minimum: int) -> None:
    """Raises a ValueError unless `groups` is a list of at least `minimum` (0 or 1) names."""
    if isinstance(groups, str) or len(groups) < minimum:
        expected = "at least one column name" if minimum else "column names"
        raise ValueError(f"`groups` must be a list of {expected}. " + received(groups=groups))


def number_column(data: Data, name: str) -> FloatArray:
    """Returns a column of finite numbers, float64 `(n,)`.

    Raises:
        ValueError: If the column is missing, has another length than `x`, or has a value that is
            not a finite number.

    Example:
        >>> number_column({"x": np.zeros((2, 1)), "t": np.array([1, 2])}, "t").tolist()
        [1.0, 2.0]
    """
    check_columns(data, ["x", name])
    values: FloatArray = as_float_column(name, data[name])
    missing = np.isnan(values)
    if missing.any():
        raise ValueError(
            f"The column '{name}' must have no missing values. "
            + received(row=int(np.argmax(missing)), missing=int(missing.sum()))
        )
    return values


def key_column(data: Data, name: str) -> np.ndarray:
    """Returns a column of keys as `as_keys` normalises them, int64 or str `(n,)`.

    Raises:
        ValueError: If the column is missing, has another length than `x`, or has keys that are
            neither strings nor whole numbers.

    Example:
        >>> key_column({"x": np.zeros((2, 1)), "store": np.array(["b", "a"])}, "store").tolist()
        ['b', 'a']
    """
    check_columns(data, ["x", name])
    return as_keys(name, data[name])


def is_null(keys: np.ndarray) -> npt.NDArray[np.bool_]:
    """Returns which keys from `as_keys` are null, bool `(n,)`."""
    return np.asarray(keys == (NULL_INTEGER if keys.dtype.kind == "i" else ""), np.bool_)


class Levels:
    """Levels of grouping columns, with codes in the order of their first row.

    Null keys are those of `LMMVAE`: None, NaN, the empty string and `NULL_INTEGER`. scikit-learn's
    `OrdinalEncoder` does not recognise the last two.

    Args:
        data: Training data with `x` and the columns `groups`, str or int keys.
        groups: Names of the columns.

    Attributes:
        keys: Dict of `pandas.Index`, the distinct keys of each column without null keys.

    Raises:
        ValueError: If a column is missing, has another length than `x`, or only null keys.

    Example:
        >>> stores = Levels({"x": np.zeros((3, 1)), "store": np.array(["b", "a", "b"])}, ["store"])
        >>> stores.codes({"x": np.zeros((3, 1)), "store": np.array(["a", "c", ""])})["store"]
        array([ 1, -1, -2])
    """

    def __init__(self, data: Data, groups: Sequence[str]) -> None:
        self.keys = {name: _distinct(name, key_column(data, name)) for name in groups}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of levels `q` of each column."""
        return {name: len(keys) for name, keys in self.keys.items()}

    def codes(self, data: Data) -> dict[str, IntArray]:
        """Returns the codes of each column, `(n,)`: `UNKNOWN_CODE` if unseen, `NULL_CODE` if null.

        Raises:
            ValueError: If a column is missing, has another length than `x`, or keys of another
                type than the training data.
        """
        return {
            name: _lookup(name, levels, key_column(data, name))
            for name, levels in self.keys.items()
        }


def _distinct(name: str, keys: np.ndarray) -> pd.Index:
    levels = pd.Index(keys[~is_null(keys)]).unique()
    if len(levels) == 0:
        raise ValueError(
            f"The column '{name}' must have at least one key that is not null. "
            + received(rows=len(keys), levels=0)
        )
    return levels


def _lookup(name: str, levels: pd.Index, keys: np.ndarray) -> IntArray:
    null = is_null(keys)
    codes = np.full(len(keys), NULL_CODE, np.int64)
    present = pd.Index(keys[~null])
    if len(present) and is_numeric_dtype(levels) != is_numeric_dtype(present):
        raise ValueError(
            f"The keys of column '{name}' must be of the type that was fitted, {levels.dtype}. "
            + received(keys=keys)
        )
    places = levels.get_indexer(present)
    codes[~null] = np.where(places >= 0, places, UNKNOWN_CODE)
    return codes
