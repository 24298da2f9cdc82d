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

__all__ = [
    "EFFECTS",
    "FEATURES",
    "FOLD",
    "Pass",
    "Rows",
    "cell_weights",
    "encode_rows",
    "is_encoded",
    "num_rows",
    "row_weights",
    "shuffled_batches",
    "standardised",
    "take_rows",
    "with_bases",
]

EFFECTS = "_effects"
FOLD = "_fold"
_CHUNK = 16_384

Rows = dict[str, Any]
"""Encoded rows: "x" `(b, p)` float32, standardised, 0 where missing; "_effects": term -> codes
and inputs; "_fold" `(b,)` int32; optionally "observed" `(b, p)` bool and "weight" `(b,)`."""


def is_encoded(data: Any) -> bool:
    """Whether `data` are rows that `encode_rows` made."""
    return isinstance(data, dict) and EFFECTS in data


def _folds(x: tf.Tensor) -> tf.Tensor:
    """Fold 0 or 1 of every row, by a hash of its values: the same in any order and pipeline.

    Rows with equal values are told apart by their order where they are given as arrays: else
    the fold would say what the values of a feature with few of them are, and the folds would
    not be samples of the same rows. In a graph, where batches come and go, they share a fold.
    """
    width = x.shape[-1]
    multipliers = np.random.default_rng(0).integers(1, 2**31, size=width, dtype=np.int64) | 1
    bits = tf.cast(tf.bitcast(x, tf.int32), tf.int64)
    value = tf.reduce_sum(bits * multipliers, axis=1)
    if tf.executing_eagerly():
        twins = tf.constant(_occurrences(value.numpy()), tf.int64)
        value += twins * tf.constant(0x5851F42D4C957F2D, tf.int64)
    high = tf.bitwise.right_shift(value, tf.constant(32, tf.int64))
    mixed = tf.bitwise.bitwise_xor(value, high) * tf.constant(0x2545F4914F6CDD1D, tf.int64)
    return tf.cast(tf.bitwise.right_shift(mixed, tf.constant(40, tf.int64)) & 1, tf.int32)


def _occurrences(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before every value, `(n,)`."""
    order = np.argsort(values, kind="stable")
    numbers = np.arange(len(values))
    is_first = np.append(True, np.diff(values[order]) != 0)[: len(values)]
    counts = np.empty_like(numbers)
    counts[order] = numbers - np.maximum.accumulate(np.where(is_first, numbers, 0))
    return counts


def encode_rows(
    columns: Mapping[str, Any],
    terms: Sequence[RandomEffect],
    mean: np.ndarray,
    scale: np.ndarray,
    *,
    keep_mask: bool,
    tables: Mapping[str, Any] | None = None,
) -> Rows:
    """Standardises features and turns effect columns into codes and inputs; runs in any graph.

    Args:
        columns: Normalised columns, or tensors of such.
        terms: The model's terms.
        mean: Array `(p,)`, subtracted from the features.
        scale: Array `(p,)`, by which they are divided; standard deviations.
        keep_mask: Whether cells can be missing, so that "observed" is added.
        tables: Optional lookup tables by column; by default those of the vocabularies.
    """
    x, observed = standardised(columns[FEATURES], mean, scale)
    rows: Rows = {
        FEATURES: x,
        EFFECTS: {term.label: term.encode(dict(columns), tables) for term in terms},
        FOLD: _folds(x),
    }
    if keep_mask:
        rows["observed"] = observed
    return rows


def standardised(x: Any, mean: np.ndarray, scale: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    """Standardised features `(b, p)`, 0 where a cell is missing, and which cells are observed.

    The subtraction is in float64, which keeps the digits of features far from zero.
    """
    x = tf.cast(x, tf.float64)
    x = tf.cast((x - mean.astype(np.float64)) / scale.astype(np.float64), tf.float32)
    return finite_or_zero(tf.ensure_shape(x, (None, len(mean))))


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

    def cell_mean(self, function: Callable[[Rows], tf.Tensor]) -> tf.Tensor:
        """Weighted mean over the observed cells of every feature, `(p,)`.

        Args:
            function: Values of a batch's cells, `(b, p)`.
        """

        def sums(batch: Rows) -> tuple[tf.Tensor, tf.Tensor]:
            values, weights = function(batch), cell_weights(batch)
            weights = tf.ones_like(values) if weights is None else weights * tf.ones_like(values)
            return tf.reduce_sum(weights * values, axis=0), tf.reduce_sum(weights, axis=0)

        total, cells = self.total(sums)
        return total / tf.maximum(cells, 1e-6)

    def collect(self, function: Callable[[Rows], tuple[tf.Tensor, ...]]) -> list[np.ndarray]:
        """What `function` gives for each batch, one below the other."""
        results = [function(batch) for batch in self]
        return [
            np.concatenate([keras.ops.convert_to_numpy(value) for value in values])
            for values in zip(*results, strict=True)
        ]
