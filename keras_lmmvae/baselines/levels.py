"""The levels of grouping columns: fitted on the training rows, looked up afterwards."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype

from keras_lmmvae.baselines.base import Data
from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE
from keras_lmmvae.validation import NULL_INTEGER, as_keys

__all__ = ["Levels", "check_groups"]

IntArray = npt.NDArray[np.int64]


def check_groups(groups: Sequence[str], minimum: int) -> None:
    """Raises a ValueError unless `groups` is a list of at least `minimum` (0 or 1) names."""
    if isinstance(groups, str) or len(groups) < minimum:
        expected = "at least one column name" if minimum else "column names"
        raise ValueError(f"`groups` must be a list of {expected}. Received: groups={groups!r}")


class Levels:
    """Distinct keys of grouping columns; the code of a key is its place among them.

    Null keys are those of the model: None, NaN, the empty string, `NULL_INTEGER`.

    Args:
        data: Dict with the columns `groups`, each `(n,)`, str or int keys.
        groups: Names of the columns.
        num_rows: Positive int, `n`.

    Attributes:
        keys: Dict of `pandas.Index`, the distinct keys of each column, none of them null.

    Raises:
        ValueError: If a column is missing, has not `num_rows` keys, or none that is not null.

    Example:
        >>> stores = Levels({"store": np.array(["b", "a", "b"])}, ["store"], num_rows=3)
        >>> stores.codes({"store": np.array(["a", "c", ""])}, num_rows=3)["store"]
        array([ 1, -1, -2])
    """

    def __init__(self, data: Data, groups: Sequence[str], num_rows: int) -> None:
        self.keys = {name: _distinct(name, _column(data, name, num_rows)) for name in groups}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of levels `q` of each column."""
        return {name: len(keys) for name, keys in self.keys.items()}

    def codes(self, data: Data, num_rows: int) -> dict[str, IntArray]:
        """Returns the codes of each column, `(n,)`: `UNKNOWN_CODE` if unseen, `NULL_CODE` if null.

        Raises:
            ValueError: If a column is missing, has not `num_rows` keys, or keys of another type
                than was fitted.
        """
        return {
            name: _lookup(name, levels, _column(data, name, num_rows))
            for name, levels in self.keys.items()
        }


def _column(data: Data, name: str, num_rows: int) -> np.ndarray:
    """Returns the keys of one column, `(n,)`, int64 or str."""
    if name not in data:
        raise ValueError(
            f"The data must have the columns in `groups`, and {name!r} is missing. "
            f"Received: columns={sorted(data)}"
        )
    shape = np.shape(data[name])
    if shape != (num_rows,):
        raise ValueError(
            f"Column {name!r} must have one key for each of the {num_rows} rows of `x`. "
            f"Received: {name}.shape={shape}"
        )
    return as_keys(name, data[name])


def _is_null(keys: np.ndarray) -> npt.NDArray[np.bool_]:
    null = NULL_INTEGER if keys.dtype.kind == "i" else ""
    return np.asarray(keys == null, np.bool_)


def _distinct(name: str, keys: np.ndarray) -> pd.Index:
    levels = pd.Index(keys[~_is_null(keys)]).unique()
    if len(levels) == 0:
        raise ValueError(
            f"Column {name!r} must have at least one key that is not null. "
            f"Received: rows={len(keys)}, levels=0"
        )
    return levels


def _lookup(name: str, levels: pd.Index, keys: np.ndarray) -> IntArray:
    is_null = _is_null(keys)
    codes = np.full(len(keys), NULL_CODE, np.int64)
    known = pd.Index(keys[~is_null])
    if len(known) and is_numeric_dtype(levels) != is_numeric_dtype(known):
        raise ValueError(
            f"Keys of column {name!r} must be of the type that was fitted, {levels.dtype}. "
            f"Received: {name}.dtype={known.dtype}"
        )
    places = levels.get_indexer(known)
    codes[~is_null] = np.where(places >= 0, places, UNKNOWN_CODE)
    return codes
