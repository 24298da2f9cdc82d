"""Encoded rows: standardised features, codes of levels and basis inputs.

Keys are looked up here, in the input pipeline, and never inside the training graph, where a
lookup would keep XLA from compiling the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.columns import FEATURES, check_has_end
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.scaling import finite_or_zero
from keras_lmmvae.validation import received

__all__ = [
    "EFFECTS",
    "FEATURES",
    "FOLD",
    "Pass",
    "Rows",
    "cell_weights",
    "draw_held_out",
    "encode_rows",
    "is_encoded",
    "num_rows",
    "row_weights",
    "shuffled_batches",
    "standardised",
    "take_rows",
    "with_bases",
    "with_folds",
    "with_weights",
]

EFFECTS = "_effects"
FOLD = "_fold"
_CHUNK = 16_384

Rows = dict[str, Any]
"""Encoded rows: "x" `(b, p)` float32, standardised, 0 where missing; "_effects": term -> codes
and inputs; optionally "observed" `(b, p)` bool and "weight" `(b,)`; training rows have "_fold"
`(b,)` int32, the half-sample that they are in."""


def is_encoded(data: Any) -> bool:
    """Whether `data` are rows that `encode_rows` made."""
    return isinstance(data, dict) and EFFECTS in data


def encode_rows(
    columns: Mapping[str, Any],
    terms: Sequence[RandomEffect],
    mean: np.ndarray,
    scale: np.ndarray,
    *,
    keep_mask: bool,
    tables: Mapping[str, Any] | None = None,
) -> Rows:
    """Standardises features and turns effect columns into codes and inputs; runs in any graph."""
    x, observed = standardised(columns[FEATURES], mean, scale)
    rows: Rows = {
        FEATURES: x,
        EFFECTS: {term.label: term.encode(dict(columns), tables) for term in terms},
    }
    if keep_mask:
        rows["observed"] = observed
    return rows


def standardised(x: Any, mean: np.ndarray, scale: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """Standardised features `(b, p)`, 0 where a cell is missing, and which cells are observed.

    The subtraction is in float64, which keeps the digits of features far from zero.
    """
    x = tf.cast(tf.ensure_shape(x, (None, len(mean))), tf.float64)
    x = tf.cast((x - mean.astype(np.float64)) / scale.astype(np.float64), tf.float32)
    return finite_or_zero(x)


def with_folds(rows: Any, is_read_whole: bool = True) -> Any:
    """Training rows with their folds: two half-samples, by a hash of row number and levels.

    Arrays and datasets give the same folds to the same rows in the same order. A dataset that
    gives its rows in another order at every pass, or is not read from its start each time, has no
    row numbers. There the hash takes the rows' values in their place, and rows that are equal in
    all columns share a fold.
    """
    if not isinstance(rows, tf.data.Dataset):
        return {**rows, FOLD: _folds(rows, tf.range(num_rows(rows), dtype=tf.int64))}
    if not is_read_whole or not _keeps_its_order(rows):
        return rows.map(lambda batch: {**batch, FOLD: _folds(batch, _hashed_values(batch))})

    def numbered(first: tf.Tensor, batch: Rows) -> tuple[tf.Tensor, Rows]:
        last = first + tf.shape(batch[FEATURES], tf.int64)[0]
        return last, {**batch, FOLD: _folds(batch, tf.range(first, last))}

    size = rows.cardinality()  # `scan` forgets it, and Keras' loop wants to know it
    found = rows.scan(tf.constant(0, tf.int64), numbered)
    return found.apply(tf.data.experimental.assert_cardinality(size)) if size >= 0 else found


def with_weights(rows: Any, sample_weight: Any) -> Any:
    """Encoded rows with their weights, `(n,)`; `None`: as they are.

    Raises:
        ValueError: If the weights are not one finite non-negative number a row, or the rows are a
            dataset.
    """
    if sample_weight is None:
        return rows
    if isinstance(rows, tf.data.Dataset):
        raise ValueError(
            "`sample_weight` goes with arrays, not with a dataset. "
            + received(sample_weight=type(sample_weight))
        )
    weight = np.asarray(sample_weight, np.float32)
    if weight.shape != (num_rows(rows),) or not np.isfinite(weight).all() or weight.min() < 0:
        raise ValueError(
            f"`sample_weight` must be {num_rows(rows)} finite non-negative numbers, one a row. "
            + received(sample_weight=weight)
        )
    return {**rows, "weight": tf.constant(weight)}


def _keeps_its_order(dataset: tf.data.Dataset) -> bool:
    """Whether two passes over a dataset begin with the same batch."""
    one, other = (next(iter(dataset), None) for _ in range(2))
    pairs = zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _folds(rows: Rows, numbers: tf.Tensor) -> tf.Tensor:
    """Fold 0 or 1 of every row, `(b,)`, by a hash of a number `(b,)` int64 and its levels."""
    value = numbers
    for encoded in rows[EFFECTS].values():
        value = _mixed(value + tf.cast(encoded["codes"], tf.int64))
    return tf.cast(tf.bitwise.right_shift(_mixed(value), tf.constant(40, tf.int64)) & 1, tf.int32)


def _mixed(value: tf.Tensor) -> tf.Tensor:
    """Int64 numbers whose bits all depend on all bits of `value`."""
    for shift, factor in ((32, 0x2545F4914F6CDD1D), (29, 0x5851F42D4C957F2D)):
        high = tf.bitwise.right_shift(value, tf.constant(shift, tf.int64))
        value = tf.bitwise.bitwise_xor(value, high) * tf.constant(factor, tf.int64)
    return value


def _hashed_values(rows: Rows) -> tf.Tensor:
    """A number of every row that depends on the bits of its features, `(b,)` int64."""
    x = rows[FEATURES]
    factors = np.random.default_rng(0).integers(1, 2**31, size=x.shape[-1], dtype=np.int64) | 1
    return tf.reduce_sum(tf.cast(tf.bitcast(x, tf.int32), tf.int64) * factors, axis=1)


def draw_held_out(total: int, share: float, seed: int | None) -> np.ndarray:
    """Which of some rows are held out, bool `(total,)`: a share of them, drawn at random."""
    return np.random.default_rng(seed).permutation(total) < round(share * total)


def num_rows(rows: Rows) -> int:
    """Number of encoded rows."""
    return int(rows[FEATURES].shape[0])


def take_rows(rows: Rows, start: int, stop: int) -> Rows:
    """A slice of encoded rows."""
    return tf.nest.map_structure(lambda value: value[start:stop], rows)


def shuffled_batches(rows: Rows, batch_size: int, seed: int | None) -> tf.data.Dataset:
    """Mini-batches of encoded arrays, in a new order at every pass, fixed by `seed`."""
    total = num_rows(rows)
    order = tf.data.Dataset.range(total).shuffle(total, seed=seed, reshuffle_each_iteration=True)

    def gather(numbers: tf.Tensor) -> Rows:
        return tf.nest.map_structure(lambda value: tf.gather(value, numbers), rows)

    return order.batch(batch_size).map(gather).prefetch(tf.data.AUTOTUNE)


def cell_weights(rows: Rows) -> tf.Tensor | None:
    """Weights of cells, `(b, p)` or `(b, 1)`: row weight, 0 where missing; `None`: all 1."""
    observed, weight = rows.get("observed"), rows.get("weight")
    if observed is None:
        return None if weight is None else weight[:, None]
    cells = tf.cast(observed, tf.float32)
    return cells if weight is None else cells * weight[:, None]


def row_weights(rows: Rows) -> tf.Tensor | None:
    """Weights of rows, `(b,)`: row weight times the share of its cells that are observed."""
    cells = cell_weights(rows)
    return None if cells is None else tf.reduce_mean(cells, axis=1)


def with_bases(rows: Rows, terms: Sequence[RandomEffect]) -> Rows:
    """Encoded rows that carry the bases of their terms, computed once."""
    effects = {term.label: term.with_basis(rows[EFFECTS][term.label]) for term in terms}
    return {**rows, EFFECTS: effects}


@dataclass(frozen=True)
class Pass:
    """A pass over encoded rows, which may be made again: arrays and datasets alike.

    Attributes:
        rows: Encoded rows, or a dataset of batches of them.
    """

    rows: Any

    def __iter__(self) -> Iterator[Rows]:
        """Batches of bounded size."""
        if isinstance(self.rows, tf.data.Dataset):
            check_has_end(self.rows)
            yield from self.rows
            return
        for start in range(0, num_rows(self.rows), _CHUNK):
            yield take_rows(self.rows, start, start + _CHUNK)

    def map(self, function: Callable[[Rows], Rows]) -> Pass:
        """A pass over the rows that `function` makes of these."""
        if isinstance(self.rows, tf.data.Dataset):
            return Pass(self.rows.map(function))
        return Pass(function(self.rows))

    def groups(self, size: int) -> Iterator[list[Rows]]:
        """Batches put together to groups of at least `size` rows; the last may have less."""
        group: list[Rows] = []
        total = 0
        for batch in self:
            group.append(batch)
            total += num_rows(batch)
            if total >= size:
                yield group
                group, total = [], 0
        if group:
            yield group

    def total(self, function: Callable[[Rows], Any]) -> Any:
        """Sum over the batches of what `function` gives for each, tensors in any structure."""
        sums: Any = None
        for batch in self:
            part = function(batch)
            sums = part if sums is None else tf.nest.map_structure(tf.add, sums, part)
        return sums

    def cell_sums(self, function: Callable[[Rows], tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Weighted sum over the observed cells of every feature, and their number, `(p,)` each."""

        def sums(batch: Rows) -> tuple[tf.Tensor, tf.Tensor]:
            values, weights = function(batch), cell_weights(batch)
            weights = tf.ones_like(values) if weights is None else weights * tf.ones_like(values)
            return tf.reduce_sum(weights * values, axis=0), tf.reduce_sum(weights, axis=0)

        total, cells = self.total(sums)
        return total, cells

    def cell_mean(self, function: Callable[[Rows], tf.Tensor]) -> tf.Tensor:
        """Weighted mean over the observed cells of every feature, `(p,)`."""
        total, cells = self.cell_sums(function)
        return total / tf.maximum(cells, 1e-6)

    def collect(self, function: Callable[[Rows], tuple[tf.Tensor, ...]]) -> list[np.ndarray]:
        """What `function` gives for each batch, one below the other."""
        results = [function(batch) for batch in self]
        return [
            np.concatenate([keras.ops.convert_to_numpy(value) for value in values])
            for values in zip(*results, strict=True)
        ]
