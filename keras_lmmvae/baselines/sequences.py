"""Sequences: the rows of each subject in the order of time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from keras_lmmvae.baselines.base import FloatArray
from keras_lmmvae.baselines.columns import is_null

__all__ = ["PADDING", "Sequences", "sequences_of"]

PADDING = -1
"""Row number of padded steps."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """Rows of each sequence, as returned by `sequences_of`.

    Attributes:
        codes: Int64 array `(n,)`, number of the sequence of each row.
        order: Int64 array `(n,)`, row numbers, sorted by sequence.
        starts: Int64 array `(s,)`, position in `order` of the first row of each sequence.
        lengths: Int64 array `(s,)`, number of rows of each sequence.
    """

    codes: IntArray
    order: IntArray
    starts: IntArray
    lengths: IntArray

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, numbers: IntArray) -> IntArray:
        """Returns the row numbers of some sequences, int64 `(k, longest)`, `PADDING` at the end."""
        lengths = self.lengths[numbers, None]  # (k, 1)
        step = np.arange(lengths.max())
        place = self.starts[numbers, None] + np.minimum(step, lengths - 1)
        return np.where(step < lengths, self.order[place], PADDING)

    def batches(self, most_steps: int) -> Iterator[IntArray]:
        """Yields numbers of sequences of similar length, with at most `most_steps` padded steps.

        A longer sequence is a batch by itself.
        """
        by_length = np.argsort(self.lengths, kind="stable")
        first = 0
        for end in range(1, len(self) + 1):
            longest = self.lengths[by_length[min(end, len(self) - 1)]]
            if end == len(self) or (end + 1 - first) * longest > most_steps:
                yield by_length[first:end]
                first = end


def sequences_of(keys: np.ndarray, time: FloatArray, x: FloatArray) -> Sequences:
    """Groups rows by key and sorts each group by time.

    Rows with equal times are sorted by their features, so that the order of the data has no
    influence. Each row with a null key is a sequence by itself.

    Args:
        keys: Int64 or str array `(n,)` from `as_keys`.
        time: Float64 array `(n,)`, finite.
        x: Float64 array `(n, p)`.

    Example:
        >>> import numpy as np
        >>> keys, time = np.array([7, 3, 7]), np.array([2.0, 0.0, 1.0])
        >>> sequences_of(keys, time, np.zeros((3, 1))).rows(np.array([0, 1]))
        array([[ 1, -1],
               [ 2,  0]])
    """
    missing = is_null(keys)
    codes = np.empty(len(keys), np.int64)
    present, levels = pd.factorize(keys[~missing], sort=True)
    codes[~missing] = present
    codes[missing] = len(levels) + np.arange(missing.sum())
    order = np.lexsort((*x.T[::-1], time, codes))
    lengths = np.bincount(codes)
    return Sequences(codes, order, np.cumsum(lengths) - lengths, lengths)
