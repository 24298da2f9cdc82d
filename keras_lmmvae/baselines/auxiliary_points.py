"""Where rows stand for a Gaussian process: coordinates, time and subject."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype

from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.baselines.columns import key_column, number_column
from keras_lmmvae.validation import NULL_INTEGER, received

__all__ = ["UNSEEN", "AuxiliaryPoints", "AuxiliaryRows"]

UNSEEN = -1
"""Code of a missing key, and of one that was not fitted."""


@dataclass(frozen=True)
class AuxiliaryRows:
    """Auxiliary data of some rows.

    Attributes:
        places: Float64 array `(n, c)`, standardised coordinates, then the standardised time.
        subjects: Int64 array `(n,)`, codes of the subjects; zeros where there is no subject.
    """

    places: FloatArray
    subjects: npt.NDArray[np.int64]


class AuxiliaryPoints:
    """Reads the auxiliary columns, in the units and levels of the training rows.

    Coordinates are centred and divided by one number, the root of their mean variance, so that
    distances keep their shape; times by their own standard deviation.

    Args:
        data: Training data.
        coordinates: Names of coordinate columns, or `None`.
        subject: Name of the column of subjects, or `None`.
        time: Name of the column of times, or `None`.

    Attributes:
        parts: Numbers of columns that share a length scale: coordinates, time.
        levels: `pandas.Index` of the subjects, or `None`.

    Raises:
        ValueError: If nothing is named, or a column is missing or broken.

    Example:
        >>> import numpy as np
        >>> data = {"x": np.zeros((2, 1)), "t": np.array([1.0, 3.0])}
        >>> AuxiliaryPoints(data, None, None, "t").rows(data).places.ravel().tolist()
        [-1.0, 1.0]
    """

    def __init__(
        self,
        data: Data,
        coordinates: Sequence[str] | None,
        subject: str | None,
        time: str | None,
    ) -> None:
        if isinstance(coordinates, str):
            raise ValueError(
                "`coordinates` must be a sequence of column names. "
                + received(coordinates=coordinates)
            )
        self.groups = [list(coordinates or ()), [time] if time is not None else []]
        self.subject = subject
        if not any(self.groups) and subject is None:
            raise ValueError(
                "At least one of `coordinates`, `subject` and `time` must name columns: the "
                "Gaussian process needs something to run over. "
                + received(coordinates=coordinates, subject=subject, time=time)
            )
        self.parts = [len(group) for group in self.groups if group]
        values = [self._values(data, group) for group in self.groups]
        self.means = [value.mean(axis=0) for value in values]
        self.scales = [_scale(value) for value in values]
        self.levels = None if subject is None else _levels(subject, self._keys(data, subject))

    def rows(self, data: Data) -> AuxiliaryRows:
        """Returns where the rows of `data` stand."""
        standard = [
            (self._values(data, group) - mean) / scale
            for group, mean, scale in zip(self.groups, self.means, self.scales, strict=True)
        ]
        return AuxiliaryRows(np.concatenate(standard, axis=1), self._codes(data))

    def _values(self, data: Data, names: Sequence[str]) -> FloatArray:
        n = len(data["x"])
        columns = [number_column(data, name, n) for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((n, 0))

    def _keys(self, data: Data, subject: str) -> np.ndarray:
        return key_column(data, subject, len(data["x"]))

    def _codes(self, data: Data) -> npt.NDArray[np.int64]:
        """Returns the places of the keys among the levels, `UNSEEN` for others."""
        if self.subject is None or self.levels is None:
            return np.zeros(len(data["x"]), np.int64)
        keys = self._keys(data, self.subject)
        if not _is_missing(keys).all() and (keys.dtype.kind == "i") != is_numeric_dtype(
            self.levels
        ):
            raise ValueError(
                f"The keys of column '{self.subject}' must be of the type that was fitted, "
                f"{self.levels.dtype}. " + received(keys=keys)
            )
        codes: npt.NDArray[np.int64] = self.levels.get_indexer(pd.Index(keys)).astype(np.int64)
        return codes


def _scale(values: FloatArray) -> float:
    """Root of the mean variance of the columns; 1 where nothing varies."""
    variance = float(values.var(axis=0).mean()) if values.shape[1] else 0.0
    return float(np.sqrt(variance)) if variance > 0.0 else 1.0


def _is_missing(keys: np.ndarray) -> npt.NDArray[np.bool_]:
    missing: npt.NDArray[np.bool_] = keys == (NULL_INTEGER if keys.dtype.kind == "i" else "")
    return missing


def _levels(subject: str, keys: np.ndarray) -> pd.Index:
    levels = pd.Index(np.unique(keys[~_is_missing(keys)]))
    if len(levels) == 0:
        raise ValueError(
            f"The column '{subject}' must have at least one key. " + received(levels=0)
        )
    return levels
