"""Linear mixed model of each feature with random intercepts: BLUPs of the group means."""

from collections.abc import Sequence
from typing import Self

import numpy as np
from scipy import optimize, sparse

from keras_lmmvae.baselines.base import Data, FloatArray, Levels, check_groups
from keras_lmmvae.effects.vocabulary import UNKNOWN_CODE
from keras_lmmvae.simulation.blup import EffectBlock, blup, level_design
from keras_lmmvae.validation import received

__all__ = ["GroupMeans", "variance_components"]

# Lowest shares in the variance of a feature. A feature may be constant within groups, and the
# variance of an effect may be estimated as 0.
NOISE_FLOOR = 1e-6
EFFECT_FLOOR = 1e-9


class GroupMeans:
    """Random intercepts of crossed or nested factors, separately for each feature.

        x[i] = mean + sum{ B_k[code_k[i]] : k=1...K } + residual[i]
        B_k ~ MatrixNormal(0, I_q, diag(effect_variance_k))
        residual[i] ~ Normal(0, diag(noise_variance))

    The variances are estimated by the method of moments (`variance_components`). The effects are
    BLUPs at these variances, jointly for all factors (`blup`). The cost is linear in the number
    of rows.

    Args:
        groups: Names of the columns of the factors, str or int keys. The effect of null keys and
            of unseen keys is 0.

    Attributes:
        mean_: Float64 array `(p,)`.
        levels_: Dict of `pandas.Index`, the keys of the levels of each column.
        effects_: Dict of float64 arrays `(q, p)`, the BLUPs of the levels.
        effect_variance_: Dict of float64 arrays `(p,)`, in squared units of the features.
        noise_variance_: Float64 array `(p,)`, variance of the residual.

    Raises:
        ValueError: In `fit`, if a column of `groups` is missing, or if all of its levels have only
            one row.

    Example:
        >>> x = np.array([[0.0], [2.0], [10.0], [12.0]])
        >>> data = {"x": x, "store": np.array(["a", "a", "b", "b"])}
        >>> GroupMeans(["store"]).fit(x, data).contribution(data)[:, 0].round(2)
        array([-4.9, -4.9, 4.9, 4.9])

    References:
        - Henderson, C. R. (1975), Best linear unbiased estimation and prediction.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self.groups = groups

    def fit(self, x: FloatArray, data: Data) -> Self:
        """Fits mean, variances and effects to `x`, float64 `(n, p)`, and the groups in `data`."""
        check_groups(self.groups, minimum=1)
        self.vocabulary_ = Levels(data, self.groups)
        designs = []
        self.level_sizes_ = {}
        for name, codes in self.vocabulary_.codes(data).items():
            levels = self.vocabulary_.sizes[name]
            if levels == (codes >= 0).sum():
                raise ValueError(
                    f"The column '{name}' must have a level with at least two rows, because its "
                    "effects cannot be separated from the noise otherwise. "
                    + received(rows=len(codes), levels=levels)
                )
            designs.append(level_design(codes, levels))
            self.level_sizes_[name] = np.asarray(designs[-1].sum(axis=0))
        self.mean_ = x.mean(axis=0)
        self._solve(designs, x - self.mean_)
        return self

    @property
    def levels_(self) -> dict:
        """Keys of the levels of each column, in the order of `effects_`."""
        return self.vocabulary_.keys

    def contribution(self, data: Data) -> FloatArray:
        """Returns the sum of the effects of each row, float64 `(n, p)`, without the mean."""
        total: FloatArray | float = 0.0
        for name, codes in self.vocabulary_.codes(data).items():
            total = total + np.where(codes[:, None] >= 0, self.effects_[name][codes], 0.0)
        return np.asarray(total, np.float64)

    def predict(self, data: Data) -> FloatArray:
        """Returns the mean plus the sum of the effects of each row, float64 `(n, p)`."""
        return self.mean_ + self.contribution(data)

    def contribution_variance(self, data: Data) -> FloatArray:
        """Returns the posterior variance of the contribution, float64 `(n, p)`, in squared units.

            sum over factors of v * noise / (m * v + noise)

        v is the prior variance of an effect and m the number of training rows of its level. An
        unseen key has m = 0, a null key adds nothing. The sum neglects the posterior covariance
        of the effects of different factors.
        """
        total: FloatArray | float = 0.0
        for name, codes in self.vocabulary_.codes(data).items():
            size = np.where(codes >= 0, self.level_sizes_[name][codes], 0.0)[:, None]
            prior, noise = self.effect_variance_[name], self.noise_variance_
            posterior = prior * noise / (size * prior + noise)
            is_level = (codes >= 0) | (codes == UNKNOWN_CODE)
            total = total + np.where(is_level[:, None], posterior, 0.0)
        return np.asarray(total, np.float64)

    def _solve(self, designs: list, centred: FloatArray) -> None:
        """Estimates the variances, then the effects at these variances."""
        variance, noise = variance_components(designs, centred)
        total = np.maximum(np.square(centred).mean(axis=0), np.finfo(np.float64).tiny ** 0.5)
        self.noise_variance_ = np.maximum(noise, NOISE_FLOOR * total)
        floored = np.maximum(variance, EFFECT_FLOOR * total)  # (K, p)
        blocks = [
            EffectBlock(design, 1.0 / own[:, None, None])
            for design, own in zip(designs, floored, strict=True)
        ]
        effects = blup(blocks, centred, self.noise_variance_, tolerance=1e-6)
        names = list(self.levels_)
        self.effect_variance_ = dict(zip(names, variance, strict=True))
        self.effects_ = {name: effect[:, 0] for name, effect in zip(names, effects, strict=True)}


def variance_components(
    designs: Sequence[sparse.csr_array], x: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Estimates the variance of each factor and of the noise, separately for each feature.

        x = mean + sum{ Z_k @ b_k : k=1...K } + e,  Var(b_k) = v_k * I,  Var(e) = v_0 * I
        E[x' M P_j M x] = sum{ v_k * trace(M P_j M Z_k Z_k') : k=0...K },  Z_0 = I

    M = I - 1 1' / n centres, P_k projects on the level means of factor k, and P_0 = I. These are
    K + 1 linear equations for the variances. They hold for crossed and for nested factors and are
    solved by non-negative least squares. With one factor the solution is the ANOVA estimate.

    Args:
        designs: Indicator matrices Z_k `(n, q_k)`, one per factor. Rows may be empty.
        x: Float64 array `(n, p)`.

    Returns:
        The variances of the effects `(K, p)` and of the noise `(p,)`, all at least 0.
    """
    centred = x - x.mean(axis=0)
    totals = np.square(centred).sum(axis=0)  # (p,)
    moments = [totals]
    for design in designs:
        sums, sizes = design.T @ centred, design.sum(axis=0)  # (q, p), (q,)
        moments.append((np.square(sums) / np.maximum(sizes, 1)[:, None]).sum(axis=0))
    matrix = np.array([_traces(projection, designs) for projection in (None, *designs)])
    scale = matrix[:, -1]  # Division by trace(M P_j M) makes a mean square of each equation.
    matrix = matrix / scale[:, None]
    targets = np.stack(moments) / scale[:, None]  # (K + 1, p)
    variances = np.stack([optimize.nnls(matrix, target)[0] for target in targets.T], axis=1)
    return variances[:-1], variances[-1]


def _traces(
    projection: sparse.csr_array | None, designs: Sequence[sparse.csr_array]
) -> list[float]:
    """Returns trace(M P M Z_k Z_k') for each factor, then trace(M P M) for the noise.

    `projection` is the indicator matrix of the factor of P. `None` means P = I. The traces follow
    from M P M = P - (1 a' + a 1') / n + 1 1' * sum(a) / n**2 with a = P 1.
    """
    n = designs[0].shape[0]
    ones = np.ones(n)
    if projection is None:
        image, trace = ones, float(n)
    else:
        sizes = projection.sum(axis=0)  # (q,)
        image, trace = projection @ np.ones(projection.shape[1]), float((sizes > 0).sum())
    mean = image.sum() / n
    traces = []
    for design in designs:
        if projection is None:
            inside = design.sum()
        else:
            counts = (projection.T @ design).multiply(1.0 / np.maximum(sizes, 1)[:, None])
            inside = counts.multiply(projection.T @ design).sum()
        sums, image_sums = design.T @ ones, design.T @ image
        traces.append(float(inside - 2 * sums @ image_sums / n + mean * sums @ sums / n))
    return [*traces, float(trace - 2 * mean + mean)]
