"""What the two folds of a term agree on: moments that identify its prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from keras_lmmvae import linalg

if TYPE_CHECKING:
    from keras_lmmvae.layers.conjugate_posterior import ConjugatePosterior

__all__ = [
    "agreed_coefficient_covariance",
    "drawn_variance",
    "fold_moments",
    "is_centred",
    "sample_prior",
]

# Levels handled at once, so that memory stays bounded.
_CHUNK = 100_000
_COVARIANCE_CHUNK = 10_000
# Eigenvalues of a learned term covariance are kept above this share of the largest.
_COVARIANCE_FLOOR = 1e-4


def fold_moments(
    posterior: ConjugatePosterior, fold_effects: tf.Tensor, noise_variance: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The folds' product `sum over levels of tr(inv(Psi) B_1 B_2')` and its factor.

    With `A_a` the shrinkage of fold `a`, `E[B_1 B_2'] = A_1 (effect_variance * Psi) A_2'`: the
    noise of the folds is independent and drops out.

    Intercepts count from the mean over the levels, which takes one level's worth: what all
    levels share belongs to the features' mean, however the other terms and the networks place
    it, and says nothing of how levels differ.

    Args:
        posterior: The term's posterior.
        fold_effects: Float tensor `(2 L, m, p)`, tables of the folds.
        noise_variance: Float tensor `(p,)`.

    Returns:
        product: Float tensor `(p,)`.
        factor: Float tensor `(p,)`; `factor * effect_variance` is what the product is expected
            to be when the term stands alone.
    """
    product = factor = tf.zeros(posterior.num_features)
    for start in range(0, posterior.num_levels, _CHUNK):
        part = _moments(posterior, fold_effects, start, start + _CHUNK, noise_variance)
        product, factor = product + part[0], factor + part[1]
    if is_centred(posterior):
        levels = float(posterior.num_levels)
        first, second = (tf.reduce_mean(part, axis=(0, 1)) for part in tf.split(fold_effects, 2))
        product -= levels * first * second / posterior.coefficient_covariance[0, 0]
        factor *= 1.0 - 1.0 / levels
    return product, factor


def is_centred(posterior: ConjugatePosterior) -> bool:
    """Whether the moments of a term leave out what all its levels share: those of intercepts."""
    return posterior.basis_size == 1


def _fold_slices(posterior: ConjugatePosterior, start: int, stop: int) -> tuple[slice, slice]:
    levels = posterior.num_levels
    stop = min(stop, levels)
    return slice(start, stop), slice(levels + start, levels + stop)


def _moments(
    posterior: ConjugatePosterior,
    fold_effects: tf.Tensor,
    start: int,
    stop: int,
    noise_variance: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    slices = _fold_slices(posterior, start, stop)
    kept = [
        linalg.shrinkage(posterior.fold_eigenvalues[s], noise_variance, posterior.effect_variance)
        for s in slices
    ]  # (l, m, p) each
    first, second = (fold_effects[s] for s in slices)
    if posterior.basis_size == 1:
        product = (
            tf.reduce_sum(first * second, axis=(0, 1)) / posterior.coefficient_covariance[0, 0]
        )
        return product, tf.reduce_sum(kept[0] * kept[1], axis=(0, 1))
    metric = posterior.fold_rotation[slices[1]]
    if posterior.learn_coefficient_covariance:
        inverse = posterior.inverse_coefficient_covariance()
        second = tf.einsum("ij,ljf->lif", inverse, second)
        metric = tf.einsum("ij,ljk->lik", inverse, metric)
    # Squared cosines between the axes in which the two folds are diagonal.
    angle = tf.square(tf.matmul(posterior.fold_rotation[slices[0]], metric, transpose_a=True))
    factor = tf.reduce_sum(kept[0] * tf.matmul(angle, kept[1]), axis=(0, 1))
    return tf.reduce_sum(first * second, axis=(0, 1)), factor


def agreed_coefficient_covariance(
    posterior: ConjugatePosterior, noise_variance: tf.Tensor
) -> tf.Tensor | None:
    """Solves `sum B_1 B_2' = sum effect_variance A_1 Psi A_2'` for one `Psi` of all features.

    Args:
        posterior: The term's posterior.
        noise_variance: Float tensor `(p,)`.

    Returns:
        Float tensor `(m, m)`, positive definite with trace `m`; `None` if the folds agree on
        nothing, so that the shape cannot be told.
    """
    slices = _fold_slices(posterior, 0, _COVARIANCE_CHUNK)
    inverse = posterior.inverse_coefficient_covariance()
    shrinkages = []
    for part in slices:
        kept = linalg.shrinkage(
            posterior.fold_eigenvalues[part], noise_variance, posterior.effect_variance
        )
        rotation = posterior.fold_rotation[part]
        inverse_rotation = tf.einsum("lki,kj->lij", rotation, inverse)
        shrinkages.append(tf.einsum("lik,lkf,lkj->lfij", rotation, kept, inverse_rotation))
    size = posterior.basis_size
    normal = tf.einsum("f,lfab,lfcd->acbd", posterior.effect_variance, *shrinkages)
    normal = tf.reshape(normal, (size * size, size * size))
    first, second = (posterior.fold_effects[part] for part in slices)
    moment = tf.reshape(tf.einsum("laf,lcf->ac", first, second), (-1, 1))
    ridge = linalg.JITTER * tf.linalg.trace(normal) / size**2 * tf.eye(size * size)
    current = tf.reshape(tf.convert_to_tensor(posterior.coefficient_covariance), (-1, 1))
    solution = tf.linalg.solve(normal + ridge, moment + tf.matmul(ridge, current))
    solution = tf.reshape(solution, (size, size))
    values, vectors = tf.linalg.eigh(0.5 * (solution + tf.transpose(solution)))
    if not bool(tf.reduce_all(tf.math.is_finite(values))) or float(values[-1]) <= 0.0:
        return None
    values = tf.maximum(values, _COVARIANCE_FLOOR * values[-1])
    covariance = tf.matmul(vectors * values, vectors, transpose_b=True)
    return covariance * (size / tf.linalg.trace(covariance))


def sample_prior(posterior: ConjugatePosterior, seed: int) -> tf.Tensor:
    """Draws a table of effects from the prior, `(levels, m, p)`."""
    shape = (posterior.num_levels, posterior.basis_size, posterior.num_features)
    deviation = tf.sqrt(tf.convert_to_tensor(posterior.effect_variance))
    draws = tf.random.stateless_normal(shape, (seed, 0)) * deviation
    if not posterior.learn_coefficient_covariance:
        return draws
    values, vectors = tf.linalg.eigh(tf.convert_to_tensor(posterior.coefficient_covariance))
    root = vectors * tf.sqrt(tf.maximum(values, 0.0))
    return tf.einsum("ij,ljf->lif", root, draws)


def drawn_variance(posterior: ConjugatePosterior, effects: tf.Tensor) -> tf.Tensor:
    """The `effect_variance` of a draw, `(p,)`: the average level's `tr(inv(Psi) B B') / m`.

    Intercepts count from their mean, as in `fold_moments`.
    """
    if is_centred(posterior):
        levels = effects.shape[0]
        squares = tf.square(effects - tf.reduce_mean(effects, axis=0))
        return tf.reduce_sum(squares, axis=(0, 1)) / max(levels - 1, 1)
    weighted = effects
    if posterior.learn_coefficient_covariance:
        weighted = tf.einsum("ij,ljf->lif", posterior.inverse_coefficient_covariance(), effects)
    return tf.reduce_mean(effects * weighted, axis=(0, 1))
