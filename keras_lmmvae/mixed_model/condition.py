"""Effects of a level given some of its rows, after training and without any update."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_lmmvae import linalg
from keras_lmmvae.linalg import LevelPosterior
from keras_lmmvae.mixed_model.level_effects import LevelEffects

__all__ = ["KnownLevel", "condition", "known_level"]

ROUNDS = 3
"""Rounds of (residuals, effects): the encoder reads rows less their effects."""


class KnownLevel(NamedTuple):
    """What rows seen before say of a level.

    Attributes:
        mean: Float tensor `(1, m, p)`, the posterior mean; 0 for a level never seen.
        gram: Float tensor `(1, p, m, m)`, `Z'Z` by feature; `(1, 1, m, m)` where all are alike;
            0 for a level never seen.
    """

    mean: tf.Tensor
    gram: tf.Tensor


def known_level(effects: LevelEffects, code: int, dtype: tf.DType = tf.float32) -> KnownLevel:
    """What a mixed model knows of a level: nothing but the prior for a negative code."""
    size, width = effects.basis_size, effects.num_features
    if code < 0:
        return KnownLevel(tf.zeros((1, size, width), dtype), tf.zeros((1, 1, size, size), dtype))
    mean, gram = effects.table.effects[code], effects.table.gram[code][None]
    if effects.has_missing_cells:
        gram = gram * effects.table.cell_share[code][:, None, None]
    return KnownLevel(tf.cast(mean, dtype)[None], tf.cast(gram, dtype)[None])


def condition(
    effects: LevelEffects,
    known: KnownLevel,
    basis: tf.Tensor,
    cells: tf.Tensor,
    noise_variance: tf.Tensor,
    residual_of: Callable[[tf.Tensor], tf.Tensor],
) -> LevelPosterior:
    """Posterior of the effects of levels, each given what is known of it and some rows.

        precision[f] = G[f] / noise_variance[f] + inv(Psi) / effect_variance[f]
        G[f] = known G + sum of phi phi' over the rows whose cell f counts

    As in training, a row is read less the effects that the *other* rows say. These follow from
    the leverages of the rows, as in any ridge regression:
    `(fit - leverage * r) / (1 - leverage)`.
    """
    dtype = basis.dtype
    noise = tf.cast(noise_variance, dtype)
    variance = tf.cast(effects.effect_variance, dtype)
    inverse = effects.prior.inverse_block(dtype)
    of_features = tf.matmul(known.gram, tf.linalg.matrix_transpose(known.mean)[..., None])
    earlier = tf.linalg.matrix_transpose(of_features[..., 0])
    earlier += noise * tf.matmul(inverse, known.mean) / variance
    gram = known.gram + tf.einsum("bsf,bsi,bsj->bfij", cells, basis, basis)
    posterior: LevelPosterior
    left_out = tf.matmul(basis, tf.broadcast_to(known.mean, tf.shape(_like(basis, cells))))
    for _ in range(ROUNDS):
        residual = tf.cast(residual_of(left_out), dtype)
        scores = earlier + tf.matmul(basis, cells * residual, transpose_a=True)
        posterior = linalg.level_posterior(gram, scores, noise, variance, inverse)
        fit = tf.matmul(basis, posterior.mean)
        leverage = tf.einsum("bsi,bfij,bsj->bsf", basis, posterior.covariance, basis)
        leverage *= cells / noise
        left_out = (fit - leverage * residual) / tf.maximum(1.0 - leverage, 1e-9)
    return posterior


def _like(basis: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Zeros of the shape of the levels' effects, `(b, m, p)`."""
    return tf.matmul(basis, tf.zeros_like(cells), transpose_a=True)
