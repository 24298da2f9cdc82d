"""The contract of the baselines, and the checks they share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

__all__ = ["Baseline", "Data", "FloatArray"]

Data = Mapping[str, np.ndarray]
FloatArray = npt.NDArray[np.float64]


class Baseline(BaseEstimator, ABC):  # type: ignore[misc]
    """A method of dimensionality reduction on data dicts: `x`, `(n, p)`, and effect columns.

    `__init__` only stores; arguments are checked by `fit`; what is learned ends in `_`. Every
    method is a model of the rows given the training rows, so that `log_likelihood` compares them.

    Attributes:
        n_features_in_: Int, number of features `p` seen by `fit`.
    """

    @property
    @abstractmethod
    def method(self) -> str:
        """The name in tables of results; it may depend on the arguments."""

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

        Args:
            data: Dict with `x`, `(n, p)`, and the columns that were fitted.
            num_samples: 0: the evidence bound. Positive: the tighter importance-weighted bound
                with that many draws. Linear methods return the exact density either way.
        """

    def _fit_features(self, data: Data, latent_dim: int) -> FloatArray:
        """Returns the checked features for `fit`, having checked `latent_dim` against them."""
        x = _features(data)
        is_int = isinstance(latent_dim, (int, np.integer)) and not isinstance(latent_dim, bool)
        if not is_int or not 1 <= latent_dim <= min(x.shape):
            raise ValueError(
                "`latent_dim` must be an int of at least 1 and at most the number of rows and of "
                f"features, {min(x.shape)}. Received: latent_dim={latent_dim!r}"
            )
        self.n_features_in_ = x.shape[1]
        return x

    def _known_features(self, data: Data) -> FloatArray:
        """Returns the checked features for a fitted baseline."""
        x = _features(data)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"`x` must have the {self.n_features_in_} features that were fitted. "
                f"Received: x.shape={x.shape}"
            )
        return x


def _features(data: Data) -> FloatArray:
    """Returns `x` as a float64 matrix of finite numbers."""
    if "x" not in data:
        raise ValueError(f"The data must have the features `x`. Received: columns={sorted(data)}")
    x = np.asarray(data["x"])
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiub":
        raise ValueError(
            "`x` must be a numeric matrix, rows by features, none of them zero in number. "
            f"Received: x.shape={x.shape}, x.dtype={x.dtype}"
        )
    x = x.astype(np.float64)
    broken = np.argwhere(~np.isfinite(x))
    if len(broken):
        row, feature = broken[0]
        raise ValueError(
            f"`x` must be finite: this baseline takes no missing cells, and {len(broken)} are NaN "
            f"or infinite. Received: x[{row}, {feature}]={float(x[row, feature])}"
        )
    return x
