"""Small-matrix algebra of the conjugate posterior.

One rotation per level serves all features. With the prior covariance
`effect_variance * Psi` and the Gram matrix `G` of a level, find `R` with

    R' G R = diag(eigenvalues),    R' inv(Psi) R = I

then, for every feature with its own `noise_variance` and `effect_variance`,

    inv(G / noise_variance + inv(Psi) / effect_variance)
        = R diag(1 / (eigenvalues / noise_variance + 1 / effect_variance)) R'
"""

from __future__ import annotations

import tensorflow as tf

__all__ = ["JITTER", "apply_inverse", "posterior_variance", "rotate_gram", "shrinkage"]

# Relative to the mean diagonal: float32 keeps about 7 digits, a Cholesky root loses half.
JITTER = 1e-6


def rotate_gram(gram: tf.Tensor, coefficient_covariance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Diagonalises every level's Gram matrix in the metric of the prior.

    Args:
        gram: Float tensor `(levels, m, m)`, `Z'Z` of each level.
        coefficient_covariance: Float tensor `(m, m)`, the prior shape `Psi`.

    Returns:
        rotation: Float tensor `(levels, m, m)`, `R` above.
        eigenvalues: Float tensor `(levels, m)`, non-negative.
    """
    size = gram.shape[-1]
    if size == 1:
        root = tf.sqrt(coefficient_covariance)
        rotation = tf.broadcast_to(root, tf.shape(gram))
        return rotation, gram[..., 0] * coefficient_covariance[0, 0]
    scale = tf.linalg.trace(coefficient_covariance) / size
    jitter = JITTER * scale * tf.eye(size, dtype=gram.dtype)
    root = tf.linalg.cholesky(coefficient_covariance + jitter)  # (m, m)
    inner = tf.einsum("ai,lab,bj->lij", root, gram, root)  # (levels, m, m)
    eigenvalues, vectors = tf.linalg.eigh(0.5 * (inner + tf.linalg.matrix_transpose(inner)))
    return tf.einsum("ai,lij->laj", root, vectors), tf.maximum(eigenvalues, 0.0)


def posterior_variance(
    eigenvalues: tf.Tensor, noise_variance: tf.Tensor, effect_variance: tf.Tensor
) -> tf.Tensor:
    """Posterior variances of the rotated effects, `(levels, m, p)`.

        variance = 1 / (eigenvalues / noise_variance + 1 / effect_variance)

    Args:
        eigenvalues: Float tensor `(levels, m)` from `rotate_gram`.
        noise_variance: Float tensor `(p,)`, a variance.
        effect_variance: Float tensor `(p,)`, a variance.
    """
    signal = eigenvalues[..., None] * effect_variance
    return noise_variance * effect_variance / (signal + noise_variance)


def shrinkage(
    eigenvalues: tf.Tensor, noise_variance: tf.Tensor, effect_variance: tf.Tensor
) -> tf.Tensor:
    """Share of the rotated least-squares effect that the posterior mean keeps, `(levels, m, p)`.

    shrinkage = eigenvalues * effect_variance / (eigenvalues * effect_variance + noise_variance)
    """
    signal = eigenvalues[..., None] * effect_variance
    return signal / (signal + noise_variance)


def apply_inverse(rotation: tf.Tensor, variance: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Multiplies by the inverse posterior precision: `R diag(variance) R' values`.

    Args:
        rotation: Float tensor `(levels, m, m)`.
        variance: Float tensor `(levels, m, p)` from `posterior_variance`.
        values: Float tensor `(levels, m, p)`.
    """
    if rotation.shape[-1] == 1:
        return rotation**2 * variance * values
    return tf.matmul(rotation, variance * tf.matmul(rotation, values, transpose_a=True))
