"""A random sample of the rows of a stream."""

import numpy as np

__all__ = ["RowSample"]


class RowSample:
    """A random sample of rows that come in batches, every row as likely as any other.

    Each row draws a number, and the rows with the smallest numbers stay.

    Args:
        size: Positive int, most rows of the sample.
        seed: Int that fixes the sample for given rows.

    Example:
        >>> sample = RowSample(2, seed=0)
        >>> for start in (0, 10):
        ...     sample.update(np.arange(start, start + 10.0)[:, None])
        >>> sample.rows()[0].shape
        (2, 1)
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._rng = np.random.default_rng(seed)
        self._numbers = np.zeros(0)
        self._rows: tuple[np.ndarray, ...] = ()

    def update(self, *arrays: np.ndarray) -> None:
        """Takes in rows: arrays of equal length, `(n, ...)` each, the same number every time."""
        numbers = self._rng.random(len(arrays[0]))
        if self._rows:
            numbers = np.concatenate([self._numbers, numbers])
            arrays = tuple(np.concatenate(pair) for pair in zip(self._rows, arrays, strict=True))
        kept = np.sort(np.argsort(numbers)[: self.size])
        self._numbers = numbers[kept]
        self._rows = tuple(array[kept] for array in arrays)

    def rows(self) -> tuple[np.ndarray, ...]:
        """The sample, one array for each that was given, in the order of the rows."""
        return self._rows
