"""Products with the random-effects design matrix Z, which is never built.

Row `i` of Z is `e_l (x) phi`: the indicator of its level `l` times its basis
vector `phi`, so a table of effects `(levels, m, p)` needs gathers and segment
sums only. A negative code means "no level": its row of Z is zero.
"""

from __future__ import annotations

import keras
import tensorflow as tf

__all__ = ["compact_codes", "count", "gram", "product", "segment_mean", "transpose_product"]

# Up to this many levels a matrix product over all of them beats a gather of (b, m, p).
_FEW_LEVELS = 2


def _has_few_levels(num_levels: int | None, basis: tf.Tensor | None) -> bool:
    return num_levels is not None and num_levels <= _FEW_LEVELS and basis is not None


def _spread(codes: tf.Tensor, basis: tf.Tensor, num_levels: int) -> tf.Tensor:
    """Rows of Z themselves, `(b, levels * m)`; only for one or two levels."""
    indicator = tf.one_hot(codes, num_levels, dtype=basis.dtype)  # (b, levels)
    spread = indicator[:, :, None] * basis[:, None, :]
    return tf.reshape(spread, (-1, num_levels * basis.shape[-1]))


def product(effects: tf.Tensor, codes: tf.Tensor, basis: tf.Tensor | None = None) -> tf.Tensor:
    """Rows of `Z @ B`.

    Args:
        effects: Float tensor or variable `(levels, m, p)`; a variable is read
            by its gathered rows only.
        codes: Int tensor `(b,)`; negative codes give zero.
        basis: Float tensor `(b, m)`; `None` stands for ones, with `m = 1`.

    Returns:
        Float tensor `(b, p)`.
    """
    levels, size, width = effects.shape
    if _has_few_levels(levels, basis):
        return tf.matmul(_spread(codes, basis, levels), tf.reshape(effects, (levels * size, width)))
    rows = tf.gather(effects, tf.maximum(codes, 0))  # (b, m, p)
    rows = rows[:, 0] if basis is None else tf.reduce_sum(basis[:, :, None] * rows, axis=1)
    return tf.where(codes[:, None] >= 0, rows, tf.zeros_like(rows))


def transpose_product(
    values: tf.Tensor, codes: tf.Tensor, basis: tf.Tensor | None, num_levels: int | tf.Tensor
) -> tf.Tensor:
    """`Z' R`: sums of `phi * r` by level.

    Args:
        values: Float tensor `(b, p)`.
        codes: Int tensor `(b,)`; rows with negative codes are left out.
        basis: Float tensor `(b, m)`, or `None` for ones.
        num_levels: Number of levels.

    Returns:
        Float tensor `(levels, m, p)`.
    """
    if isinstance(num_levels, int) and basis is not None and _has_few_levels(num_levels, basis):
        sums = tf.matmul(_spread(codes, basis, num_levels), values, transpose_a=True)
        return tf.reshape(sums, (num_levels, basis.shape[-1], values.shape[-1]))
    rows = values[:, None, :] if basis is None else basis[:, :, None] * values[:, None, :]
    return tf.math.unsorted_segment_sum(rows, codes, num_levels)


def gram(
    codes: tf.Tensor,
    basis: tf.Tensor | None,
    num_levels: int | tf.Tensor,
    weights: tf.Tensor | None = None,
) -> tf.Tensor:
    """`Z'Z` by level: sums of `weight * phi phi'`.

    Args:
        codes: Int tensor `(b,)`; rows with negative codes are left out.
        basis: Float tensor `(b, m)`, or `None` for ones.
        num_levels: Number of levels.
        weights: Optional float tensor `(b,)`.

    Returns:
        Float tensor `(levels, m, m)`.
    """
    if basis is None:
        basis = tf.ones((tf.shape(codes)[0], 1))
    weighted = basis if weights is None else basis * weights[:, None]
    if isinstance(num_levels, int) and _has_few_levels(num_levels, basis):
        indicator = tf.one_hot(codes, num_levels, axis=0, dtype=basis.dtype)  # (levels, b)
        return tf.matmul(indicator[:, :, None] * weighted, basis, transpose_a=True)
    outer = weighted[:, :, None] * basis[:, None, :]
    return tf.math.unsorted_segment_sum(outer, codes, num_levels)


def count(
    codes: tf.Tensor, num_levels: int | tf.Tensor, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Rows (or their weights) per level, `(levels,)` float32."""
    ones = tf.ones(tf.shape(codes)) if weights is None else weights
    return tf.math.unsorted_segment_sum(ones, codes, num_levels)


def segment_mean(values: tf.Tensor, codes: tf.Tensor, num_levels: int | tf.Tensor) -> tf.Tensor:
    """Means of `values` `(b, ...)` by level, `(levels, ...)`; levels without rows get 0."""
    sums = tf.math.unsorted_segment_sum(values, codes, num_levels)
    ones = tf.ones(tf.shape(codes), values.dtype)
    counts = tf.math.unsorted_segment_sum(ones, codes, num_levels)
    shape = tf.concat([tf.shape(counts), tf.ones(tf.rank(values) - 1, tf.int32)], axis=0)
    return tf.math.divide_no_nan(sums, tf.reshape(counts, shape))


@keras.saving.register_keras_serializable(package="keras_lmmvae")
def compact_codes(codes: tf.Tensor) -> tf.Tensor:
    """Renumbers the levels of a mini-batch as `0 ... b - 1`, whatever their number in the data.

    Equal codes get equal numbers, in the order of the codes; negative codes stay as
    they are. Its shape is static, so that XLA compiles it (`tf.unique` is not static).

    Args:
        codes: Int tensor `(b,)`.

    Returns:
        Int32 tensor `(b,)`, smaller than `b`.

    Example:
        >>> compact_codes(tf.constant([700, 3, 700])).numpy()
        array([1, 0, 1], dtype=int32)
    """
    codes = tf.cast(codes, tf.int32)
    order = tf.argsort(codes, stable=True)
    ordered = tf.gather(codes, order)
    is_new = tf.cast(ordered[1:] != ordered[:-1], tf.int32)
    numbers = tf.cumsum(tf.concat([tf.zeros_like(ordered[:1]), is_new], axis=0))
    slots = tf.scatter_nd(order[:, None], numbers, tf.shape(codes))
    return tf.where(codes >= 0, slots, codes)
