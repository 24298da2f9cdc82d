"""Principal components, with the groups ignored or among the columns."""

from collections.abc import Sequence
from typing import Self

from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Baseline, Data, FloatArray
from keras_lmmvae.baselines.factor_density import FactorDensity
from keras_lmmvae.baselines.levels import Levels, check_groups
from keras_lmmvae.simulation.blup import level_design

__all__ = ["PCABaseline"]


class PCABaseline(Baseline):
    """Principal components of the features: the linear method that ignores all correlation.

        x[i] = mean + u[i] @ components + e[i]

    With `groups` the components are those of the features and the one-hot coded keys side by
    side, as a sparse matrix: cost linear in rows, features and factors, whatever the number of
    levels. Reconstructed are the features alone.

    Args:
        latent_dim: Positive int, number of components `d`, at most the number of features; with
            `groups` below the number of rows.
        groups: Names of the columns with the keys of factors, str or int keys. Null keys and,
            after `fit`, unseen keys are coded as zeros. Defaults to ().
        seed: Optional int, for the randomised solver that scikit-learn takes for large data, and
            for the start of the sparse one. Defaults to 0.

    Attributes:
        pca_: The fitted `sklearn.decomposition.PCA`.
        levels_: Dict of `pandas.Index`, the keys of each column's levels.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if `latent_dim` is out of range, `x` has missing cells or a column
            of `groups` is missing.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(1)
        >>> data = {"x": rng.normal(size=(50, 4)), "store": rng.integers(0, 5, 50)}
        >>> PCABaseline(latent_dim=2).fit(data).transform(data).shape
        (50, 2)
        >>> PCABaseline(latent_dim=2, groups=["store"]).fit(data).reconstruct(data).shape
        (50, 4)
    """

    def __init__(
        self, latent_dim: int, *, groups: Sequence[str] = (), seed: int | None = 0
    ) -> None:
        self.latent_dim = latent_dim
        self.groups = groups
        self.seed = seed

    @property
    def method(self) -> str:
        return "pca-ohe" if len(self.groups) else "pca"

    def fit(self, data: Data) -> Self:
        """Fits the components to `data["x"]`, float `(n, p)`, and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        check_groups(self.groups, minimum=0)
        self.vocabulary_ = Levels(data, self.groups, len(x))
        self.levels_ = self.vocabulary_.keys
        columns = self._columns(x, data)
        self.pca_ = PCA(self.latent_dim, svd_solver=self._solver(len(x)), random_state=self.seed)
        self.pca_.fit(columns)
        shares = self.pca_.mean_[x.shape[1] :]
        one_hot_variance = (shares * (1.0 - shares)).sum() * len(x) / max(len(x) - 1, 1)
        centred = x - self.pca_.mean_[: x.shape[1]]
        self.density_ = FactorDensity(self.pca_, centred, float(one_hot_variance))
        return self

    def transform(self, data: Data) -> FloatArray:
        """Returns the scores of the rows, float64 `(n, d)`."""
        check_is_fitted(self)
        latent: FloatArray = self.pca_.transform(self._columns(self._known_features(data), data))
        return latent

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns mean + u @ components of the features, float64 `(n, p)`."""
        latent, p = self.transform(data), self.n_features_in_
        reconstruction: FloatArray = latent @ self.pca_.components_[:, :p] + self.pca_.mean_[:p]
        return reconstruction

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns the rows' exact log densities under probabilistic PCA, float64 `(n,)`.

        That of the features alone, with one-hot columns integrated out.
        """
        del num_samples
        check_is_fitted(self)
        x = self._known_features(data)
        return self.density_.log_density(x - self.pca_.mean_[: x.shape[1]])

    def _solver(self, num_rows: int) -> str:
        """Returns scikit-learn's solver: its own choice, or the one for sparse columns."""
        if not len(self.groups):
            return "auto"
        if self.latent_dim >= num_rows:
            raise ValueError(
                "With `groups`, `latent_dim` must be below the number of rows. "
                f"Received: latent_dim={self.latent_dim!r}, rows={num_rows}"
            )
        return "arpack"

    def _columns(self, x: FloatArray, data: Data) -> FloatArray | sparse.csr_array:
        """Returns the features with the one-hot columns behind them, `(n, p + q)`."""
        if not len(self.groups):
            return x
        codes = self.vocabulary_.codes(data, len(x))
        sizes = self.vocabulary_.sizes
        one_hot = [level_design(codes[name], size) for name, size in sizes.items()]
        return sparse.hstack([sparse.csr_array(x), *one_hot], format="csr")
