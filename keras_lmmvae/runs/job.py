"""A job: a configuration applied to a table, with the rows that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae.data_frame import from_dataframe
from keras_lmmvae.runs.config import Config
from keras_lmmvae.runs.tables import numeric_columns
from keras_lmmvae.runs.terms import term_columns
from keras_lmmvae.simulation import split, take
from keras_lmmvae.validation import check_columns

__all__ = ["Job", "fingerprint", "make_job"]

Data = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """What is to be fitted.

    Attributes:
        config: The configuration, its features named.
        train: Dict of columns of the training rows.
        validation: Those of the rows held out; `None`: none are.
        fingerprint: SHA-256 of the columns that are used.
    """

    config: Config
    train: Data
    validation: Data | None
    fingerprint: str

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return self.config.features or ()

    def source(self) -> dict[str, Any]:
        """What the data were: numbers of rows, and their fingerprint."""
        held_out = 0 if self.validation is None else len(self.validation["x"])
        rows = {"train_rows": len(self.train["x"]), "validation_rows": held_out}
        return {**rows, "features": len(self.features), "fingerprint": self.fingerprint}


def make_job(config: Config, frame: pd.DataFrame) -> Job:
    """Names the features and splits the rows.

    Args:
        config: The configuration.
        frame: The table.

    Raises:
        ValueError: If a column is missing, or a feature not numeric, or the split is impossible.
    """
    columns = term_columns(config.random_effects)
    held_out = config.training.validation
    if held_out is not None and held_out.column is not None:
        columns = list(dict.fromkeys([*columns, held_out.column]))
    check_columns({name: frame[name] for name in frame.columns}, columns)
    config = config.with_features(config.features or numeric_columns(frame, columns))
    features = config.features or ()
    data = from_dataframe(frame, features, config.random_effects)
    digest = fingerprint(frame, [*features, *columns])
    if held_out is None:
        return Job(config, data, None, digest)
    train, validation = split(
        {name: frame[name].to_numpy() for name in [*features[:1], *columns]},
        held_out.by,
        on=held_out.column,
        test_size=held_out.fraction,
        seed=config.training.seed,
    )
    return Job(config, take(data, train), take(data, validation), digest)


def fingerprint(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """SHA-256 of columns of a table, row by row: the same values in the same order give it.

    Args:
        frame: The table.
        columns: Names of the columns.

    Example:
        >>> frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
        >>> fingerprint(frame, ["a"]) == fingerprint(frame.iloc[::-1], ["a"])
        False
    """
    used = frame[list(dict.fromkeys(columns))]
    rows = pd.util.hash_pandas_object(used, index=False).to_numpy()
    names = "\n".join(used.columns).encode()
    return hashlib.sha256(names + rows.tobytes()).hexdigest()
