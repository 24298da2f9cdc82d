"""Splits into training and test rows: at random, by group, or by time.

scikit-learn's splitters take one group array without missing keys, and do not split by time.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from keras_lmmvae.simulation.simulation import IntArray
from keras_lmmvae.validation import check_columns, check_probability, received

__all__ = ["SplitKind", "split", "take"]

SplitKind = Literal["rows", "groups", "future"]


def split(
    data: Mapping[str, np.ndarray],
    kind: SplitKind = "rows",
    *,
    on: str | Sequence[str] | None = None,
    test_size: float = 0.2,
    seed: int | None = None,
) -> tuple[IntArray, IntArray]:
    """Splits the rows of `data` into a training and a test part.

    Args:
        data: Dict of arrays, each with `n` rows.
        kind: Which rows are the test rows.
            - "rows": random rows. Most of their levels also have training rows.
            - "groups": all rows of random levels of `on`, so that these levels are unseen.
              Several columns form one key together, for instance `on=("lon", "lat")`.
            - "future": the last rows by the time column `on`. Row order breaks ties.
        on: Column or columns for "groups", the time column for "future".
        test_size: Float in (0, 1), share of the rows (for "groups": of the levels) to test on,
            rounded. Both parts get at least one.
        seed: Optional int. The same seed gives the same split. "future" does not use it.

    Returns:
        train_idx: Int64 array, row numbers in increasing order.
        test_idx: Int64 array, the other row numbers in increasing order.

    Raises:
        ValueError: If `kind` is unknown, if `on` is missing or not needed, if `test_size` is not
            in (0, 1), or if there are fewer than two rows or levels.

    Example:
        >>> train_idx, test_idx = split({"t": np.array([3, 1, 2, 0])}, "future", on="t")
        >>> test_idx
        array([0])
    """
    if kind not in get_args(SplitKind):
        raise ValueError(f"`kind` must be one of {get_args(SplitKind)}. " + received(kind=kind))
    check_probability("test_size", test_size)
    rng = np.random.default_rng(seed)
    columns = _columns(kind, on)
    num_rows = check_columns(data, [*columns, *data])
    if kind == "rows":
        is_test = _random_part(rng, num_rows, test_size)
    elif kind == "groups":
        keys = pd.DataFrame({name: np.asarray(data[name]) for name in columns})
        codes = keys.groupby(columns, dropna=False, sort=False).ngroup().to_numpy()
        is_test = _random_part(rng, int(codes.max()) + 1, test_size)[codes]
    else:
        order = np.argsort(np.asarray(data[columns[0]]), kind="stable")
        is_test = np.zeros(num_rows, bool)
        is_test[order[num_rows - _test_count(num_rows, test_size) :]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def take(data: Mapping[str, np.ndarray], idx: np.ndarray) -> dict[str, np.ndarray]:
    """Takes the same rows out of every array of `data`.

    Args:
        data: Dict of arrays, each with `n` rows.
        idx: Int array of row numbers, or bool array `(n,)`.

    Returns:
        rows: Dict of the same columns, copies of the rows `idx`.

    Example:
        >>> take({"t": np.array([0.0, 0.5, 1.0]), "store": np.array([7, 7, 8])}, np.array([0, 2]))
        {'t': array([0., 1.]), 'store': array([7, 8])}
    """
    return {name: np.asarray(values)[idx] for name, values in data.items()}


def _columns(kind: SplitKind, on: str | Sequence[str] | None) -> list[str]:
    """Returns the columns to split by."""
    names = [on] if isinstance(on, str) else list(on or ())
    if kind == "rows" and names:
        raise ValueError("A split by rows uses no column: leave `on` out. " + received(on=on))
    if (kind == "groups" and not names) or (kind == "future" and len(names) != 1):
        wanted = "at least one column" if kind == "groups" else "one time column"
        raise ValueError(f"A split of kind {kind!r} needs {wanted} in `on`. " + received(on=on))
    return names


def _test_count(count: int, test_size: float) -> int:
    """Returns the number of test rows or levels among `count`."""
    if count < 2:
        raise ValueError(
            "A split needs at least two rows, or two levels of `on`. " + received(count=count)
        )
    return min(max(round(count * test_size), 1), count - 1)


def _random_part(rng: np.random.Generator, count: int, test_size: float) -> np.ndarray:
    """Returns a random mask `(count,)`, True in the test part."""
    mask = np.zeros(count, bool)
    mask[rng.permutation(count)[: _test_count(count, test_size)]] = True
    return mask
