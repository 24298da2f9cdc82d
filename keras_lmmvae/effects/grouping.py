"""A grouping factor: its column and its vocabulary, found, looked up and saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.effects.vocabulary import Vocabulary
from keras_lmmvae.validation import NULL_INTEGER, received

__all__ = ["Grouping"]

_FILE = "vocabulary.txt"
# What keys are called, by `is_integer`.
_KINDS = {True: "integers", False: "strings"}


class Grouping:
    """The levels of one data column.

    Args:
        column: Name of the data column.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._vocabulary: Vocabulary | None = None
        self._is_integer: bool | None = None
        self._counts: pd.Series | None = None
        self._saved_size: int | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The keys, known after `adapt`.

        Raises:
            ValueError: If the levels are not known yet.
        """
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
        """Normalised keys, of the type adapted to once there is one.

        A column that holds no key at all has no type: its missing keys get the one expected.

        Raises:
            ValueError: If keys are of another type than those adapted to.
        """
        is_integer = keys.dtype.kind == "i"
        if self._is_integer is None or is_integer == self._is_integer:
            return keys
        present = _present(keys)
        if len(present):
            raise ValueError(
                f"The keys of column '{self.column}' must be {_KINDS[self._is_integer]}, as "
                "those the model was adapted to. "
                + received(kind=_KINDS[is_integer], first=present[0])
            )
        if self._is_integer:
            return np.full(len(keys), NULL_INTEGER, np.int64)
        return np.full(len(keys), "", object)

    def update_state(self, keys: np.ndarray) -> None:
        """Counts the keys of some rows. Rows without any key leave their type open."""
        present = _present(keys)
        if len(present) == 0:
            return
        self._is_integer = keys.dtype.kind == "i"
        counts = pd.Series(present).value_counts()
        self._counts = counts if self._counts is None else self._counts.add(counts, fill_value=0)

    def finalize_state(self) -> int:
        """Fixes the vocabulary, sorted by key, and returns its size.

        Raises:
            ValueError: If there is no key, or no level has two rows.
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
        """Forgets the rows taken in."""
        self._vocabulary = self._is_integer = self._counts = None

    def lookup(self, keys: tf.Tensor, tables: Mapping[str, Any] | None = None) -> tf.Tensor:
        """Codes `(b,)` int32 of keys `(b,)`.

        Raises:
            ValueError: If the keys are of another type than those adapted to.
        """
        keys = tf.convert_to_tensor(keys)
        if (keys.dtype == tf.string) == self.vocabulary.is_integer:
            raise ValueError(
                f"The keys of column '{self.column}' must be {_KINDS[self.vocabulary.is_integer]}, "
                "as those the model was adapted to. " + received(dtype=keys.dtype.name)
            )
        table = None if tables is None else tables[self.column]
        return self.vocabulary.lookup(keys, table)

    def extend(self, keys: np.ndarray) -> int:
        """Adds unseen keys behind the present ones and returns the new size."""
        self._vocabulary = self.vocabulary.extended(keys)
        return len(self._vocabulary)

    def state(self) -> dict[str, Any]:
        """What the file of keys does not say: their type and number."""
        size = self._saved_size if self._vocabulary is None else len(self._vocabulary)
        return {"is_integer": self._is_integer, "size": size}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave; the keys follow with `load`."""
        self._is_integer = state["is_integer"]
        self._saved_size = state.get("size")

    def save(self, folder: str) -> None:
        """Writes the keys, if there are any, into a folder."""
        if self._vocabulary is not None:
            self._vocabulary.save(Path(folder) / _FILE)

    def load(self, folder: str | None) -> None:
        """Reads the keys that `save` wrote into a folder; `None` if there is no such folder.

        Raises:
            ValueError: If the file is missing or damaged, or holds another number of keys.
        """
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


def _present(keys: np.ndarray) -> np.ndarray:
    """The keys that are not null."""
    null = NULL_INTEGER if keys.dtype.kind == "i" else ""
    return np.asarray(keys[keys != null])
