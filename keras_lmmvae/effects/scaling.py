"""Numeric effect columns: missing values, positions on the globe, centre and spread."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.validation import NULL_INTEGER, received

__all__ = [
    "EARTH_RADIUS_KM",
    "METRICS",
    "ColumnScaling",
    "as_numbers",
    "check_degrees",
    "check_metric",
    "finite_or_zero",
    "from_positions",
    "to_positions",
]

EARTH_RADIUS_KM = 6371.0088
"""Mean radius of the Earth."""
METRICS = ("euclidean", "haversine")

# A column whose standard deviation is a smaller share of its centre varies by rounding only.
_CONSTANT_TOLERANCE = 1e-12


def as_numbers(column: Any) -> tf.Tensor:
    """A column as float64, with NaN for the null key if the column also holds integer keys."""
    column = tf.convert_to_tensor(column)
    numbers = tf.cast(column, tf.float64)
    if column.dtype != tf.int64:
        return numbers
    nan = tf.constant(np.nan, tf.float64)
    return tf.where(tf.equal(column, tf.constant(NULL_INTEGER, tf.int64)), nan, numbers)


def finite_or_zero(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Values with 0 for NaN and infinity, and a mask of the finite ones.

    The conditions are those that converters to ONNX understand. They turn a `tf.where` on any
    other condition into a product with 0, which is NaN for NaN.
    """
    zeros = tf.zeros_like(values)
    numbers = tf.where(tf.math.is_nan(values), zeros, values)
    numbers = tf.where(tf.math.is_inf(numbers), zeros, numbers)
    return numbers, tf.abs(values) < float("inf")


def check_metric(metric: str, columns: Sequence[str]) -> None:
    """Raises a ValueError if the metric is unknown or does not fit the columns."""
    if metric not in METRICS:
        raise ValueError(
            f"Received an unknown metric, expected one of {list(METRICS)}. "
            + received(metric=metric)
        )
    if metric == "haversine" and len(columns) != 2:
        raise ValueError(
            "The haversine metric needs two columns, (longitude, latitude). "
            + received(columns=tuple(columns))
        )


def check_degrees(columns: Sequence[str], values: dict[str, np.ndarray]) -> None:
    """Raises a ValueError unless the columns hold longitudes and latitudes, or NaN."""
    for name, what, limit in zip(columns, ("longitude", "latitude"), (180.0, 90.0), strict=True):
        outside = np.abs(values[name]) > limit
        if outside.any():
            raise ValueError(
                f"The column '{name}', the {what}, must lie in [-{limit:g}, {limit:g}] degrees for "
                "the haversine metric, whose columns are (longitude, latitude). "
                + received(row=int(np.argmax(outside)), value=float(values[name][outside][0]))
            )


def to_positions(
    metric: str, columns: Sequence[str], values: dict[str, Any]
) -> dict[str, tf.Tensor]:
    """Positions in a Euclidean space, where every kernel is positive definite, by axis.

    "euclidean" returns the columns themselves, `(n,)` float64. "haversine" turns degrees into the
    axes "_x", "_y" and "_z" of points of the globe in kilometres. The kernel then reads the chord
    between two places, which differs from the great-circle distance by the share
    `distance**2 / (24 radius**2)`.
    """
    coordinates = [as_numbers(values[name]) for name in columns]
    if metric == "euclidean":
        return dict(zip(columns, coordinates, strict=True))
    longitude, latitude = (value * (math.pi / 180.0) for value in coordinates)
    return {
        "_x": EARTH_RADIUS_KM * tf.cos(latitude) * tf.cos(longitude),
        "_y": EARTH_RADIUS_KM * tf.cos(latitude) * tf.sin(longitude),
        "_z": EARTH_RADIUS_KM * tf.sin(latitude),
    }


def from_positions(metric: str, positions: np.ndarray) -> np.ndarray:
    """Coordinates `(n, columns)` of positions `(n, axes)`: the inverse of `to_positions`.

    Points within the globe get the degrees of the point above them.
    """
    if metric == "euclidean":
        return positions
    x, y, z = positions.T
    radians = np.stack([np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))], axis=1)
    return np.asarray(np.degrees(radians))


class ColumnScaling:
    """Centres and scales numeric columns by their mean and standard deviation.

    Args:
        columns: Names of the columns.
        is_common: Whether all columns share one scale, as coordinates must.
    """

    def __init__(self, columns: tuple[str, ...], is_common: bool = False) -> None:
        self.columns = columns
        self.is_common = is_common
        self.center: list[float] = []
        self.spread: list[float] = []
        self._sums = np.zeros((3, len(columns)))
        self._shift: np.ndarray | None = None

    def update_state(self, columns: dict[str, np.ndarray]) -> None:
        """Adds some rows to the sums, without those that have a missing value."""
        values = np.stack([as_numbers(columns[name]).numpy() for name in self.columns], axis=1)
        values = values[np.isfinite(values).all(axis=1)]
        if len(values) == 0:
            return
        if self._shift is None:
            self._shift = values[0]  # Sums around a point of the data keep their digits.
        moved = values - self._shift
        self._sums += [np.full(len(self.columns), len(values)), moved.sum(0), (moved**2).sum(0)]

    def finalize_state(self) -> None:
        """Fixes centre and spread; raises a ValueError if a column has no values or one only."""
        (count, first, second), shift = self._sums, self._shift
        if shift is None:
            raise ValueError(
                f"The columns {list(self.columns)} hold no complete row. " + received(rows=0)
            )
        mean = first / count
        variance = np.maximum(second / count - mean**2, 0.0)
        center = shift + mean
        if self.is_common:
            variance = np.full_like(variance, variance.mean())
        is_constant = np.sqrt(variance) <= _CONSTANT_TOLERANCE * np.abs(center)
        if is_constant.any():
            names = [name for name, flag in zip(self.columns, is_constant, strict=True) if flag]
            raise ValueError(
                f"The column(s) {names} do not vary, so no effect can be learned along them. "
                + received(value=float(shift[is_constant][0]))
            )
        self.center = [float(value) for value in center]
        self.spread = [float(value) for value in np.sqrt(variance)]

    def reset_state(self) -> None:
        """Forgets the rows of the sums."""
        self._sums, self._shift = np.zeros_like(self._sums), None

    def scale(self, columns: dict[str, tf.Tensor]) -> tf.Tensor:
        """Scaled columns `(b, c)` float32. They are centred in float64, which large years need."""
        values = tf.stack([as_numbers(columns[name]) for name in self.columns], axis=1)
        center = tf.constant(self.center, tf.float64)
        return tf.cast((values - center) / tf.constant(self.spread, tf.float64), tf.float32)

    def state(self) -> dict[str, Any]:
        """Centre and spread as plain numbers."""
        return {"center": self.center, "spread": self.spread}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` gave."""
        self.center, self.spread = list(state["center"]), list(state["spread"])
