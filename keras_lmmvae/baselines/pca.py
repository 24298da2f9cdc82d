"""Principal components, with the groups ignored."""

from typing import ClassVar, Self

from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Baseline, Data, FloatArray
from keras_lmmvae.baselines.factor_density import FactorDensity

__all__ = ["PCABaseline"]


class PCABaseline(Baseline):
    """Principal components of the features: the linear method that ignores all correlation.

        x[i] = mean + u[i] @ components + e[i]

    Args:
        latent_dim: Positive int, number of components `d`, at most the number of features.
        seed: Optional int, for the randomised solver that scikit-learn takes for large data.
            Defaults to 0.

    Attributes:
        pca_: The fitted `sklearn.decomposition.PCA`.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if `latent_dim` is out of range or `x` has missing cells.

    Example:
        >>> import numpy as np
        >>> data = {"x": np.random.default_rng(1).normal(size=(50, 4))}
        >>> PCABaseline(latent_dim=2).fit(data).transform(data).shape
        (50, 2)
    """

    method: ClassVar[str] = "pca"

    def __init__(self, latent_dim: int, *, seed: int | None = 0) -> None:
        self.latent_dim = latent_dim
        self.seed = seed

    def fit(self, data: Data) -> Self:
        """Fits the components to `data["x"]`, float `(n, p)`, and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        self.pca_ = PCA(self.latent_dim, random_state=self.seed).fit(x)
        self.density_ = FactorDensity(self.pca_, x - self.pca_.mean_)
        return self

    def transform(self, data: Data) -> FloatArray:
        """Returns the scores of the rows, float64 `(n, d)`."""
        check_is_fitted(self)
        latent: FloatArray = self.pca_.transform(self._known_features(data))
        return latent

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns mean + u @ components, float64 `(n, p)`."""
        reconstruction: FloatArray = self.pca_.inverse_transform(self.transform(data))
        return reconstruction

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns the rows' exact log densities under probabilistic PCA, float64 `(n,)`."""
        del num_samples
        check_is_fitted(self)
        return self.density_.log_density(self._known_features(data) - self.pca_.mean_)
