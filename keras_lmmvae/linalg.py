"""The algebra of one level's posterior: Henderson's equations for a block of Z'Z.

With the prior covariance `effect_variance * Psi`, the Gram matrix `G = Z'Z` of a level and its
score `s = Z'r`, a feature's effects have the posterior

    precision = G / noise_variance + inv(Psi) / effect_variance
    mean = inv(precision) @ s / noise_variance,    covariance = inv(precision)

There are two ways to it. `level_posterior` takes Cholesky roots: it has a gradient, and allows a
Gram matrix for each feature. `rotate_gram` diagonalises all features of a level at once, and pays
where the same Gram matrices are used again and again. It finds `R` with

    R' G R = diag(eigenvalues),    R' inv(Psi) R = I

so that `inv(precision) = R diag(variance) R'` for every feature, see `Information`.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import tensorflow as tf
from threadpoolctl import threadpool_limits

__all__ = [
    "JITTER",
    "LevelPosterior",
    "apply_inverse",
    "eigh",
    "inverse_psi",
    "least_squares",
    "level_posterior",
    "rotate_gram",
]

JITTER = 1e-6
"""Added to diagonals before a Cholesky root, as a share of their mean. Float32 keeps about seven
digits, and a Cholesky root loses half of them."""


class LevelPosterior(NamedTuple):
    """Normal posterior of every level's effects.

    Attributes:
        mean: Float tensor `(levels, m, p)`, the BLUP.
        variance: Float tensor `(levels, m, p)`, the diagonals of the covariances.
        covariance: Float tensor `(levels, p, m, m)`. It is `(levels, 1, m, m)` where all features
            share their variances, and so their covariance.
    """

    mean: tf.Tensor
    variance: tf.Tensor
    covariance: tf.Tensor


def inverse_psi(psi: tf.Tensor) -> tf.Tensor:
    """`inv(Psi)`, `(m, m)`, with the jitter that keeps it finite."""
    identity = tf.eye(psi.shape[0], dtype=psi.dtype)
    scale = tf.linalg.trace(psi) / psi.shape[0]
    return tf.linalg.cholesky_solve(tf.linalg.cholesky(psi + JITTER * scale * identity), identity)


def level_posterior(
    gram: tf.Tensor,
    scores: tf.Tensor,
    noise_variance: tf.Tensor,
    effect_variance: tf.Tensor,
    inverse_prior: tf.Tensor | None = None,
) -> LevelPosterior:
    """Posterior of many levels at known variances, by Cholesky roots.

    The gradient with respect to `gram` exists everywhere. That of an eigen-decomposition does
    not where eigenvalues coincide, as those of levels without rows do. With `m = 1` there are
    only sums and quotients, which every runtime has.

    Args:
        gram: Float tensor `(levels, m, m)`, `Z'Z` by level; or `(levels, p, m, m)`, where the
            cells of the features differ.
        scores: Float tensor `(levels, m, p)`, `Z'R`.
        noise_variance: Float tensor `(p,)` or `(1,)`, a variance.
        effect_variance: Float tensor `(p,)` or `(1,)`, a variance.
        inverse_prior: Optional float tensor `(m, m)`, `inv(Psi)`. Defaults to the identity.
    """
    size = scores.shape[1]
    noise, effect = noise_variance[:, None, None], effect_variance[:, None, None]
    inner = tf.eye(size, dtype=gram.dtype) if inverse_prior is None else inverse_prior
    by_feature = gram if len(gram.shape) == 4 else gram[:, None]
    # The precision times the effect variance: nothing overflows where that is tiny.
    relative = by_feature * (effect / noise) + inner  # (levels, p or 1, m, m)
    if size == 1:
        covariance = effect / relative
    else:
        root = tf.linalg.cholesky(relative)
        identity = tf.broadcast_to(tf.eye(size, dtype=gram.dtype), tf.shape(relative))
        covariance = effect * tf.linalg.cholesky_solve(root, identity)
    weights = covariance / noise
    if size == 1:
        mean = weights[:, None, :, 0, 0] * scores
    elif weights.shape[1] == 1:
        mean = tf.matmul(weights[:, 0], scores)
    else:
        mean = tf.einsum("lfij,ljf->lif", weights, scores)
    variance = tf.linalg.matrix_transpose(tf.linalg.diag_part(covariance))  # (levels, m, p or 1)
    return LevelPosterior(mean, tf.broadcast_to(variance, tf.shape(mean)), covariance)


def rotate_gram(gram: tf.Tensor, psi: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Diagonalises every level's Gram matrix in the metric of the prior.

    Args:
        gram: Float tensor `(..., m, m)`, `Z'Z` of each level.
        psi: Float tensor `(m, m)`, the prior shape `Psi`.

    Returns:
        rotation: Float tensor `(..., m, m)`, `R` above.
        eigenvalues: Float tensor `(..., m)`, non-negative.
    """
    size = gram.shape[-1]
    if size == 1:
        rotation = tf.broadcast_to(tf.sqrt(psi), tf.shape(gram))
        return rotation, gram[..., 0] * psi[0, 0]
    scale = tf.linalg.trace(psi) / size
    root = tf.linalg.cholesky(psi + JITTER * scale * tf.eye(size, dtype=gram.dtype))  # (m, m)
    inner = tf.einsum("ai,...ab,bj->...ij", root, gram, root)
    eigenvalues, vectors = tf.linalg.eigh(0.5 * (inner + tf.linalg.matrix_transpose(inner)))
    return tf.matmul(root, vectors), tf.maximum(eigenvalues, 0.0)


def apply_inverse(rotation: tf.Tensor, variance: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Multiplies by the inverse posterior precision: `R diag(variance) R' values`.

    Args:
        rotation: Float tensor `(..., m, m)`.
        variance: Float tensor `(..., m, p)` of the rotated effects.
        values: Float tensor `(..., m, p)`.
    """
    if rotation.shape[-1] == 1:
        return rotation**2 * variance * values
    return tf.matmul(rotation, variance * tf.matmul(rotation, values, transpose_a=True))


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues `(m,)` and eigenvectors `(m, m)` of a symmetric matrix, in float64.

    LAPACK has one thread: beside those of TensorFlow several take five times as long.
    """
    with threadpool_limits(1, user_api="blas"):
        values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    return values, vectors


def least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The smallest `X` of those that minimise `|matrix @ X - target|`, with one thread, too."""
    with threadpool_limits(1, user_api="blas"):
        found, *_ = scipy.linalg.lstsq(matrix, target, lapack_driver="gelsy")
    return np.asarray(found)
