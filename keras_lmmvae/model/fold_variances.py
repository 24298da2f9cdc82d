"""Variance components from the covariance of the folds, for terms that share rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.layers.conjugate_posterior import EFFECT_VARIANCE_FLOOR
from keras_lmmvae.layers.fold_moments import (
    agreed_coefficient_covariance,
    drawn_variance,
    fold_moments,
)
from keras_lmmvae.model import solver

if TYPE_CHECKING:
    from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = [
    "SquaredErrors",
    "calibrate_inflation",
    "retained_moments",
    "update_variances",
]

# The prior variance of a term's part of a standardised feature, whose variance is 1, is kept
# below this: above, effects have been taken for what they cannot be.
_LARGEST_PRIOR_SHARE = 2.0
# Of the expectation of a term alone: with less of it left, a term cannot be told from the others.
_SMALLEST_RETENTION = 0.05
# In one update a variance grows by this factor at most, or to this share of a feature's variance,
# and declines by that: tables shrunken to almost nothing say little of how large it is.
_LARGEST_GROWTH = 4.0
_SMALLEST_STEP = 0.01
_LARGEST_DECLINE = 20.0
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


def calibrate_inflation(model: LMMVAE, errors: SquaredErrors, folds: bool) -> None:
    """Stores by how much the effects' variances exceed those of terms that stand alone.

    Args:
        model: The model.
        errors: Of simulated effects of all terms, fitted jointly.
        folds: Whether the folds' tables were fitted, or the common one.
    """
    expected = tf.add_n(list(errors.expected.values()))
    inflation = keras.ops.convert_to_numpy(model.inflation).copy()
    inflation[0 if folds else 1] = tf.reduce_sum(errors.total) / tf.reduce_sum(expected)
    model.inflation.assign(inflation)
    if folds:
        return
    for term in model.random_effects:
        found = tf.reduce_sum(errors.found[term.label])
        term.posterior.variance_inflation.assign(found / tf.reduce_sum(errors.expected[term.label]))


def retained_moments(model: LMMVAE, truth: solver.Effects, estimate: solver.Effects) -> np.ndarray:
    """How much of one term's simulated variance the folds of every term agree on.

    With `N_k` the product of the folds' tables of term `k` and `D_k` its factor (see
    `layers.fold_moments`), both terms' effects drawn from their priors, the moments are

        E[N_k] = D_k * sum{ moments_kj effect_variance_j : j = 1 ... K }

    A term that stands alone has `moments_kk = 1`.

    Args:
        model: The model.
        truth: Simulated effects, of one term `j` only.
        estimate: Effects of all terms fitted to them.

    Returns:
        Float array `(p, K)`: `moments_kj` of every feature and term `k`.
    """
    noise = model.effects_noise_variance()
    # Against the variance that was drawn, not the one that was drawn from: less noise.
    drawn = [drawn_variance(term.posterior, truth[term.label]) for term in model.random_effects]
    variance = tf.add_n(drawn)
    columns = []
    for term in model.random_effects:
        product, factor = fold_moments(term.posterior, estimate[term.label], noise)
        columns.append(tf.math.divide_no_nan(product, factor * variance))
    return tf.stack(columns, axis=-1).numpy()


def update_variances(model: LMMVAE) -> None:
    """Sets every term's `effect_variance` (and `Psi`) to what the folds' tables agree on.

    Solves the moment equations of `retained_moments` for every feature under
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
        if posterior.learn_coefficient_covariance:
            covariance = agreed_coefficient_covariance(posterior, noise)
        posterior.set_prior(values, covariance, noise)


def _solve_moments(model: LMMVAE, product: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Variances `(K, p)` within their bounds that match the moments, one term after the other."""
    posteriors = [term.posterior for term in model.random_effects]
    moments = keras.ops.convert_to_numpy(model.moment_matrix).astype(np.float64)  # (p, K, K)
    retained = np.maximum(np.einsum("fkk->kf", moments), _SMALLEST_RETENTION)
    leak = np.einsum("fkj->kjf", moments * (1.0 - np.eye(len(posteriors))))
    # A term with one level tells nothing of a variance: its centred moment is 0 of 0.
    alone = np.divide(product, factor, out=np.zeros_like(product), where=factor > 1e-9)
    variance = np.stack([posterior.effect_variance.numpy() for posterior in posteriors])
    variance = variance.astype(np.float64)
    lowest = np.maximum(variance / _LARGEST_DECLINE, EFFECT_VARIANCE_FLOOR)
    reachable = np.maximum(_LARGEST_GROWTH * variance, _SMALLEST_STEP)
    for _ in range(_SWEEPS):
        for number, posterior in enumerate(posteriors):
            highest = _LARGEST_PRIOR_SHARE / posterior.mean_prior_share()
            estimate = (alone[number] - (leak[number] * variance).sum(axis=0)) / retained[number]
            variance[number] = np.clip(
                estimate, lowest[number], np.minimum(reachable[number], highest)
            )
    return variance
