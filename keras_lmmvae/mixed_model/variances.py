"""Variance components from half-samples, also for terms that share rows.

The closed forms for a level take the other terms as known. With several terms they are too
confident, and what one term explains leaks into another. So effects are drawn from the current
variances and fitted with the same equations. What comes back, over what the closed forms expect,
corrects both the variances of the posterior and the moment equations of the variance components.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.mixed_model.equations import Equations, Tables, add_tables
from keras_lmmvae.mixed_model.half_samples import (
    half_sample_covariance,
    half_sample_moment,
    sample_variance,
)
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.mixed_model.prior import EFFECT_VARIANCE_FLOOR
from keras_lmmvae.mixed_model.table_rows import TableRows

__all__ = ["SimulatedFit", "moment_matrix", "solve_moments", "update_variances", "variance_ratios"]

# The prior variance of a term's part of a standardised feature, whose variance is 1, is kept below
# this. Above it, effects have been taken for what they cannot be.
_LARGEST_PRIOR_SHARE = 2.0
# With less than this share of its expectation left, a term cannot be told from the others.
_SMALLEST_RETENTION = 0.05
# In one update a variance grows by the first factor at most, or to the second share of a feature's
# variance, and declines by the third: effects shrunken to almost nothing say little of its size.
_LARGEST_GROWTH = 4.0
_SMALLEST_STEP = 0.01
_LARGEST_DECLINE = 20.0
_SWEEPS = 50


class SimulatedFit:
    """Effects drawn from the priors, fitted with the equations of the rows.

    Args:
        equations: The equations, with the residuals of their last solution.
        by_fold: Whether the folds' tables are fitted, or that of all rows.
        seed: Seed of the draws.
        sources: Numbers of the terms whose effects are not 0; all by default.
        has_noise: Whether noise is added to the values.

    Attributes:
        truth: Term name -> effects that were drawn.
        estimate: Term name -> effects that were fitted.
    """

    def __init__(
        self,
        equations: Equations,
        by_fold: bool,
        seed: int,
        sources: Sequence[int] | None = None,
        has_noise: bool = False,
    ) -> None:
        self.equations, self.by_fold = equations, by_fold
        chosen = range(len(equations.terms)) if sources is None else sources
        self.truth: Tables = {
            term.label: effects.prior.sample(effects.num_levels, 1000 * seed + number)
            * float(number in chosen)
            for number, (term, effects) in enumerate(
                zip(equations.terms, equations.effects, strict=True)
            )
        }
        right_side: Tables = {}
        for number, (rows, residuals) in enumerate(
            zip(equations.chunks, equations.residuals, strict=True)
        ):
            values = equations.fitted(self.truth, rows, by_fold=False)
            values = residuals.precision_product(values)
            if has_noise:
                values += residuals.precision_draws(tf.shape(values)[0], (seed, 7919 + number))
            right_side = add_tables(right_side, equations.scores(values, rows, by_fold))
        zeros = {name: tf.zeros_like(value) for name, value in right_side.items()}
        self.estimate: Tables = equations.solution(by_fold, right_side, zeros).effects

    def squared_errors(self) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], tf.Tensor]:
        """Sums over rows and features of squared errors.

        Returns:
            found: Term name -> of its contribution.
            expected: Term name -> what its posterior variance expects.
            total: Of the sum of all contributions.
        """
        equations = self.equations
        found = {term.label: tf.constant(0.0) for term in equations.terms}
        expected, total = dict(found), tf.constant(0.0)
        for rows in equations.chunks:
            fold = rows.fold if self.by_fold else None
            together: tf.Tensor | float = 0.0
            for term, effects in zip(equations.terms, equations.effects, strict=True):
                encoded = rows.encoded[term.label]
                codes, basis = encoded["codes"], term.basis_of(encoded)
                error = design.product(self.estimate[term.label], codes, basis, fold)
                error -= design.product(self.truth[term.label], codes, basis)
                table = effects.folds if self.by_fold else effects.table
                seen = TableRows(table, effects.prior, codes, basis, fold)
                variance = seen.variance(effects.information)
                found[term.label] += tf.reduce_sum(tf.square(error))
                expected[term.label] += tf.reduce_sum(variance)
                together += error
            total += tf.reduce_sum(tf.square(together))
        return found, expected, total

    def moments(self) -> np.ndarray:
        """How much of one term's simulated variance the half-samples of every term hold.

        With `N_k` the product of the folds' effects of term `k` and `D_k` its factor (see
        `half_sample_moment`), both terms' effects drawn from their priors, the moments are

            E[N_k] = D_k * sum{ moments_kj effect_variance_j : j = 1 ... K }

        A term that stands alone has `moments_kk = 1`.

        Returns:
            Float array `(p, K)`: `moments_kj` of every feature and term `k`, for the source `j`.
        """
        pairs = list(zip(self.equations.terms, self.equations.effects, strict=True))
        # Against the variance of the draws, not the one that they were drawn from: less noise.
        variance = tf.add_n([sample_variance(part, self.truth[term.label]) for term, part in pairs])
        columns = []
        for term, effects in pairs:
            product, factor = half_sample_moment(effects, self.estimate[term.label])
            columns.append(tf.math.divide_no_nan(product, factor * variance))
        return np.asarray(tf.stack(columns, axis=-1))


def variance_ratios(fit: SimulatedFit) -> tuple[float, dict[str, float]]:
    """Posterior variances with the other terms unknown too, over those with them known.

    Returns:
        The ratio for the sum of all contributions, and that of every term.
    """
    found, expected, total = fit.squared_errors()
    ratios = {label: float(found[label] / expected[label]) for label in found}
    return float(total / tf.add_n(list(expected.values()))), ratios


def moment_matrix(equations: Equations, seed: int) -> np.ndarray:
    """The moments of all terms, each fitted as the only source, `(p, K, K)`.

    They are not averaged with earlier ones, which belong to other variances: lagging behind lets
    a small variance slide to 0.
    """
    columns = [
        SimulatedFit(equations, True, seed + number + 1, [number]).moments()
        for number in range(len(equations.terms))
    ]
    return np.stack(columns, axis=-1)


def update_variances(effects: Sequence[LevelEffects], moments: np.ndarray) -> None:
    """Sets every term's `effect_variance` (and `Psi`) to what the half-samples have in common.

    Solves the moment equations for every feature under `effect_variance >= floor`.
    """
    found = [half_sample_moment(part, tf.convert_to_tensor(part.folds.effects)) for part in effects]
    product = np.stack([one[0].numpy() for one in found]).astype(np.float64)  # (K, p)
    factor = np.stack([one[1].numpy() for one in found]).astype(np.float64)
    variance = solve_moments(effects, moments, product, factor)
    for part, values in zip(effects, variance, strict=True):
        covariance = None
        if part.learn_coefficient_covariance:
            covariance = half_sample_covariance(part)
        part.set_prior(values, covariance)


def solve_moments(
    effects: Sequence[LevelEffects], moments: np.ndarray, product: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """Variances `(K, p)` within their bounds that match the moments, one term after the other."""
    moments = moments.astype(np.float64)
    retained = np.maximum(np.einsum("fkk->kf", moments), _SMALLEST_RETENTION)
    leak = np.einsum("fkj->kjf", moments * (1.0 - np.eye(len(effects))))
    # A term with one level tells nothing of a variance: its centred moment is 0 of 0.
    alone = np.divide(product, factor, out=np.zeros_like(product), where=factor > 1e-9)
    variance = np.stack([keras.ops.convert_to_numpy(part.effect_variance) for part in effects])
    variance = variance.astype(np.float64)
    lowest = np.maximum(variance / _LARGEST_DECLINE, EFFECT_VARIANCE_FLOOR)
    reachable = np.maximum(_LARGEST_GROWTH * variance, _SMALLEST_STEP)
    shares = np.array([part.mean_prior_share() for part in effects])
    highest = np.minimum(reachable, _LARGEST_PRIOR_SHARE / shares[:, None])
    for _ in range(_SWEEPS):
        before = variance.copy()
        for number in range(len(effects)):
            estimate = (alone[number] - (leak[number] * variance).sum(axis=0)) / retained[number]
            variance[number] = np.clip(estimate, lowest[number], highest[number])
        if np.array_equal(variance, before):
            break
    return variance
