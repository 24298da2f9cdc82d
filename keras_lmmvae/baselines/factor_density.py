"""Exact log density of probabilistic PCA with a noise variance for each feature."""

import numpy as np
from sklearn.decomposition import PCA

from keras_lmmvae.baselines.base import FloatArray

__all__ = ["FactorDensity"]

NOISE_FLOOR = 1e-6  # lowest share of noise in the variance of a feature


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
        other_variance: Float, sum of the variances of the further columns. Defaults to 0.

    Attributes:
        loadings: Float64 array `(p, d)`.
        noise_variance: Float64 array `(p,)`, in squared units of the features.

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

    def log_density(
        self, residual: FloatArray, extra_variance: FloatArray | float = 0.0
    ) -> FloatArray:
        """Returns log Normal(residual[i]; 0, loadings @ loadings' + diag(noise)), `(n,)`.

        Args:
            residual: Float64 array `(n, p)`, with mean 0.
            extra_variance: Float64 array `(n, p)` that is added to the noise.
        """
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
