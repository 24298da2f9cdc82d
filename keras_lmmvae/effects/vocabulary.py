"""The keys of a grouping factor: learned, looked up, extended and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.validation import NULL_INTEGER, received

__all__ = ["NULL_CODE", "UNKNOWN_CODE", "Grouping", "ServedTable", "Vocabulary"]

UNKNOWN_CODE = -1
"""Code of a key that the model was not adapted to."""
NULL_CODE = -2
"""Code of a missing key: the row has no level at all."""

_FILE = "vocabulary.txt"


class ServedTable(tf.Module):
    """A lookup in a file of one key a line, with operations that other runtimes have, too.

    Other runtimes have no tables from int64 and cannot compare strings. So integer keys are looked
    up as text, and the null key has a table of its own. The file at `path` is an asset of the
    SavedModel. Without a path the keys are in the graph, for runtimes that read no assets.
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
        """Positions `(n,)` int64 of keys `(n,)`; the null key comes after all others."""
        text = tf.strings.as_string(keys) if self.is_integer else keys
        return tf.maximum(self.table.lookup(text), self.null_table.lookup(text))


def _in_graph(keys: Sequence[str], codes: Sequence[int]) -> tf.lookup.KeyValueTensorInitializer:
    """A table's keys and codes as constants of the graph."""
    return tf.lookup.KeyValueTensorInitializer(
        tf.constant(keys, tf.string), tf.constant(codes, tf.int64)
    )


class Vocabulary:
    """Distinct keys, all strings or all int64; the code of a key is its position.

    Args:
        keys: Sequence of distinct strings, or int64 array, without null keys (`NULL_INTEGER` or
            the empty string).

    Raises:
        ValueError: If a key is null or occurs twice, or a string key holds a line break, which
            the file of keys cannot hold.
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

        Integer keys are floats if another term reads the column as numbers. Then NaN is null, and
        a number that is not whole is unknown.
        """
        keys = tf.convert_to_tensor(keys)
        if keys.dtype.is_floating:
            is_null = tf.math.is_nan(keys)
            is_known = tf.equal(keys, tf.round(keys)) & (tf.abs(keys) < 2.0**63)
            codes = self._codes(tf.where(is_known, keys, tf.zeros_like(keys)), table)
            return tf.where(is_null, NULL_CODE, tf.where(is_known, codes, UNKNOWN_CODE))
        return self._codes(keys, table)

    def _codes(self, keys: tf.Tensor, table: Any) -> tf.Tensor:
        """Codes of keys without NaN."""
        keys = tf.cast(keys, self.dtype)
        found = (self._memory_table() if table is None else table).lookup(keys)
        # The null key comes after all others, so that no strings have to be compared.
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
        """Reads a file of `save`, and raises a ValueError if it is missing or damaged."""
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
        """A vocabulary with the unseen keys, except null, after the present ones."""
        fresh = pd.Index(pd.unique(pd.Series(keys, dtype=self.keys.dtype)))
        fresh = fresh[fresh != self.null].difference(pd.Index(self.keys))
        return Vocabulary(np.concatenate([self.keys, fresh.to_numpy(self.keys.dtype)]))


class Grouping:
    """The levels of one data column."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._vocabulary: Vocabulary | None = None
        self._is_integer: bool | None = None
        self._counts: pd.Series | None = None
        self._saved_size: int | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The keys; raises a ValueError before `adapt`."""
        if self._vocabulary is None and self._saved_size is not None:
            raise ValueError(
                f"The keys of column '{self.column}' are missing: they come with a model's saved "
                "file, not with its configuration or its weights. "
                + received(levels=self._saved_size, vocabulary=None)
            )
        if self._vocabulary is None:
            raise ValueError(
                f"The levels of column '{self.column}' are not known yet: call "
                "`model.adapt(data)` first. " + received(vocabulary=None)
            )
        return self._vocabulary

    def conform(self, keys: np.ndarray) -> np.ndarray:
        """Checks that keys have the type that `adapt` found. Missing keys alone get this type."""
        is_integer = keys.dtype.kind == "i"
        if self._is_integer is None or is_integer == self._is_integer:
            return keys
        present = _present(keys)
        if len(present):
            self._fail_kind(kind=_kind(is_integer), first=present[0])
        if self._is_integer:
            return np.full(len(keys), NULL_INTEGER, np.int64)
        return np.full(len(keys), "", object)

    def _fail_kind(self, **values: Any) -> NoReturn:
        raise ValueError(
            f"The keys of column '{self.column}' must be {_kind(bool(self._is_integer))}, as those "
            "the model was adapted to. " + received(**values)
        )

    def update_state(self, keys: np.ndarray) -> None:
        """Counts the keys of some rows. Missing keys do not decide their type."""
        present = _present(keys)
        if len(present) == 0:
            return
        self._is_integer = keys.dtype.kind == "i"
        counts = pd.Series(present).value_counts()
        self._counts = counts if self._counts is None else self._counts.add(counts, fill_value=0)

    def finalize_state(self) -> int:
        """Fixes the vocabulary, sorted by key, and returns its size.

        It raises a ValueError without keys, or without a level of two rows.
        """
        counts = self._counts
        if counts is None:
            raise ValueError(
                f"The column '{self.column}' holds no keys, expected at least one level. "
                + received(levels=0)
            )
        if counts.max() < 2:
            raise ValueError(
                f"All levels of column '{self.column}' have a single row, so its effects cannot "
                "be told from noise: choose a coarser grouping or leave the term out. "
                + received(levels=len(counts))
            )
        keys = np.sort(counts.index.to_numpy(np.int64 if self._is_integer else object))
        self._vocabulary, self._counts = Vocabulary(keys), None
        return len(keys)

    def reset_state(self) -> None:
        """Forgets the counted rows."""
        self._vocabulary = self._is_integer = self._counts = None

    def lookup(self, keys: tf.Tensor, tables: Mapping[str, Any] | None = None) -> tf.Tensor:
        """Codes `(b,)` int32 of keys `(b,)`, by the column's own table or one of `tables`."""
        keys = tf.convert_to_tensor(keys)
        if (keys.dtype == tf.string) == self.vocabulary.is_integer:
            self._fail_kind(dtype=keys.dtype.name)
        table = None if tables is None else tables[self.column]
        return self.vocabulary.lookup(keys, table)

    def extend(self, keys: np.ndarray) -> int:
        """Adds unseen keys after the present ones and returns the new size."""
        self._vocabulary = self.vocabulary.extended(keys)
        return len(self._vocabulary)

    def state(self) -> dict[str, Any]:
        """The type and number of the keys, which their file does not hold."""
        size = self._saved_size if self._vocabulary is None else len(self._vocabulary)
        return {"is_integer": self._is_integer, "size": size}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what `state` gave; `load` reads the keys."""
        self._is_integer = state["is_integer"]
        self._saved_size = state.get("size")

    def save(self, folder: str) -> None:
        """Writes the keys, if there are any, into a folder."""
        if self._vocabulary is not None:
            self._vocabulary.save(Path(folder) / _FILE)

    def load(self, folder: str | None) -> None:
        """Reads the keys that `save` wrote into a folder, and raises a ValueError without them."""
        if self._is_integer is None:
            return
        if folder is None:
            raise ValueError(
                f"The file of the keys of column '{self.column}' is missing or damaged. "
                + received(folder=folder)
            )
        vocabulary = Vocabulary.load(Path(folder) / _FILE, self._is_integer)
        if self._saved_size not in (None, len(vocabulary)):
            raise ValueError(
                f"The file of the keys of column '{self.column}' must hold {self._saved_size} "
                "keys, as many as the model has levels. " + received(keys=len(vocabulary))
            )
        self._vocabulary = vocabulary


def _kind(is_integer: bool) -> str:
    return "integers" if is_integer else "strings"


def _present(keys: np.ndarray) -> np.ndarray:
    """The keys that are not null."""
    null = NULL_INTEGER if keys.dtype.kind == "i" else ""
    return np.asarray(keys[keys != null])
