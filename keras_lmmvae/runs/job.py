"""A job: a configuration applied to a table, with the rows that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae.data_frame import from_dataframe, numeric_features
from keras_lmmvae.runs.config import Config
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
        fingerprint: SHA-256 of the columns that are used, and of the split.
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
    held_out = config.training.validation
    on = None if held_out is None else held_out.column
    if on is not None:
        check_columns({str(name): values for name, values in frame.items()}, [on])
    features = config.features
    if features is None:
        others = frame.drop(columns=[] if on is None else [on])
        features = tuple(numeric_features(others, config.random_effects))
    config = config.with_features(features)
    data = from_dataframe(frame, features, config.random_effects)
    digest = fingerprint({**data, "features": np.array(features)})
    if held_out is None:
        return Job(config, data, None, digest)
    rows = {"rows": np.arange(len(frame))} if on is None else {on: frame[on].to_numpy()}
    train, validation = split(
        rows, held_out.by, on=on, test_size=held_out.fraction, seed=config.training.seed
    )
    digest = fingerprint({"all": np.array([digest]), "train": train})
    return Job(config, take(data, train), take(data, validation), digest)


def fingerprint(data: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of columns: the same names and values in the same order give it.

    Args:
        data: Dict of arrays.

    Example:
        >>> fingerprint({"a": np.arange(2)}) == fingerprint({"a": np.arange(2)[::-1]})
        False
    """
    digest = hashlib.sha256()
    for name, values in data.items():
        digest.update(f"{name} {values.shape} ".encode())
        rows = pd.util.hash_pandas_object(pd.DataFrame(values), index=False)
        digest.update(rows.to_numpy().tobytes())
    return digest.hexdigest()
