"""Centre and spread of numeric effect columns, so that bases are well conditioned."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.validation import NULL_INTEGER, received

__all__ = ["ColumnScaling", "as_numbers", "finite_or_zero"]

# Of the centre: a column that varies less does so by rounding only.
_CONSTANT_TOLERANCE = 1e-12


def as_numbers(column: Any) -> tf.Tensor:
    """A prepared column as float64; a null key becomes NaN where the column also holds keys."""
    column = tf.convert_to_tensor(column)
    numbers = tf.cast(column, tf.float64)
    if column.dtype != tf.int64:
        return numbers
    nan = tf.constant(np.nan, tf.float64)
    return tf.where(tf.equal(column, tf.constant(NULL_INTEGER, tf.int64)), nan, numbers)


def finite_or_zero(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Values with 0 for NaN and infinity, and which of them were finite.

    In the words that converters understand: of a selection by any other condition ONNX gets a
    product with 0, which leaves NaN what it is.

    Args:
        values: Float tensor.
    """
    zeros = tf.zeros_like(values)
    numbers = tf.where(tf.math.is_nan(values), zeros, values)
    numbers = tf.where(tf.math.is_inf(numbers), zeros, numbers)
    return numbers, tf.abs(values) < float("inf")


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
        """Takes in some rows; those with a missing value are left out."""
        values = np.stack([as_numbers(columns[name]).numpy() for name in self.columns], axis=1)
        values = values[np.isfinite(values).all(axis=1)]
        if len(values) == 0:
            return
        if self._shift is None:
            self._shift = values[0]  # sums around a point of the data keep their digits
        moved = values - self._shift
        self._sums += [np.full(len(self.columns), len(values)), moved.sum(0), (moved**2).sum(0)]

    def finalize_state(self) -> None:
        """Fixes centre and spread.

        Raises:
            ValueError: If there is no complete row, or a column does not vary.
        """
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
        """Forgets the rows taken in."""
        self._sums, self._shift = np.zeros_like(self._sums), None

    def scale(self, columns: dict[str, tf.Tensor]) -> tf.Tensor:
        """Scaled columns `(b, c)` float32; subtraction is in float64, which large years need."""
        values = tf.stack([as_numbers(columns[name]) for name in self.columns], axis=1)
        center = tf.constant(self.center, tf.float64)
        return tf.cast((values - center) / tf.constant(self.spread, tf.float64), tf.float32)

    def state(self) -> dict[str, Any]:
        """Centre and spread as plain numbers."""
        return {"center": self.center, "spread": self.spread}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.center, self.spread = list(state["center"]), list(state["spread"])
