"""The keys of a grouping factor and the lookup that turns them into codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.validation import NULL_INTEGER, received

__all__ = ["NULL_CODE", "UNKNOWN_CODE", "ServedTable", "Vocabulary"]

UNKNOWN_CODE = -1
"""Code of a key that the model was not adapted to."""
NULL_CODE = -2
"""Code of a missing key: the row has no level at all."""


class ServedTable(tf.Module):
    """A lookup in a file of one key a line, made of operations that run outside TensorFlow, too.

    Integer keys are looked up as text, and the null key has a table of its own: elsewhere there
    are no tables from int64, and strings cannot be compared.

    Args:
        vocabulary: The keys.
        path: File to write and to read them from, an asset of a SavedModel; `None` keeps the
            keys in the graph, for runtimes that read no assets, and for not too many keys.
    """

    def __init__(self, vocabulary: Vocabulary, path: str | Path | None) -> None:
        super().__init__()
        size, self.is_integer = len(vocabulary), vocabulary.is_integer
        if path is None:
            keys = _in_graph([str(key) for key in vocabulary.keys], range(size))
        else:
            vocabulary.save(path)
            keys = tf.lookup.TextFileInitializer(
                str(path),
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            )
        null = _in_graph([str(vocabulary.null)], [size])
        self.table = tf.lookup.StaticHashTable(keys, UNKNOWN_CODE)
        self.null_table = tf.lookup.StaticHashTable(null, UNKNOWN_CODE)

    def lookup(self, keys: tf.Tensor) -> tf.Tensor:
        """Positions `(n,)` int64 of keys `(n,)`; that behind all others for null."""
        text = tf.strings.as_string(keys) if self.is_integer else keys
        return tf.maximum(self.table.lookup(text), self.null_table.lookup(text))


def _in_graph(keys: Sequence[str], codes: Sequence[int]) -> tf.lookup.KeyValueTensorInitializer:
    """Keys and codes that are constants of the graph."""
    return tf.lookup.KeyValueTensorInitializer(
        tf.constant(keys, tf.string), tf.constant(codes, tf.int64)
    )


class Vocabulary:
    """Distinct keys, all strings or all int64; the code of a key is its position.

    Args:
        keys: Sequence of distinct strings, or int64 array; none of them null (`NULL_INTEGER`
            or the empty string).

    Raises:
        ValueError: If a key is null or stands twice, or a string key holds a line break, which
            its file could not keep.
    """

    def __init__(self, keys: Any) -> None:
        array = np.asarray(keys)
        self.is_integer = array.dtype.kind in "iu"
        self.keys = array.astype(np.int64) if self.is_integer else array.astype(object)
        if not self.is_integer:
            broken = [key for key in self.keys if "\n" in key or "\r" in key]
            if broken:
                raise ValueError("Keys must not hold line breaks. " + received(key=broken[0]))
        index = pd.Index(self.keys)
        if not index.is_unique:
            twice = index[index.duplicated()][0]
            raise ValueError("Keys must be distinct. " + received(key=twice))
        if np.any(self.keys == self.null):
            raise ValueError("A null key has no level. " + received(key=self.null))
        self._table: tf.lookup.StaticHashTable | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    @property
    def null(self) -> int | str:
        """The key that stands for a missing one."""
        return NULL_INTEGER if self.is_integer else ""

    @property
    def dtype(self) -> tf.DType:
        return tf.int64 if self.is_integer else tf.string

    def lookup(self, keys: tf.Tensor, table: Any = None) -> tf.Tensor:
        """Codes `(n,)` int32 of keys `(n,)`: their positions, `UNKNOWN_CODE` or `NULL_CODE`.

        Integer keys may come as floats, from a column that another term reads as a number:
        NaN is null, and a number that is not whole is unknown.
        """
        keys = tf.convert_to_tensor(keys)
        if keys.dtype.is_floating:
            is_null = tf.math.is_nan(keys)
            is_known = tf.equal(keys, tf.round(keys)) & (tf.abs(keys) < 2.0**63)
            codes = self._codes(tf.where(is_known, keys, tf.zeros_like(keys)), table)
            return tf.where(is_null, NULL_CODE, tf.where(is_known, codes, UNKNOWN_CODE))
        return self._codes(keys, table)

    def _codes(self, keys: tf.Tensor, table: Any) -> tf.Tensor:
        """Codes of keys that are none of them NaN."""
        keys = tf.cast(keys, self.dtype)
        found = (self._memory_table() if table is None else table).lookup(keys)
        # The null key stands behind the others, so that no strings have to be compared.
        codes = tf.ensure_shape(tf.cast(found, tf.int32), keys.shape)
        return tf.where(tf.equal(codes, len(self)), NULL_CODE, codes)

    def _memory_table(self) -> tf.lookup.StaticHashTable:
        if self._table is None:
            keys = self.keys if self.is_integer else list(self.keys)
            with tf.init_scope():
                initializer = tf.lookup.KeyValueTensorInitializer(
                    tf.concat([tf.constant(keys, self.dtype), [self.null]], axis=0),
                    tf.range(len(self) + 1, dtype=tf.int32),
                )
                self._table = tf.lookup.StaticHashTable(initializer, UNKNOWN_CODE)
        return self._table

    def save(self, path: str | Path) -> None:
        """Writes one key a line, in the order of the codes."""
        text = "".join(f"{key}\n" for key in self.keys)
        Path(path).write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | Path, is_integer: bool) -> Vocabulary:
        """Reads a file of `save`.

        Raises:
            ValueError: If there is no such file, or it does not hold one key a line.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
            if lines.pop():
                raise ValueError("The last line has no end.")
            return cls(np.array(lines, np.int64) if is_integer else np.array(lines, object))
        except (OSError, OverflowError, ValueError) as error:
            raise ValueError(
                "The file of keys is missing or damaged. " + received(path=str(path))
            ) from error

    def extended(self, keys: np.ndarray) -> Vocabulary:
        """A vocabulary with unseen keys (never null ones) put behind the present ones."""
        fresh = pd.Index(pd.unique(pd.Series(keys, dtype=self.keys.dtype)))
        fresh = fresh[fresh != self.null].difference(pd.Index(self.keys))
        return Vocabulary(np.concatenate([self.keys, fresh.to_numpy(self.keys.dtype)]))
