"""The interface of all baselines, and the columns that they read: features, numbers and keys."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype
from sklearn.base import BaseEstimator

from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE
from keras_lmmvae.validation import (
    NULL_INTEGER,
    as_features,
    as_float_column,
    as_keys,
    check_columns,
    check_positive,
    received,
)

__all__ = [
    "Baseline",
    "Data",
    "FloatArray",
    "IntArray",
    "Levels",
    "check_groups",
    "is_null",
    "key_column",
    "number_column",
]

Data = Mapping[str, np.ndarray]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Baseline(BaseEstimator, ABC):  # type: ignore[misc]
    """A method of dimensionality reduction for data with `x`, `(n, p)`, and effect columns.

    As in scikit-learn, `__init__` only stores its arguments, `fit` checks them, and the names of
    fitted attributes end in `_`. Every method is a probability model of rows given the training
    rows, so that `log_likelihood` can compare methods.

    Attributes:
        n_features_in_: Int, number of features `p` seen by `fit`.
    """

    @property
    @abstractmethod
    def method(self) -> str:
        """The name in tables of results. It may depend on the arguments."""

    @abstractmethod
    def fit(self, data: Data) -> Self:
        """Fits the baseline to `data` and returns it."""

    @abstractmethod
    def transform(self, data: Data) -> FloatArray:
        """Returns the latent representation of the rows, `(n, d)`."""

    @abstractmethod
    def reconstruct(self, data: Data) -> FloatArray:
        """Returns the reconstruction of `x`, `(n, p)`, in its units."""

    @abstractmethod
    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns a lower bound of each row's log density given the training rows, `(n,)`, nats.

        Linear methods return the exact log density.

        Args:
            data: Dict with `x`, `(n, p)`, and the columns that were fitted.
            num_samples: Non-negative int. 0 gives the evidence lower bound. A positive number
                gives the tighter importance-weighted bound with that many draws.
        """

    def _fit_features(self, data: Data, latent_dim: int) -> FloatArray:
        """Checks the features and `latent_dim` for `fit`, and returns the features."""
        x = _features(data)
        check_positive("latent_dim", latent_dim, integer=True, minimum=1)
        if latent_dim > min(x.shape):
            raise ValueError(
                "`latent_dim` must be at most the number of rows and of features, "
                f"{min(x.shape)}. " + received(latent_dim=latent_dim)
            )
        self.n_features_in_ = x.shape[1]
        return x

    def _known_features(self, data: Data) -> FloatArray:
        """Checks and returns the features for a fitted baseline."""
        x = _features(data)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"`x` must have the {self.n_features_in_} features that were fitted. "
                + received(features=x.shape[1])
            )
        return x


def _features(data: Data) -> FloatArray:
    """Returns `x` as a float64 matrix of finite numbers."""
    check_columns(data, ["x"])
    x = as_features(data["x"]).astype(np.float64)
    missing = np.argwhere(np.isnan(x))
    if len(missing):
        row, column = missing[0].tolist()
        raise ValueError(
            "`x` must have no missing cells: baselines do not accept them. "
            + received(row=row, column=column, missing=len(missing))
        )
    return x


def check_groups(groups: Sequence[str], minimum: int) -> None:
    """Raises a ValueError unless `groups` is a list of at least `minimum` (0 or 1) names."""
    if isinstance(groups, str) or len(groups) < minimum:
        expected = "at least one column name" if minimum else "column names"
        raise ValueError(f"`groups` must be a list of {expected}. " + received(groups=groups))


def number_column(data: Data, name: str) -> FloatArray:
    """Returns a column of finite numbers, float64 `(n,)`, and raises a ValueError on others."""
    check_columns(data, ["x", name])
    values: FloatArray = as_float_column(name, data[name])
    missing = np.isnan(values)
    if missing.any():
        raise ValueError(
            f"The column '{name}' must have no missing values. "
            + received(row=int(np.argmax(missing)), missing=int(missing.sum()))
        )
    return values


def key_column(data: Data, name: str) -> np.ndarray:
    """Returns a column of keys as `as_keys` normalises them, int64 or str `(n,)`."""
    check_columns(data, ["x", name])
    return as_keys(name, data[name])


def is_null(keys: np.ndarray) -> npt.NDArray[np.bool_]:
    """Returns which keys from `as_keys` are null, bool `(n,)`."""
    return np.asarray(keys == (NULL_INTEGER if keys.dtype.kind == "i" else ""), np.bool_)


class Levels:
    """Levels of the columns `groups` of training data, with codes in the order of their first row.

    Null keys are those of `LMMVAE`: None, NaN, the empty string and `NULL_INTEGER`. scikit-learn's
    `OrdinalEncoder` does not recognise the last two.

    Attributes:
        keys: Dict of `pandas.Index`, the distinct keys of each column without null keys.

    Example:
        >>> stores = Levels({"x": np.zeros((3, 1)), "store": np.array(["b", "a", "b"])}, ["store"])
        >>> stores.codes({"x": np.zeros((3, 1)), "store": np.array(["a", "c", ""])})["store"]
        array([ 1, -1, -2])
    """

    def __init__(self, data: Data, groups: Sequence[str]) -> None:
        self.keys = {name: _distinct(name, key_column(data, name)) for name in groups}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of levels `q` of each column."""
        return {name: len(keys) for name, keys in self.keys.items()}

    def codes(self, data: Data) -> dict[str, IntArray]:
        """Returns codes `(n,)` of each column, `UNKNOWN_CODE` if unseen, `NULL_CODE` if null."""
        return {
            name: _lookup(name, levels, key_column(data, name))
            for name, levels in self.keys.items()
        }


def _distinct(name: str, keys: np.ndarray) -> pd.Index:
    levels = pd.Index(keys[~is_null(keys)]).unique()
    if len(levels) == 0:
        raise ValueError(
            f"The column '{name}' must have at least one key that is not null. "
            + received(rows=len(keys), levels=0)
        )
    return levels


def _lookup(name: str, levels: pd.Index, keys: np.ndarray) -> IntArray:
    null = is_null(keys)
    codes = np.full(len(keys), NULL_CODE, np.int64)
    present = pd.Index(keys[~null])
    if len(present) and is_numeric_dtype(levels) != is_numeric_dtype(present):
        raise ValueError(
            f"The keys of column '{name}' must be of the type that was fitted, {levels.dtype}. "
            + received(keys=keys)
        )
    places = levels.get_indexer(present)
    codes[~null] = np.where(places >= 0, places, UNKNOWN_CODE)
    return codes
