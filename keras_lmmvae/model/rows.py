"""From the user's tables to encoded rows: standardised features, codes and basis inputs.

Keys are looked up here, in the input pipeline, and never inside the training graph, where a
lookup would keep XLA from compiling the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.effects.combined_keys import with_combined_keys
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.scaling import finite_or_zero
from keras_lmmvae.validation import as_features, check_columns, received

__all__ = [
    "EFFECTS",
    "FEATURES",
    "FOLD",
    "Rows",
    "batches_of",
    "cell_weights",
    "check_has_end",
    "dataset_columns",
    "encode_rows",
    "is_encoded",
    "num_rows",
    "prepare_rows",
    "raw_batches",
    "row_weights",
    "shuffled_batches",
    "take_rows",
    "with_bases",
]

FEATURES = "x"
EFFECTS = "_effects"
FOLD = "_fold"
_CHUNK = 16_384

Rows = dict[str, Any]
"""Encoded rows: "x" `(b, p)` float32, standardised, 0 where missing; "_effects": term -> codes
and inputs; "_fold" `(b,)` int32; optionally "observed" `(b, p)` bool and "weight" `(b,)`."""


def is_encoded(data: Any) -> bool:
    """Whether `data` are rows that `encode_rows` made."""
    return isinstance(data, dict) and EFFECTS in data


def prepare_rows(
    data: Any, terms: Sequence[RandomEffect], num_features: int | None = None
) -> dict[str, np.ndarray]:
    """Checks a dict of columns and returns it as arrays of fixed dtypes.

    Raises:
        ValueError: On any bad input of the columns the model reads.
    """
    if isinstance(data, pd.DataFrame):
        raise ValueError(
            "A data frame does not say which columns are features: use "
            "`keras_lmmvae.from_dataframe(df, features=[...], random_effects=...)`. "
            + received(columns=list(data.columns)[:10])
        )
    columns = [column for term in terms for column in term.columns]
    data = with_combined_keys(data, columns)
    check_columns(data, [FEATURES, *columns])
    prepared = {FEATURES: as_features(data[FEATURES], num_features)}
    for term in terms:
        prepared.update(term.prepare(data))
    return prepared


def dataset_columns(
    dataset: tf.data.Dataset, terms: Sequence[RandomEffect], num_features: int | None = None
) -> tf.data.Dataset:
    """Checks the element structure of a dataset and returns it with elements that are dicts.

    Raises:
        ValueError: If elements are not batches of a dict with all columns, or "x" has another
            width than `num_features`.
    """
    spec = dataset.element_spec
    if isinstance(spec, tuple) and len(spec) == 1:
        dataset = dataset.map(lambda element: element)
        spec = dataset.element_spec
    needed = [FEATURES, *(column for term in terms for column in term.columns)]
    if not isinstance(spec, dict) or any(name not in spec for name in needed):
        raise ValueError(
            f"A dataset must yield dicts with the columns {needed}. " + received(element=spec)
        )
    if spec[FEATURES].shape.rank != 2:
        raise ValueError(
            "A dataset must yield batches, with 'x' of shape (rows, features): call "
            "`dataset.batch(...)`. " + received(shape=spec[FEATURES].shape)
        )
    width = spec[FEATURES].shape[1]
    if num_features is not None and width not in (None, num_features):
        raise ValueError(
            f"The features 'x' must have the {num_features} columns that the model was adapted to. "
            + received(columns=width)
        )
    return dataset


def raw_batches(
    data: Any, terms: Sequence[RandomEffect], num_features: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Prepared columns of a dict at once, or of a dataset batch by batch."""
    if not isinstance(data, tf.data.Dataset):
        yield prepare_rows(data, terms, num_features)
        return
    check_has_end(data)
    for batch in dataset_columns(data, terms).as_numpy_iterator():
        yield prepare_rows(batch, terms, num_features)


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
    prepared: dict[str, Any],
    terms: Sequence[RandomEffect],
    mean: np.ndarray,
    scale: np.ndarray,
    *,
    keep_mask: bool,
    tables: dict[str, Any] | None = None,
) -> Rows:
    """Standardises features and turns effect columns into codes and inputs; runs in any graph.

    Args:
        prepared: Columns as `prepare_rows` returns them, or tensors of such.
        terms: The model's terms.
        mean: Array `(p,)`, subtracted from the features.
        scale: Array `(p,)`, by which they are divided; standard deviations.
        keep_mask: Whether cells can be missing, so that "observed" is added.
        tables: Optional lookup tables by column; by default those of the vocabularies.
    """
    # The subtraction in float64 keeps the digits of features far from zero.
    x = tf.cast(prepared[FEATURES], tf.float64)
    x = tf.cast((x - mean.astype(np.float64)) / scale.astype(np.float64), tf.float32)
    x = tf.ensure_shape(x, (None, len(mean)))
    x, observed = finite_or_zero(x)
    rows: Rows = {
        FEATURES: x,
        EFFECTS: {term.label: term.encode(prepared, tables) for term in terms},
        FOLD: _folds(x),
    }
    if keep_mask:
        rows["observed"] = observed
    return rows


def check_has_end(dataset: tf.data.Dataset) -> None:
    """Raises a ValueError if a dataset cannot be read to its end."""
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "A dataset without end cannot be read as a whole: cut it with `dataset.take(batches)`. "
            + received(cardinality="infinite")
        )


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


def batches_of(rows: Any) -> Iterator[Rows]:
    """Iterates over encoded rows, arrays or a dataset, in chunks of bounded size."""
    if isinstance(rows, tf.data.Dataset):
        check_has_end(rows)
        yield from rows
        return
    for start in range(0, num_rows(rows), _CHUNK):
        yield take_rows(rows, start, start + _CHUNK)


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
