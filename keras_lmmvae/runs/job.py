"""A job: a configuration applied to a table, and the rows that are held out."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import yaml

from keras_lmmvae.data_frame import from_dataframe, numeric_features
from keras_lmmvae.runs.config import Config
from keras_lmmvae.simulation import split, take
from keras_lmmvae.validation import check_columns

__all__ = ["DATA", "RESOLVED", "Job", "fingerprint", "make_job"]

RESOLVED, DATA = "resolved.yaml", "data.json"

Data = dict[str, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A configuration and the rows to fit it to.

    Attributes:
        config: The configuration with its features named.
        train: Dict of columns of the training rows.
        validation: Dict of columns of the rows held out; `None`: no rows are.
        fingerprint: SHA-256 of the columns that are used, and of the split.
    """

    config: Config
    train: Data
    validation: Data | None
    fingerprint: str

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(self.config.features or ())

    def source(self) -> dict[str, Any]:
        """Numbers of rows and features, and the fingerprint of the data."""
        held_out = 0 if self.validation is None else len(self.validation["x"])
        rows = {"train_rows": len(self.train["x"]), "validation_rows": held_out}
        return {**rows, "features": len(self.features), "fingerprint": self.fingerprint}

    def files(self) -> dict[str, str]:
        """The files that say what a run was made of: a run is resumed only with the same ones."""
        resolved = yaml.safe_dump(self.config.mapping(), sort_keys=False, allow_unicode=True)
        return {RESOLVED: resolved, DATA: json.dumps(self.source(), indent=2) + "\n"}


def make_job(config: Config, frame: pd.DataFrame) -> Job:
    """Names the features and splits the rows."""
    terms = config.terms()
    held_out = config.training.validation
    on = None if held_out is None else held_out.column
    if on is not None:
        check_columns({str(name): values for name, values in frame.items()}, [on])
    features = config.features
    if features is None:
        others = frame.drop(columns=[] if on is None else [on])
        features = list(numeric_features(others, terms))
    config = config.with_features(features)
    data = from_dataframe(frame, features, terms)
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
