"""Confidence limits of variances that are estimated from products of the folds' effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["FoldMoments", "limits_of_variance", "mixed"]

Array = npt.NDArray[np.float64]

# Bisections of a limit, on the log scale: from 26 powers of ten to less than float32 can tell.
_BISECTIONS = 64
_SMALLEST_SHARE, _LARGEST_SHARE = 1e-14, 1e12


@dataclass(frozen=True)
class FoldMoments:
    """Sums over the units of a term that say how its moment equation scatters, `(p,)` each.

    A unit is a direction in which the effects of one level vary: the level itself for an
    intercept. Its two half samples give `y_a = b + e_a`, `a = 1, 2`, with `b` of variance `c`
    and independent `e_a` of variances `r_a`. A unit is weighted by `w`, the product of what the
    two halves keep of it. The moment

        T = sum{ w * y_1 * y_2 } / sum{ w }

    has the cumulants, of a sum of products of normal variables,

        c,    sum{ w**2 * (c**2 + (c + r_1) * (c + r_2)) } / sum{ w }**2,
        sum{ w**3 * (2 * c**3 + 6 * c * (c + r_1) * (c + r_2)) } / sum{ w }**3

    The features' means are estimated from the same rows, which takes one unit's worth of them;
    a centred moment makes up for that, and its expectation is `c`.

    Attributes:
        w1: Sum of `w`.
        w2: Sum of `w**2`.
        w3: Sum of `w**3`.
        w2_sum: Sum of `w**2 * (r_1 + r_2)`.
        w2_product: Sum of `w**2 * r_1 * r_2`.
        w3_sum: Sum of `w**3 * (r_1 + r_2)`.
        w3_product: Sum of `w**3 * r_1 * r_2`.
    """

    w1: Array
    w2: Array
    w3: Array
    w2_sum: Array
    w2_product: Array
    w3_sum: Array
    w3_product: Array

    @classmethod
    def of_units(cls, kept: Sequence[Array], variance: Array, noise_ratio: float) -> FoldMoments:
        """Sums over some units."""
        first, second = kept
        w = first * second
        scale = variance * noise_ratio
        # w * r_a = (1 - kept_a) * scale * (the other's kept): finite where a half has no rows.
        w2_sum = w * scale * (second * (1.0 - first) + first * (1.0 - second))
        w2_product = w * scale**2 * (1.0 - first) * (1.0 - second)
        parts = (w, w**2, w**3, w2_sum, w2_product, w * w2_sum, w * w2_product)
        return cls(*(part.sum(axis=0) for part in parts))

    @classmethod
    def total(cls, parts: Sequence[FoldMoments]) -> FoldMoments:
        """Sums over the units of all parts."""
        return cls(*(np.sum(values, axis=0) for values in zip(*map(astuple, parts), strict=True)))

    def cumulants(self, c: Array, is_centred: bool = False) -> Array:
        """First three cumulants of the moment where units have variance `c`, `(3, p)`."""
        w1 = np.maximum(self.w1, 1e-300)
        second = 2.0 * c**2 * self.w2 + c * self.w2_sum + self.w2_product
        third = 8.0 * c**3 * self.w3 + 6.0 * c**2 * self.w3_sum + 6.0 * c * self.w3_product
        left = 1.0 - np.minimum(self.w2 / w1**2, 1.0)
        moment = np.stack([c, second / w1**2, third / w1**3]) * left
        return (
            moment / np.maximum(left, 1e-12) ** np.arange(1, 4)[:, None] if is_centred else moment
        )


def mixed(of_term: FoldMoments, of_coefficient: FoldMoments, share: float, c: Array) -> Array:
    """Cumulants of the variance of one coefficient, `(3, p)`, as `FoldMoments.cumulants`.

    A coefficient's variance is a feature's `effect_variance`, which all coefficients tell of,
    times an entry of `Psi`, which all features do. With one feature only the coefficient's own
    moment is left, with many the entry is known.
    """
    return (1.0 - share) * of_term.cumulants(c) + share * of_coefficient.cumulants(c)


def limits_of_variance(
    cumulants: Callable[[Array], Array], estimate: Array, level: float
) -> tuple[Array, Array]:
    """Variances at which the estimate would be neither too large nor too small.

    The limits are those true variances at which an estimate beyond the one found has
    probability `(1 - level) / 2`; its distribution is a gamma distribution shifted and scaled
    (Pearson's type III) to its first three cumulants. With many rows a level this is the
    chi-square interval; with few, where an estimate can be near 0 by chance, the lower limit
    can be 0 and the upper limit stays finite.

    Returns:
        lower: Float array `(p,)`, at least 0 and at most the estimate.
        upper: Float array `(p,)`, at least the estimate.

    Example:
        >>> one = np.ones((20, 1))  # 20 units that are known exactly: a chi-square interval
        >>> moments = FoldMoments.of_units((one, one), np.ones(1), 1.0)
        >>> lower, upper = limits_of_variance(moments.cumulants, np.ones(1), 0.9)
        >>> np.round([lower[0], upper[0]], 2), np.round(20 / stats.chi2.ppf([0.95, 0.05], 19), 2)
        (array([0.66, 1.98]), array([0.66, 1.98]))

    References:
        - Satterthwaite, F. E. (1946), An approximate distribution of estimates of variance
          components, whose chi-square has two cumulants.
        - Pearson, E. S. (1959), Note on an approximation to the distribution of non-central
          chi-square, for three.
    """
    tail = (1.0 - level) / 2.0

    def below(variance: Array) -> Array:
        """Probability of an estimate as small as the one found."""
        mean, second, third = cumulants(variance)
        deviation = np.sqrt(np.maximum(second, 1e-300))
        return np.asarray(stats.pearson3.cdf((estimate - mean) / deviation, third / deviation**3))

    lower = _crossing(below, 1.0 - tail, estimate)
    upper = _crossing(below, tail, estimate)
    is_zero = below(_SMALLEST_SHARE * estimate) < 1.0 - tail
    return np.where(is_zero, 0.0, np.minimum(lower, estimate)), np.maximum(upper, estimate)


def _crossing(below: Callable[[Array], Array], probability: float, estimate: Array) -> Array:
    """The variance at which `below`, which falls with it, takes the value, by bisection."""
    low = np.log(_SMALLEST_SHARE * estimate)
    high = np.log(_LARGEST_SHARE * estimate)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        is_above = below(np.exp(middle)) > probability
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    return np.asarray(np.exp(high), np.float64)
