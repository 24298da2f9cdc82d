"""Shrunken group means, then principal components of what is left."""

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype
from sklearn.decomposition import PCA
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Baseline, Data, FloatArray
from keras_lmmvae.baselines.factor_density import FactorDensity
from keras_lmmvae.baselines.variance_components import variance_components
from keras_lmmvae.simulation.blup import EffectBlock, blup, level_design

__all__ = ["BLUPPCA"]

NOISE_FLOOR = 1e-6  # least share of a feature's variance that is noise: it may be constant by group
EFFECT_FLOOR = 1e-9  # the same for an effect, whose variance may be estimated as 0


class BLUPPCA(Baseline):
    """Linear mixed model of each feature by itself, then principal components of the residuals.

        x[i] = mean + sum{ B_k[code_k[i]] : k=1...K } + residual[i]
        B_k ~ MatrixNormal(0, I_q, diag(effect_variance_k))
        residual[i] = u[i] @ components + e[i]

    The variances are estimated by the method of moments (`variance_components`), the group means
    are shrunk by them, jointly for crossed or nested factors (`blup`). Strong where the fixed part
    is nearly linear and the groups explain much. Cost: linear in the number of rows.

    Args:
        latent_dim: Positive int, number of components `d`, at most the number of features.
        groups: Names of the columns with the keys of the factors, str or int keys. Null keys and,
            after `fit`, unseen keys have an effect of 0.
        seed: Optional int, for the randomised solver that scikit-learn takes for large data.
            Defaults to 0.

    Attributes:
        mean_: Float64 array `(p,)`.
        levels_: Dict of `pandas.Index`, the keys of each column's levels.
        effects_: Dict of float64 arrays `(q, p)`, the shrunken means of the levels.
        effect_variance_: Dict of float64 arrays `(p,)`, in squared units of the features.
        noise_variance_: Float64 array `(p,)`, variance of the residual, u included.
        pca_: The fitted `sklearn.decomposition.PCA` of the residuals.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if `latent_dim` is out of range, `x` has missing cells, a column of
            `groups` is missing, or each of its levels has only one row.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(1)
        >>> data = {"x": rng.normal(size=(50, 4)), "store": rng.integers(0, 5, 50)}
        >>> BLUPPCA(latent_dim=2, groups=["store"]).fit(data).reconstruct(data).shape
        (50, 4)
    """

    method: ClassVar[str] = "blup-pca"

    def __init__(self, latent_dim: int, groups: Sequence[str], *, seed: int | None = 0) -> None:
        self.latent_dim = latent_dim
        self.groups = groups
        self.seed = seed

    def fit(self, data: Data) -> Self:
        """Fits variances, group effects and components to `data`, and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        if isinstance(self.groups, str) or len(self.groups) == 0:
            raise ValueError(
                "`groups` must be a list of at least one column name. "
                f"Received: groups={self.groups!r}"
            )
        keys = {name: _keys(data, name, len(x)) for name in self.groups}
        self.levels_ = {name: _levels(name, key) for name, key in keys.items()}
        designs = [
            level_design(_codes(name, levels, keys[name]), len(levels))
            for name, levels in self.levels_.items()
        ]
        self.mean_ = x.mean(axis=0)
        centred = x - self.mean_
        variance, noise = variance_components(designs, centred)
        total = np.maximum(np.square(centred).mean(axis=0), np.finfo(np.float64).tiny ** 0.5)
        self.noise_variance_ = np.maximum(noise, NOISE_FLOOR * total)
        floored = np.maximum(variance, EFFECT_FLOOR * total)  # (K, p)
        blocks = [
            EffectBlock(design, 1.0 / own[:, None, None])
            for design, own in zip(designs, floored, strict=True)
        ]
        effects = blup(blocks, centred, self.noise_variance_, tolerance=1e-6)
        self.effect_variance_ = dict(zip(self.levels_, variance, strict=True))
        self.effects_ = {
            name: effect[:, 0] for name, effect in zip(self.levels_, effects, strict=True)
        }
        residual = x - self._population_and_groups(data, len(x))
        self.pca_ = PCA(self.latent_dim, random_state=self.seed).fit(residual)
        self.density_ = FactorDensity(self.pca_, residual - self.pca_.mean_)
        return self

    def transform(self, data: Data) -> FloatArray:
        """Returns the scores of the residuals, float64 `(n, d)`."""
        check_is_fitted(self)
        x = self._known_features(data)
        residual = x - self._population_and_groups(data, len(x))
        latent: FloatArray = self.pca_.transform(residual)
        return latent

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns mean + group effects + u @ components, float64 `(n, p)`."""
        latent = self.transform(data)
        reconstruction: FloatArray = self.pca_.inverse_transform(latent)
        return reconstruction + self._population_and_groups(data, len(latent))

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns the rows' log densities given the group effects, float64 `(n,)`."""
        del num_samples
        check_is_fitted(self)
        x = self._known_features(data)
        residual = x - self._population_and_groups(data, len(x)) - self.pca_.mean_
        return self.density_.log_density(residual)

    def _population_and_groups(self, data: Data, n: int) -> FloatArray:
        """Returns mean + sum of the rows' group effects, `(n, p)`."""
        fitted = np.tile(self.mean_, (n, 1))
        for name, levels in self.levels_.items():
            codes = _codes(name, levels, _keys(data, name, n))
            fitted += np.where(codes[:, None] >= 0, self.effects_[name][codes], 0.0)
        return fitted


def _keys(data: Data, name: str, n: int) -> np.ndarray:
    """Returns the keys of one column, `(n,)`."""
    if name not in data:
        raise ValueError(
            f"The data must have the columns in `groups`, and {name!r} is missing. "
            f"Received: columns={sorted(data)}"
        )
    keys = np.asarray(data[name])
    if keys.shape != (n,):
        raise ValueError(
            f"Column {name!r} must have one key for each of the {n} rows of `x`. "
            f"Received: {name}.shape={keys.shape}"
        )
    return keys


def _levels(name: str, keys: np.ndarray) -> pd.Index:
    """Returns the distinct keys that are not null; at least one must have two rows."""
    levels = pd.Index(keys[pd.notna(keys)]).unique()
    if len(levels) in (0, pd.notna(keys).sum()):
        raise ValueError(
            f"Column {name!r} must have a level with at least two rows, or its effects cannot be "
            f"told from the noise. Received: rows={len(keys)}, levels={len(levels)}"
        )
    return levels


def _codes(name: str, levels: pd.Index, keys: np.ndarray) -> npt.NDArray[np.int64]:
    """Returns the place of each key among the levels, -1 for null and unseen keys."""
    known = pd.Index(keys[pd.notna(keys)])
    if len(known) and is_numeric_dtype(levels) != is_numeric_dtype(known):
        raise ValueError(
            f"Keys of column {name!r} must be of the type that was fitted, {levels.dtype}. "
            f"Received: {name}.dtype={known.dtype}"
        )
    codes: npt.NDArray[np.int64] = levels.get_indexer(pd.Index(keys)).astype(np.int64)
    return codes
