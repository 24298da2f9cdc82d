"""The interface of all baselines, and the checks of their features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from keras_lmmvae.validation import as_features, check_columns, check_positive, received

__all__ = ["Baseline", "Data", "FloatArray"]

Data = Mapping[str, np.ndarray]
FloatArray = npt.NDArray[np.float64]


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
