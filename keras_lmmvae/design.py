"""Products with the random-effects design matrix Z, which is never built.

Row `i` of Z is `e_l (x) phi`: the indicator of its level `l` times its basis
vector `phi`. So a table of effects `(levels, m, p)` needs gathers and segment
sums only. A negative code means "no level": its row of Z is zero.

Where rows are split into folds, a table has an axis for them in front,
`(folds, levels, m, p)`, and `fold`, int `(b,)`, says which part of it a row belongs to.

Functions take the rows' levels as `codes`, int `(b,)`, and their basis vectors as `basis`,
`(b, m)`, where `None` stands for ones with `m = 1`. Of a variable only the gathered rows are read.
"""

import keras
import tensorflow as tf

__all__ = [
    "NUM_FOLDS",
    "choose_fold",
    "compact_codes",
    "count",
    "gram",
    "level_rows",
    "level_rows_by_fold",
    "product",
    "product_of_rows",
    "segment_mean",
    "transpose_product",
]

NUM_FOLDS = 2
"""Half-samples that the training rows are split into. Tables by fold have an axis for them."""

# With this few tables in all, a matrix product over all of them beats a gather of (b, m, p).
_FEW_TABLES = 2


def _tables(num_levels: int | tf.Tensor, fold: tf.Tensor | None) -> int | tf.Tensor:
    return num_levels if fold is None else NUM_FOLDS * num_levels


def _segments(codes: tf.Tensor, num_levels: int | tf.Tensor, fold: tf.Tensor | None) -> tf.Tensor:
    """Number of every row's table, `(b,)`, where those of the folds lie one behind the other."""
    return codes if fold is None else tf.where(codes >= 0, codes + fold * num_levels, codes)


def _by_fold(sums: tf.Tensor, num_levels: int | tf.Tensor, fold: tf.Tensor | None) -> tf.Tensor:
    """Sums by segment `(segments, ...)` with the folds on an axis of their own."""
    return sums if fold is None else tf.reshape(sums, (NUM_FOLDS, num_levels, *sums.shape[1:]))


def _is_small(num_tables: int | tf.Tensor | None, basis: tf.Tensor | None) -> bool:
    return isinstance(num_tables, int) and num_tables <= _FEW_TABLES and basis is not None


def _spread(segments: tf.Tensor, basis: tf.Tensor, num_tables: int) -> tf.Tensor:
    """The rows of Z themselves, `(b, tables * m)`. This is for one or two tables only."""
    indicator = tf.one_hot(segments, num_tables, dtype=basis.dtype)  # (b, tables)
    spread = indicator[:, :, None] * basis[:, None, :]
    return tf.reshape(spread, (-1, num_tables * basis.shape[-1]))


def level_rows(table: tf.Tensor, codes: tf.Tensor, fold: tf.Tensor | None = None) -> tf.Tensor:
    """What a table holds for the levels of rows, `(b, ...)`; negative codes read level 0."""
    clipped = tf.maximum(codes, 0)
    if fold is None:
        return tf.gather(table, clipped)
    if isinstance(table, tf.Variable):
        return choose_fold(level_rows_by_fold(table, codes), fold)
    return tf.gather_nd(table, tf.stack([fold, clipped], axis=1))


def level_rows_by_fold(table: tf.Variable, codes: tf.Tensor) -> tf.Tensor:
    """Entries of the rows' levels in both folds of a variable, `(folds, b, ...)`.

    XLA has no `gather_nd` of variables. So each row reads the level of both folds.
    """
    clipped = tf.maximum(codes, 0)
    return tf.raw_ops.ResourceGather(
        resource=table.handle,
        indices=tf.stack([clipped] * NUM_FOLDS),
        dtype=table.dtype,
        batch_dims=1,
    )


def choose_fold(values: tf.Tensor, fold: tf.Tensor) -> tf.Tensor:
    """Each row's entry in its own fold, `(b, ...)`, of entries in both, `(folds, b, ...)`."""
    is_first = tf.reshape(fold == 0, (-1, *[1] * (len(values.shape) - 2)))
    return tf.where(is_first, values[0], values[1])


def product(
    effects: tf.Tensor,
    codes: tf.Tensor,
    basis: tf.Tensor | None = None,
    fold: tf.Tensor | None = None,
) -> tf.Tensor:
    """Rows of `Z @ B`.

    Returns:
        Float tensor `(b, p)`.
    """
    levels, size, width = effects.shape[-3:]
    tables = None if levels is None else _tables(levels, fold)
    if basis is not None and isinstance(tables, int) and _is_small(tables, basis):
        spread = _spread(_segments(codes, levels, fold), basis, tables)
        return tf.matmul(spread, tf.reshape(effects, (tables * size, width)))
    return product_of_rows(level_rows(effects, codes, fold), codes, basis)


def product_of_rows(rows: tf.Tensor, codes: tf.Tensor, basis: tf.Tensor | None) -> tf.Tensor:
    """Rows of `Z @ B`, `(b, p)`, where the effects of the rows' levels are known, `(b, m, p)`."""
    rows = rows[:, 0] if basis is None else tf.reduce_sum(basis[:, :, None] * rows, axis=1)
    return tf.where(codes[:, None] >= 0, rows, tf.zeros_like(rows))


def transpose_product(
    values: tf.Tensor,
    codes: tf.Tensor,
    basis: tf.Tensor | None,
    num_levels: int | tf.Tensor,
    fold: tf.Tensor | None = None,
) -> tf.Tensor:
    """`Z' R`: sums of `phi * r` by level.

    Returns:
        Float tensor `(levels, m, p)`, or `(folds, levels, m, p)` with `fold`.
    """
    tables, segments = _tables(num_levels, fold), _segments(codes, num_levels, fold)
    if basis is not None and isinstance(tables, int) and _is_small(tables, basis):
        sums = tf.matmul(_spread(segments, basis, tables), values, transpose_a=True)
        sums = tf.reshape(sums, (tables, basis.shape[-1], values.shape[-1]))
        return _by_fold(sums, num_levels, fold)
    rows = values[:, None, :] if basis is None else basis[:, :, None] * values[:, None, :]
    return _by_fold(tf.math.unsorted_segment_sum(rows, segments, tables), num_levels, fold)


def gram(
    codes: tf.Tensor,
    basis: tf.Tensor | None,
    num_levels: int | tf.Tensor,
    weights: tf.Tensor | None = None,
    fold: tf.Tensor | None = None,
) -> tf.Tensor:
    """`Z'Z` by level: sums of `weight * phi phi'`.

    Returns:
        Float tensor `(levels, m, m)`, or `(folds, levels, m, m)` with `fold`.
    """
    if basis is None:
        basis = tf.ones((tf.shape(codes)[0], 1))
    weighted = basis if weights is None else basis * weights[:, None]
    tables, segments = _tables(num_levels, fold), _segments(codes, num_levels, fold)
    if isinstance(tables, int) and _is_small(tables, basis):
        indicator = tf.one_hot(segments, tables, axis=0, dtype=basis.dtype)  # (tables, b)
        sums = tf.matmul(indicator[:, :, None] * weighted, basis, transpose_a=True)
        return _by_fold(sums, num_levels, fold)
    outer = weighted[:, :, None] * basis[:, None, :]
    return _by_fold(tf.math.unsorted_segment_sum(outer, segments, tables), num_levels, fold)


def count(
    codes: tf.Tensor,
    num_levels: int | tf.Tensor,
    weights: tf.Tensor | None = None,
    fold: tf.Tensor | None = None,
) -> tf.Tensor:
    """Rows (or their weights) per level, `(levels,)` float32, or `(folds, levels)`."""
    ones = tf.ones(tf.shape(codes)) if weights is None else weights
    segments = _segments(codes, num_levels, fold)
    sums = tf.math.unsorted_segment_sum(ones, segments, _tables(num_levels, fold))
    return _by_fold(sums, num_levels, fold)


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
    renumbered = tf.scatter_nd(order[:, None], numbers, tf.shape(codes))
    return tf.where(codes >= 0, renumbered, codes)
