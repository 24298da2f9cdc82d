"""The keys of a grouping factor and the lookup that turns them into codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.validation import NULL_INTEGER, received

__all__ = ["NULL_CODE", "UNKNOWN_CODE", "Vocabulary"]

UNKNOWN_CODE = -1
"""Code of a key that the model was not adapted to."""
NULL_CODE = -2
"""Code of a missing key: the row has no level at all."""


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
        if np.any(self.keys == self._null):
            raise ValueError("A null key has no level. " + received(key=self._null))
        self._table: tf.lookup.StaticHashTable | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    @property
    def _null(self) -> int | str:
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
            keys = tf.cast(tf.where(is_known, keys, tf.zeros_like(keys)), self.dtype)
        else:
            keys = tf.cast(keys, self.dtype)
            is_known, is_null = True, tf.equal(keys, tf.constant(self._null, self.dtype))
        codes = tf.cast((table or self._memory_table()).lookup(keys), tf.int32)
        return tf.where(is_null, NULL_CODE, tf.where(is_known, codes, UNKNOWN_CODE))

    def _memory_table(self) -> tf.lookup.StaticHashTable:
        if self._table is None:
            with tf.init_scope():
                initializer = tf.lookup.KeyValueTensorInitializer(
                    tf.constant(self.keys if self.is_integer else list(self.keys), self.dtype),
                    tf.range(len(self), dtype=tf.int32),
                )
                self._table = tf.lookup.StaticHashTable(initializer, UNKNOWN_CODE)
        return self._table

    def file_table(self, path: str) -> tf.lookup.StaticHashTable:
        """A table read from a file of `save`; in a SavedModel that file is an asset."""
        initializer = tf.lookup.TextFileInitializer(
            path,
            self.dtype,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        return tf.lookup.StaticHashTable(initializer, UNKNOWN_CODE)

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
        fresh = fresh[fresh != self._null].difference(pd.Index(self.keys))
        return Vocabulary(np.concatenate([self.keys, fresh.to_numpy(self.keys.dtype)]))
