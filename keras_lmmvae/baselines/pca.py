"""Principal components of the features, or of the features and one-hot coded groups."""

from collections.abc import Sequence
from typing import Self

from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Baseline, Data, FloatArray
from keras_lmmvae.baselines.columns import Levels, check_groups
from keras_lmmvae.baselines.factor_density import FactorDensity
from keras_lmmvae.simulation.blup import level_design
from keras_lmmvae.validation import received

__all__ = ["PCABaseline"]


class PCABaseline(Baseline):
    """Principal components of the features, which ignore correlation between rows.

        x[i] = mean + u[i] @ components + e[i]

    With `groups`, the components are those of the features and the one-hot coded keys in one
    sparse matrix. The cost is linear in rows, features and factors and does not depend on the
    number of levels. Only the features are reconstructed.

    Args:
        latent_dim: Positive int, number of components `d`, at most the number of features. With
            `groups` it must be below the number of rows.
        groups: Names of the columns of the factors, str or int keys. Null keys and unseen keys
            are coded as zeros. Defaults to ().
        seed: Optional int for scikit-learn's solvers with random starts: the randomised one for
            large data and the sparse one. Defaults to 0.

    Attributes:
        pca_: The fitted `sklearn.decomposition.PCA`.
        levels_: Dict of `pandas.Index`, the keys of the levels of each column.
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
        self.vocabulary_ = Levels(data, self.groups)
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

        With `groups`, it is the marginal density of the features.
        """
        del num_samples
        check_is_fitted(self)
        x = self._known_features(data)
        return self.density_.log_density(x - self.pca_.mean_[: x.shape[1]])

    def _solver(self, num_rows: int) -> str:
        """Returns the solver of `PCA`: its default, or the one for sparse columns."""
        if not len(self.groups):
            return "auto"
        if self.latent_dim >= num_rows:
            raise ValueError(
                "With `groups`, `latent_dim` must be below the number of rows. "
                + received(latent_dim=self.latent_dim, rows=num_rows)
            )
        return "arpack"

    def _columns(self, x: FloatArray, data: Data) -> FloatArray | sparse.csr_array:
        """Returns the features with the one-hot columns behind them, `(n, p + q)`."""
        if not len(self.groups):
            return x
        codes = self.vocabulary_.codes(data)
        sizes = self.vocabulary_.sizes
        one_hot = [level_design(codes[name], size) for name, size in sizes.items()]
        return sparse.hstack([sparse.csr_array(x), *one_hot], format="csr")
