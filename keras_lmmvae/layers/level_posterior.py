"""Posterior of the effects of many levels at known variances."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

__all__ = ["LevelPosterior", "level_posterior"]


class LevelPosterior(NamedTuple):
    """Normal posterior of every level's effects.

    Attributes:
        mean: Float tensor `(levels, m, p)`, the BLUP.
        variance: Float tensor `(levels, m, p)`, the diagonals of the covariances.
        covariance: Float tensor `(levels, p, m, m)`; `(levels, 1, m, m)` where all features
            share their variances, and so their covariance.
    """

    mean: tf.Tensor
    variance: tf.Tensor
    covariance: tf.Tensor


def level_posterior(
    gram: tf.Tensor, scores: tf.Tensor, noise_variance: tf.Tensor, effect_variance: tf.Tensor
) -> LevelPosterior:
    """Posterior at known variances, with independent effects a priori.

        precision[l, f] = gram[l] / noise_variance[f] + I / effect_variance[f]
        mean[l, :, f] = inv(precision[l, f]) @ scores[l, :, f] / noise_variance[f]

    By Cholesky roots, whose gradient with respect to `gram` exists everywhere (that of an
    eigen-decomposition does not where eigenvalues coincide, as those of empty levels do).

    Args:
        gram: Float tensor `(levels, m, m)`, `Z'Z` by level.
        scores: Float tensor `(levels, m, p)`, `Z'R`.
        noise_variance: Float tensor `(p,)` or `(1,)`.
        effect_variance: Float tensor `(p,)` or `(1,)`.
    """
    size = scores.shape[1]
    identity = tf.eye(size, dtype=gram.dtype)
    noise, effect = noise_variance[:, None, None], effect_variance[:, None, None]
    # Times the effect variance, so that nothing overflows where it is tiny.
    relative = gram[:, None] * (effect / noise) + identity  # (levels, p or 1, m, m)
    if size == 1:
        covariance = effect / relative
    else:
        root = tf.linalg.cholesky(relative)
        inverse = tf.linalg.cholesky_solve(root, tf.broadcast_to(identity, tf.shape(relative)))
        covariance = effect * inverse
    weights = covariance / noise
    if weights.shape[1] == 1:
        mean = tf.matmul(weights[:, 0], scores)
    else:
        mean = tf.einsum("lfij,ljf->lif", weights, scores)
    variance = tf.linalg.matrix_transpose(tf.linalg.diag_part(covariance))  # (levels, m, p or 1)
    return LevelPosterior(mean, tf.broadcast_to(variance, tf.shape(mean)), covariance)
