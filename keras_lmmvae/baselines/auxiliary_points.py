"""Inputs of the Gaussian process: coordinates, time and subject of each row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.baselines.columns import Levels, number_column
from keras_lmmvae.validation import received

__all__ = ["AuxiliaryPoints", "AuxiliaryRows"]


@dataclass(frozen=True)
class AuxiliaryRows:
    """Auxiliary data of some rows.

    Attributes:
        places: Float64 array `(n, c)`, standardised coordinates, then the standardised time.
        subjects: Int64 array `(n,)`, codes of the subjects, negative for unseen and null keys.
            All codes are 0 if there is no subject column.
    """

    places: FloatArray
    subjects: npt.NDArray[np.int64]


class AuxiliaryPoints:
    """Reads the auxiliary columns and standardises them by the training rows.

    All coordinates are divided by the same number, the root of their mean variance, so that
    distances keep their proportions. Times are divided by their standard deviation.

    Args:
        data: Training data.
        coordinates: Names of coordinate columns, or `None`.
        subject: Name of the column of subjects, or `None`.
        time: Name of the column of times, or `None`.

    Attributes:
        parts: Numbers of columns with a common length scale: coordinates, time.
        levels: `Levels` of the subjects, or `None`.

    Raises:
        ValueError: If no column is named, or if a column is missing or invalid.

    Example:
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
                "At least one of `coordinates`, `subject` and `time` must name a column, as input "
                "of the Gaussian process. "
                + received(coordinates=coordinates, subject=subject, time=time)
            )
        self.parts = [len(group) for group in self.groups if group]
        values = [self._values(data, group) for group in self.groups]
        self.means = [value.mean(axis=0) for value in values]
        self.scales = [_scale(value) for value in values]
        self.levels = None if subject is None else Levels(data, [subject])

    def rows(self, data: Data) -> AuxiliaryRows:
        """Returns standardised places and subject codes of the rows of `data`."""
        standard = [
            (self._values(data, group) - mean) / scale
            for group, mean, scale in zip(self.groups, self.means, self.scales, strict=True)
        ]
        n = len(data["x"])
        (subjects,) = self.levels.codes(data).values() if self.levels else (np.zeros(n, np.int64),)
        return AuxiliaryRows(np.concatenate(standard, axis=1), subjects)

    def _values(self, data: Data, names: Sequence[str]) -> FloatArray:
        columns = [number_column(data, name) for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((len(data["x"]), 0))


def _scale(values: FloatArray) -> float:
    """Returns the root of the mean variance of the columns, or 1 if all are constant."""
    variance = float(values.var(axis=0).mean()) if values.shape[1] else 0.0
    return float(np.sqrt(variance)) if variance > 0.0 else 1.0
