"""Coordinates as positions in a Euclidean space, where every kernel is positive definite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.scaling import as_numbers
from keras_lmmvae.validation import received

__all__ = [
    "EARTH_RADIUS_KM",
    "METRICS",
    "check_degrees",
    "check_metric",
    "from_positions",
    "to_positions",
]

EARTH_RADIUS_KM = 6371.0088
"""Mean radius of the Earth."""
METRICS = ("euclidean", "haversine")


def check_metric(metric: str, columns: Sequence[str]) -> None:
    """Raises a ValueError on an unknown metric, or one that does not fit the columns."""
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
    """Raises a ValueError unless the columns are longitudes and latitudes, or NaN."""
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
    """Columns of positions, each `(n,)` float64.

    "haversine" turns degrees into points of the globe in kilometres; the kernel then sees
    the chord between two places, which is the great-circle distance up to
    `distance**2 / (24 radius**2)` of itself.

    Args:
        metric: "euclidean" or "haversine".
        columns: Names of the coordinate columns.
        values: Their values `(n,)`.

    Returns:
        Float64 tensors `(n,)` by axis: the columns themselves, or "_x", "_y" and "_z".
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
    """Coordinates as the user knows them: the inverse of `to_positions`.

    Args:
        metric: "euclidean" or "haversine".
        positions: Float array `(n, axes)`; for "haversine" points within the globe are those
            above them.

    Returns:
        Float array `(n, columns)`; for "haversine" degrees of longitude and latitude.
    """
    if metric == "euclidean":
        return positions
    x, y, z = positions.T
    radians = np.stack([np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))], axis=1)
    return np.asarray(np.degrees(radians))
