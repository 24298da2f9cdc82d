"""Effects of a level given some of its rows, after training and without any update."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_lmmvae import linalg
from keras_lmmvae.linalg import LevelPosterior
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.level_effects import LevelEffects

__all__ = ["KnownLevel", "condition", "known_level"]

ROUNDS = 3
"""Rounds of (values, effects): the encoder reads rows less their effects."""

# Along an axis of less, rows tell nothing.
_SMALLEST_SIGNAL = 1e-12


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
    values_of: Callable[[tf.Tensor], tf.Tensor],
) -> LevelPosterior:
    """Posterior of the effects of levels, each given what is known of it and some rows.

        precision[q] = G[q] * signal[q] + inv(Psi),    along the axes of the term's `Information`
        G[f] = known G + sum of phi phi' over the rows whose cell f counts

    The latents of the rows are integrated out: `values_of` gives `x` less the other terms, linear
    in the latent (see `Targets`). It is asked for anew with the effects that the *other* rows
    say, around which the encoder reads a row. These follow from the leverages of the rows, as in
    any ridge regression: `(fit - leverage * value) / (1 - leverage)`.
    """
    dtype = basis.dtype
    known_of_rows = (effects.effect_variance.value, effects.signal.value, effects.axes.value)
    information = Information(*(tf.cast(value, dtype) for value in known_of_rows))
    inverse = effects.prior.inverse_block(dtype)
    unit = tf.ones_like(information.signal)
    noise = unit / tf.maximum(information.signal, _SMALLEST_SIGNAL)

    def to_axes(values: tf.Tensor) -> tf.Tensor:
        return information.to_axes(values / information.effect_variance)

    gram = known.gram + tf.einsum("bsf,bsi,bsj->bfij", cells, basis, basis)
    gram = _along_axes(gram, information)
    mean = to_axes(known.mean)
    columns = tf.linalg.matrix_transpose(mean)[..., None]  # (1, p, m, 1)
    earlier = tf.matmul(_along_axes(known.gram, information), columns)[..., 0]
    earlier = tf.linalg.matrix_transpose(earlier) + noise * tf.matmul(inverse, mean)
    share = tf.einsum("bsf,fq->bsq", cells, tf.square(information.axes))
    left_out = tf.matmul(basis, tf.broadcast_to(known.mean, tf.shape(_like(basis, cells))))
    for _ in range(ROUNDS):
        values = to_axes(cells * tf.cast(values_of(left_out), dtype))
        scores = earlier + tf.matmul(basis, values, transpose_a=True)
        posterior = linalg.level_posterior(gram, scores, noise, unit, inverse)
        fit = tf.matmul(basis, posterior.mean)
        leverage = tf.einsum("bsi,bqij,bsj->bsq", basis, posterior.covariance, basis)
        leverage *= share / noise
        without = (fit - leverage * values) / tf.maximum(1.0 - leverage, 1e-9)
        left_out = information.from_axes(without)
    covariance = tf.einsum(
        "f,fq,bqij->bfij",
        information.effect_variance,
        tf.square(information.axes),
        posterior.covariance,
    )
    variance = tf.linalg.matrix_transpose(tf.linalg.diag_part(covariance))
    return LevelPosterior(information.from_axes(posterior.mean), variance, covariance)


def _along_axes(gram: tf.Tensor, information: Information) -> tf.Tensor:
    """Gram matrices along the axes, of those by feature, `(b, p, m, m)`."""
    if gram.shape[1] == 1:  # All features are alike, and so are the axes.
        return gram
    return tf.einsum("bfij,fq->bqij", gram, tf.square(information.axes))


def _like(basis: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Zeros of the shape of the levels' effects, `(b, m, p)`."""
    return tf.matmul(basis, tf.zeros_like(cells), transpose_a=True)
