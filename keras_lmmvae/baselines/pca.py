"""Principal components of the features, or of the residuals of a mixed model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Baseline, Data, FloatArray, Levels, check_groups
from keras_lmmvae.baselines.calibration import calibrated_noise, without_calibration_rows
from keras_lmmvae.baselines.group_means import NOISE_FLOOR, GroupMeans
from keras_lmmvae.simulation.blup import level_design
from keras_lmmvae.validation import received

__all__ = ["ComponentsBaseline", "BLUPPCA", "FactorDensity", "PCABaseline"]

tfd = tfp.distributions


class ComponentsBaseline(Baseline):
    """Baseline with a fitted `PCA` of the features less their fixed part, and a density of both."""

    pca_: PCA
    density_: FactorDensity

    @abstractmethod
    def _columns(self, x: FloatArray, data: Data) -> FloatArray | sparse.csr_array:
        """Returns the columns of the PCA, `(n, p)` or more, from the features."""

    def _fixed(self, data: Data) -> FloatArray | float:
        """Returns what the columns leave out of the features, `(n, p)`."""
        del data
        return 0.0

    def _fixed_variance(self, data: Data) -> FloatArray | float:
        """Returns the posterior variance of the fixed part, `(n, p)`."""
        del data
        return 0.0

    def _calibrate(self, data: Data | None) -> None:
        """Sets the noise of the density to its most likely value on rows held out, if any."""
        if data is not None:
            self.density_.calibrate(self._centred(data), self._fixed_variance(data))

    def _centred(self, data: Data) -> FloatArray:
        """Returns the features less fixed part and mean, `(n, p)`."""
        x = self._known_features(data)
        return x - self._fixed(data) - self.pca_.mean_[: x.shape[1]]

    def transform(self, data: Data) -> FloatArray:
        """Returns the scores of the rows, float64 `(n, d)`."""
        check_is_fitted(self)
        latent: FloatArray = self.pca_.transform(self._columns(self._known_features(data), data))
        return latent

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns mean + u @ components, and group effects if there are any, float64 `(n, p)`."""
        latent, p = self.transform(data), self.n_features_in_
        reconstruction: FloatArray = latent @ self.pca_.components_[:, :p] + self.pca_.mean_[:p]
        return reconstruction + self._fixed(data)

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns the rows' exact log densities given the training rows, float64 `(n,)`.

        With one-hot coded groups, it is the marginal density of the features. The posterior
        variance of group effects is added to the noise.
        """
        del num_samples
        check_is_fitted(self)
        return self.density_.log_density(self._centred(data), self._fixed_variance(data))


class PCABaseline(ComponentsBaseline):
    """Principal components of the features, which ignore correlation between rows.

        x[i] = mean + u[i] @ components + e[i]

    With `groups`, the components are those of the features and the one-hot coded keys in one
    sparse matrix. The cost is linear in rows, features and factors and does not depend on the
    number of levels. Only the features are reconstructed.

    Args:
        latent_dim: Positive int, number of components `d`, at most the number of features. With
            `groups` it must be below the number of rows.
        groups: Names of the columns of the factors, str or int keys. Null keys and unseen keys
            are coded as zeros.
        calibration_split: Share of the training rows that are held out of the fit and give the
            noise variance of the density.
        seed: Optional int for the rows held out, and for scikit-learn's solvers with random
            starts: the randomised one for
            large data and the sparse one.

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
        self,
        latent_dim: int,
        *,
        groups: Sequence[str] = (),
        calibration_split: float = 0.0,
        seed: int | None = 0,
    ) -> None:
        self.latent_dim = latent_dim
        self.groups = groups
        self.calibration_split = calibration_split
        self.seed = seed

    @property
    def method(self) -> str:
        return "pca-ohe" if len(self.groups) else "pca"

    def fit(self, data: Data) -> Self:
        """Fits the components to `data["x"]`, float `(n, p)`, and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        check_groups(self.groups, minimum=0)
        data, held_out = without_calibration_rows(data, self.calibration_split, self.seed)
        x = self._known_features(data)
        self.vocabulary_ = Levels(data, self.groups)
        self.levels_ = self.vocabulary_.keys
        columns = self._columns(x, data)
        self.pca_ = PCA(self.latent_dim, svd_solver=self._solver(len(x)), random_state=self.seed)
        self.pca_.fit(columns)
        shares = self.pca_.mean_[x.shape[1] :]
        one_hot_variance = (shares * (1.0 - shares)).sum() * len(x) / max(len(x) - 1, 1)
        centred = x - self.pca_.mean_[: x.shape[1]]
        self.density_ = FactorDensity(self.pca_, centred, float(one_hot_variance))
        self._calibrate(held_out)
        return self

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
        codes, sizes = self.vocabulary_.codes(data), self.vocabulary_.sizes
        one_hot = [level_design(codes[name], size) for name, size in sizes.items()]
        return sparse.hstack([sparse.csr_array(x), *one_hot], format="csr")


class BLUPPCA(ComponentsBaseline):
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
        calibration_split: Share of the training rows that are held out of the fit and give the
            noise variance of the density.
        seed: Optional int for the rows held out, and for scikit-learn's randomised solver, which
            it uses for large data.

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

    method: ClassVar[str] = "blup-pca"

    def __init__(
        self,
        latent_dim: int,
        groups: Sequence[str],
        *,
        calibration_split: float = 0.0,
        seed: int | None = 0,
    ) -> None:
        self.latent_dim = latent_dim
        self.groups = groups
        self.calibration_split = calibration_split
        self.seed = seed

    def fit(self, data: Data) -> Self:
        """Fits variances, group effects and components to `data`, and returns the baseline."""
        self._fit_features(data, self.latent_dim)
        data, held_out = without_calibration_rows(data, self.calibration_split, self.seed)
        x = self._known_features(data)
        means = self.group_means_ = GroupMeans(self.groups).fit(x, data)
        self.mean_, self.levels_, self.effects_ = means.mean_, means.levels_, means.effects_
        self.effect_variance_ = means.effect_variance_
        self.noise_variance_ = means.noise_variance_
        residual = self._columns(x, data)
        self.pca_ = PCA(self.latent_dim, random_state=self.seed).fit(residual)
        self.density_ = FactorDensity(self.pca_, residual - self.pca_.mean_)
        self._calibrate(held_out)
        return self

    def _columns(self, x: FloatArray, data: Data) -> FloatArray:
        return x - self._fixed(data)

    def _fixed(self, data: Data) -> FloatArray:
        return self.group_means_.predict(data)

    def _fixed_variance(self, data: Data) -> FloatArray:
        return self.group_means_.contribution_variance(data)


class FactorDensity:
    """Gaussian density of residuals with known principal components.

        residual[i] = loadings @ u[i] + e[i],  u ~ Normal(0, I_d),  e ~ Normal(0, diag(noise))

    The loadings are those of probabilistic PCA: components times
    sqrt(explained variance - mean variance of the components that were left out). The noise
    variance of a feature is the rest of its variance. scikit-learn's `PCA.score_samples` has the
    same noise variance for all features. If the PCA has one-hot columns behind the features, this
    is the marginal density of the features.

    Args:
        pca: Fitted PCA of `p` features and any further columns behind them.
        residual: Float64 array `(n, p)`, the features that the PCA was fitted to.
        other_variance: Float, sum of the variances of the further columns.

    References:
        - Tipping & Bishop (1999), Probabilistic principal component analysis, eq. (7) and (8).
    """

    def __init__(self, pca: PCA, residual: FloatArray, other_variance: float = 0.0) -> None:
        variance = residual.var(axis=0, ddof=1)
        num_left_out = pca.n_features_in_ - pca.n_components_
        left_out = variance.sum() + other_variance - pca.explained_variance_.sum()
        isotropic = max(left_out / num_left_out, 0.0) if num_left_out else 0.0
        scale = np.sqrt(np.maximum(pca.explained_variance_ - isotropic, 0.0))
        self.loadings = pca.components_[:, : len(variance)].T * scale
        floor = np.maximum(NOISE_FLOOR * variance, np.finfo(np.float64).tiny ** 0.5)
        self.noise_variance = np.maximum(variance - np.square(self.loadings).sum(axis=1), floor)

    def calibrate(self, residual: FloatArray, extra_variance: FloatArray | float) -> None:
        """Sets the noise variance to its most likely value on rows that were held out.

        Args:
            residual: Float64 array `(n, p)`.
            extra_variance: Broadcasts to `(n, p)`, added to the noise of every row.
        """
        scale = np.sqrt(self.noise_variance + np.square(self.loadings).sum(axis=1))
        loadings = tf.constant(self.loadings / scale[:, None], tf.float32)
        size = self.loadings.shape[1]
        noise = calibrated_noise(
            self.noise_variance / scale**2,
            lambda latent: tf.matmul(latent, loadings, transpose_b=True),
            tf.constant(residual / scale, tf.float32),
            extra_variance / scale**2,
            tf.zeros((len(residual), size)),
            tfd.MultivariateNormalDiag(tf.zeros(size), tf.ones(size)),
        )
        self.noise_variance = noise * scale**2

    def log_density(
        self, residual: FloatArray, extra_variance: FloatArray | float = 0.0
    ) -> FloatArray:
        """Returns log Normal(residual; 0, loadings @ loadings' + diag(noise + extra)), `(n,)`."""
        variance = np.broadcast_to(self.noise_variance + extra_variance, residual.shape)  # (n, p)
        weighted = self.loadings[None] / variance[:, :, None]  # (n, p, d)
        d = self.loadings.shape[1]
        inner = np.eye(d) + np.einsum("pd,npe->nde", self.loadings, weighted)  # (n, d, d)
        projected = np.einsum("npd,np->nd", weighted, residual)
        solved = np.linalg.solve(inner, projected[:, :, None])[:, :, 0]
        square = (residual**2 / variance).sum(axis=1) - (projected * solved).sum(axis=1)
        log_det = np.log(variance).sum(axis=1) + np.linalg.slogdet(inner)[1]
        density: FloatArray = -0.5 * (square + log_det + residual.shape[1] * np.log(2.0 * np.pi))
        return density
