"""BLUPs of group means, then principal components of the residuals."""

from collections.abc import Sequence
from typing import Self

from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Baseline, Data, FloatArray
from keras_lmmvae.baselines.factor_density import FactorDensity
from keras_lmmvae.baselines.group_means import GroupMeans

__all__ = ["BLUPPCA"]


class BLUPPCA(Baseline):
    """Linear mixed model of each feature, then principal components of its residuals.

        x[i] = mean + sum{ B_k[code_k[i]] : k=1...K } + residual[i]
        B_k ~ MatrixNormal(0, I_q, diag(effect_variance_k))
        residual[i] = u[i] @ components + e[i]

    The mixed model is `GroupMeans`. The method works well if the fixed part is nearly linear and
    groups explain much of the variance. The cost is linear in the number of rows.

    Args:
        latent_dim: Positive int, number of components `d`, at most the number of features.
        groups: Names of the columns of the factors, str or int keys. The effect of null keys and
            of unseen keys is 0.
        seed: Optional int for scikit-learn's randomised solver, which it uses for large data.
            Defaults to 0.

    Attributes:
        group_means_: The fitted `GroupMeans`. The next five attributes are taken from it.
        mean_: Float64 array `(p,)`.
        levels_: Dict of `pandas.Index`, the keys of the levels of each column.
        effects_: Dict of float64 arrays `(q, p)`, the BLUPs of the levels.
        effect_variance_: Dict of float64 arrays `(p,)`, in squared units of the features.
        noise_variance_: Float64 array `(p,)`, variance of the residual including u.
        pca_: The fitted `sklearn.decomposition.PCA` of the residuals.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if `latent_dim` is out of range, `x` has missing cells, a column of
            `groups` is missing, or all of its levels have only one row.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(1)
        >>> data = {"x": rng.normal(size=(50, 4)), "store": rng.integers(0, 5, 50)}
        >>> BLUPPCA(latent_dim=2, groups=["store"]).fit(data).reconstruct(data).shape
        (50, 4)
    """

    def __init__(self, latent_dim: int, groups: Sequence[str], *, seed: int | None = 0) -> None:
        self.latent_dim = latent_dim
        self.groups = groups
        self.seed = seed

    @property
    def method(self) -> str:
        return "blup-pca"

    def fit(self, data: Data) -> Self:
        """Fits variances, group effects and components to `data`, and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        means = self.group_means_ = GroupMeans(self.groups).fit(x, data)
        self.mean_, self.levels_, self.effects_ = means.mean_, means.levels_, means.effects_
        self.effect_variance_ = means.effect_variance_
        self.noise_variance_ = means.noise_variance_
        residual = x - self._population_and_groups(data)
        self.pca_ = PCA(self.latent_dim, random_state=self.seed).fit(residual)
        self.density_ = FactorDensity(self.pca_, residual - self.pca_.mean_)
        return self

    def transform(self, data: Data) -> FloatArray:
        """Returns the scores of the residuals, float64 `(n, d)`."""
        check_is_fitted(self)
        residual = self._known_features(data) - self._population_and_groups(data)
        latent: FloatArray = self.pca_.transform(residual)
        return latent

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns mean + group effects + u @ components, float64 `(n, p)`."""
        reconstruction: FloatArray = self.pca_.inverse_transform(self.transform(data))
        return reconstruction + self._population_and_groups(data)

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns the rows' log densities given the training rows, float64 `(n,)`.

        The posterior variance of the group effects is added to the noise.
        """
        del num_samples
        check_is_fitted(self)
        x = self._known_features(data)
        residual = x - self._population_and_groups(data) - self.pca_.mean_
        return self.density_.log_density(residual, self.group_means_.contribution_variance(data))

    def _population_and_groups(self, data: Data) -> FloatArray:
        """Returns mean + sum of the rows' group effects, `(n, p)`."""
        return self.mean_ + self.group_means_.contribution(data)
