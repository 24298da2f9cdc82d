"""Moments of two half-samples: what the folds' effects have in common identifies the prior.

With `B_1` and `B_2` the effects that the folds give and `A_a` the shrinkage of fold `a`,

    E[B_1 B_2'] = A_1 (effect_variance * Psi) A_2'

because the noise of the folds is independent and drops out. Intercepts count from the mean over
the levels, which takes one level's worth. What all levels share belongs to the features' mean,
however the other terms and the networks place it, and says nothing of how levels differ.
"""

import tensorflow as tf

from keras_lmmvae import linalg
from keras_lmmvae.mixed_model.level_effects import LevelEffects

__all__ = ["half_sample_covariance", "half_sample_moment", "is_centred", "sample_variance"]

# Levels handled at once, so that memory stays bounded.
_CHUNK = 100_000
_COVARIANCE_CHUNK = 10_000
# Eigenvalues of a learned Psi are kept above this share of the largest.
_COVARIANCE_FLOOR = 1e-4


def is_centred(effects: LevelEffects) -> bool:
    """Whether the moments of a term leave out what all its levels share: those of intercepts."""
    return effects.basis_size == 1


def half_sample_moment(
    effects: LevelEffects, fold_effects: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The product of the folds' effects, `sum over levels of tr(inv(Psi) B_1 B_2')`.

    Returns:
        product: Float tensor `(p,)`.
        factor: Float tensor `(p,)`. `factor * effect_variance` is the expectation of the product
            if the term stands alone.
    """
    product = factor = tf.zeros(effects.num_features)
    for start in range(0, effects.num_levels, _CHUNK):
        levels = slice(start, min(start + _CHUNK, effects.num_levels))
        part = _moment(effects, fold_effects[:, levels], levels)
        product, factor = product + part[0], factor + part[1]
    if is_centred(effects):
        levels_count = float(effects.num_levels)
        first, second = tf.unstack(tf.reduce_mean(fold_effects, axis=(1, 2)))
        product -= levels_count * first * second / effects.coefficient_covariance[0, 0]
        factor *= 1.0 - 1.0 / levels_count
    return product, factor


def _moment(
    effects: LevelEffects, fold_effects: tf.Tensor, levels: slice
) -> tuple[tf.Tensor, tf.Tensor]:
    """Product and factor of some levels."""
    information = effects.information
    shares = effects.folds.kept(levels, information)  # (l, m, p) each
    first, second = tf.unstack(fold_effects)
    if effects.basis_size == 1:
        product = tf.reduce_sum(first * second, axis=(0, 1))
        factor = tf.reduce_sum(shares[0] * shares[1], axis=(0, 1))
        factor = information.of_features(factor[None])[0]
        return product / effects.coefficient_covariance[0, 0], factor
    metric = effects.folds.rotation[1, levels]
    if effects.learn_coefficient_covariance:
        inverse = effects.prior.inverse_block()
        second, metric = tf.matmul(inverse, second), tf.matmul(inverse, metric)
    # Squared cosines between the axes in which the two folds are diagonal.
    angle = tf.square(tf.matmul(effects.folds.rotation[0, levels], metric, transpose_a=True))
    factor = tf.reduce_sum(shares[0] * tf.matmul(angle, shares[1]), axis=(0, 1))
    factor = information.of_features(factor[None])[0]
    return tf.reduce_sum(first * second, axis=(0, 1)), factor


def half_sample_covariance(effects: LevelEffects) -> tf.Tensor | None:
    """Solves `sum B_1 B_2' = sum effect_variance A_1 Psi A_2'` for one `Psi` of all features.

    Returns:
        Float tensor `(m, m)`, positive definite with trace `m`; `None` if the folds have nothing
        in common, so that there is nothing to learn `Psi` from.
    """
    size = effects.basis_size
    levels = slice(0, min(_COVARIANCE_CHUNK, effects.num_levels))
    inverse = effects.prior.inverse_block()
    information = effects.information
    kept = effects.folds.kept(levels, information)
    matrices = []
    for fold, share in enumerate(kept):
        rotation = effects.folds.rotation[fold, levels]
        back = tf.matmul(rotation, inverse, transpose_a=True)
        matrices.append(tf.einsum("lik,lkf,lkj->lfij", rotation, share, back))
    along = information.from_axes(tf.eye(effects.num_features))  # axes in rows
    weights = tf.reduce_sum(tf.square(along), axis=1)  # of the axes, in the features' units
    normal = tf.einsum("f,lfab,lfcd->acbd", weights, *matrices)
    normal = tf.reshape(normal, (size * size, size * size))
    first, second = tf.unstack(effects.folds.effects[:, levels])
    moment = tf.reshape(tf.einsum("laf,lcf->ac", first, second), (-1, 1))
    ridge = linalg.JITTER * tf.linalg.trace(normal) / size**2 * tf.eye(size * size)
    current = tf.reshape(tf.convert_to_tensor(effects.coefficient_covariance), (-1, 1))
    solution = tf.linalg.solve(normal + ridge, moment + tf.matmul(ridge, current))
    solution = tf.reshape(solution, (size, size))
    values, vectors = tf.linalg.eigh(0.5 * (solution + tf.transpose(solution)))
    if not bool(tf.reduce_all(tf.math.is_finite(values))) or float(values[-1]) <= 0.0:
        return None
    values = tf.maximum(values, _COVARIANCE_FLOOR * values[-1])
    covariance = tf.matmul(vectors * values, vectors, transpose_b=True)
    return covariance * (size / tf.linalg.trace(covariance))


def sample_variance(effects: LevelEffects, drawn: tf.Tensor) -> tf.Tensor:
    """The `effect_variance` of drawn effects `(L, m, p)`: mean of `tr(inv(Psi) B B') / m`."""
    if is_centred(effects):
        squares = tf.square(drawn - tf.reduce_mean(drawn, axis=0))
        return tf.reduce_sum(squares, axis=(0, 1)) / max(drawn.shape[0] - 1, 1)
    weighted = drawn
    if effects.learn_coefficient_covariance:
        weighted = tf.matmul(effects.prior.inverse_block(), drawn)
    return tf.reduce_mean(drawn * weighted, axis=(0, 1))
