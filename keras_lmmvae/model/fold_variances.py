"""Variance components from the covariance of the folds, for terms that share rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.layers.conjugate_posterior import EFFECT_VARIANCE_FLOOR
from keras_lmmvae.layers.fold_moments import agreed_term_covariance, fold_moments
from keras_lmmvae.model import solver

if TYPE_CHECKING:
    from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = ["CalibrationMoments", "SquaredErrors", "update_variances"]

# The prior variance of a term's part of a standardised feature, whose variance is 1, is kept
# below this: above, effects have been taken for what they cannot be.
_LARGEST_PRIOR_SHARE = 2.0
# Of the expectation of a term alone: with less of it left, a term cannot be told from the others.
_SMALLEST_RETENTION = 0.05
# A variance grows by this factor at most in one update, or to this share of a feature's variance:
# tables shrunken to almost nothing say little of how large it is.
_LARGEST_GROWTH = 4.0
_SMALLEST_STEP = 0.01
_SWEEPS = 50


@dataclass(frozen=True)
class SquaredErrors:
    """Squared errors of fitted simulated effects, summed over rows, `(p,)` by feature.

    Attributes:
        found: Term name -> of its contribution.
        expected: Term name -> what its closed-form posterior variance expects.
        total: Of the contributions' sum.
    """

    found: solver.Effects
    expected: solver.Effects
    total: tf.Tensor


class CalibrationMoments:
    """Collects what simulated effects come back as, and stores the model's corrections.

    With `N_k` the product of the folds' tables of term `k` and `D_k` its factor
    (`layers.fold_moments`), the moments of several terms are

        E[N_k] = retention_k D_k effect_variance_k + sum{ leak_kj effect_variance_j : j != k }

    Args:
        model: The model.
        folds: Whether the folds' tables are calibrated, or the common one.
    """

    def __init__(self, model: LMMVAE, folds: bool) -> None:
        size = len(model.random_effects)
        self.model = model
        self.folds = folds
        self._found = np.zeros((size, size))
        self._expected = np.zeros((size, size))
        self._errors = np.zeros((2, size))
        self._total = 0.0

    def add(self, assignment: np.ndarray, estimate: solver.Effects, errors: SquaredErrors) -> None:
        """Takes in one simulation.

        Args:
            assignment: Int array `(p,)`: the feature's only term, or the number of terms.
            estimate: Fitted effects.
            errors: Their squared errors.
        """
        terms = self.model.random_effects
        has_all = assignment == len(terms)
        self._total += float(errors.total.numpy()[has_all].sum())
        for number, term in enumerate(terms):
            self._errors[0, number] += errors.found[term.label].numpy()[has_all].sum()
            self._errors[1, number] += errors.expected[term.label].numpy()[has_all].sum()
        if not self.folds:
            return
        noise = self.model.effects_noise_variance()
        for number, term in enumerate(terms):
            product, factor = fold_moments(term.posterior, estimate[term.label], noise)
            for source, other in enumerate(terms):
                variance = other.posterior.effect_variance.numpy().astype(np.float64)
                weight = variance * (factor.numpy() if source == number else 1.0)
                only = assignment == source
                self._found[number, source] += product.numpy()[only].sum()
                self._expected[number, source] += weight[only].sum()

    def finish(self) -> None:
        """Stores the corrections in the model and its terms."""
        inflation = keras.ops.convert_to_numpy(self.model.inflation).copy()
        inflation[0 if self.folds else 1] = self._total / self._errors[1].sum()
        self.model.inflation.assign(inflation)
        if self.folds:
            self.model.moment_matrix.assign(self._found / np.maximum(self._expected, 1e-30))
            return
        for term, ratio in zip(
            self.model.random_effects, self._errors[0] / self._errors[1], strict=True
        ):
            term.posterior.variance_inflation.assign(ratio)


def update_variances(model: LMMVAE) -> None:
    """Sets every term's `effect_variance` (and `Psi`) to what the folds' tables agree on.

    Solves the moment equations of `CalibrationMoments` for every feature under
    `effect_variance >= floor`. The noise of the folds is independent and drops out.
    """
    noise = model.effects_noise_variance()
    posteriors = [term.posterior for term in model.random_effects]
    moments = [
        fold_moments(posterior, tf.convert_to_tensor(posterior.fold_effects), noise)
        for posterior in posteriors
    ]
    product = np.stack([moment[0].numpy() for moment in moments]).astype(np.float64)  # (K, p)
    factor = np.stack([moment[1].numpy() for moment in moments]).astype(np.float64)
    variance = _solve_moments(model, product, factor)
    for posterior, values in zip(posteriors, variance, strict=True):
        covariance = None
        if posterior.learn_term_covariance:
            covariance = agreed_term_covariance(posterior, noise)
        posterior.set_prior(values, covariance, noise)


def _solve_moments(model: LMMVAE, product: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Variances `(K, p)` within their bounds that match the moments, one term after the other."""
    posteriors = [term.posterior for term in model.random_effects]
    matrix = keras.ops.convert_to_numpy(model.moment_matrix).astype(np.float64)
    retained = np.maximum(np.diag(matrix), _SMALLEST_RETENTION)[:, None] * factor
    leak = matrix - np.diag(np.diag(matrix))
    variance = np.stack([posterior.effect_variance.numpy() for posterior in posteriors])
    variance = variance.astype(np.float64)
    reachable = np.maximum(_LARGEST_GROWTH * variance, _SMALLEST_STEP)
    for _ in range(_SWEEPS):
        for number, posterior in enumerate(posteriors):
            own = product[number] - leak[number] @ variance
            highest = _LARGEST_PRIOR_SHARE / posterior.mean_prior_share()
            estimate = own / np.maximum(retained[number], 1e-30)
            variance[number] = np.clip(
                estimate, EFFECT_VARIANCE_FLOOR, np.minimum(reachable[number], highest)
            )
    return variance
