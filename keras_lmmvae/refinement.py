"""The best latent of each row, given a decoder: where the encoder's answer is only a start."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_lmmvae import linalg

__all__ = ["Decoder", "RefinedLatents", "decoded_with_slopes", "refined_latents"]

Decoder = Callable[[tf.Tensor], tf.Tensor]
"""Features of latents, `(k * b, d)` to `(k * b, p)`: `k` times the same `b` rows."""

# Levenberg's damping of the first step, and the factor by which it changes after every step.
_FIRST_DAMPING = 0.01
_DAMPING_STEP = 5.0
_SMALLEST_RIDGE = 1e-4
# Half the distance of the points that a derivative of the decoder is taken from; a latent has
# about unit variance.
_SLOPE_STEP = 0.1


class RefinedLatents(NamedTuple):
    """q(u) of some rows: the mode of `u`, and the curvature around it.

    Attributes:
        mean: Float tensor `(b, d)`.
        log_var: Float tensor `(b, d)`, log variances of the best q(u) with independent parts: 1
            over the curvature along an axis.
        root: Float tensor `(b, d, d)`, lower triangular root of the inverse of the curvature.
    """

    mean: tf.Tensor
    log_var: tf.Tensor
    root: tf.Tensor


def refined_latents(
    decode: Decoder,
    target: tf.Tensor,
    weights: tf.Tensor,
    start: tf.Tensor,
    mean: tf.Tensor,
    precision: tf.Tensor,
    steps: int,
) -> RefinedLatents:
    """The mode of `u` of every row, and the curvature around it.

        minimise over u: sum{ weights * (target - f(u))^2 } + (u - mean)' precision (u - mean)

    An encoder answers at once for all rows, and is a little off for each. Gauss-Newton steps with
    Levenberg's damping start at its answer; a step that does not help is not taken.

    Args:
        decode: The decoder `f`.
        target: Float tensor `(b, p)`.
        weights: Float tensor `(b, p)`, inverse variances of the cells; 0 where one is missing.
        start: Float tensor `(b, d)`.
        mean: Float tensor `(d,)` or `(b, d)`, of the prior of `u`.
        precision: Float tensor `(d, d)` or `(b, d, d)`, inverse covariance of that prior.
        steps: Positive int.

    References:
        - Kim, Wiseman, Miller, Sontag & Rush (2018), Semi-amortized variational autoencoders.
        - Levenberg, K. (1944), A method for the solution of certain nonlinear problems.
    """
    # Without a prior a direction may have no curvature at all.
    ridge = tf.maximum(_SMALLEST_RIDGE - tf.linalg.diag_part(precision), 0.0)
    precision += tf.linalg.diag(ridge)

    def misfit(latent: tf.Tensor, decoded: tf.Tensor) -> tf.Tensor:
        squares = tf.reduce_sum(weights * tf.square(target - decoded), axis=1)
        away = latent - mean
        return squares + tf.reduce_sum(tf.linalg.matvec(precision, away) * away, axis=1)

    latent = start
    damping = tf.fill(tf.shape(latent)[:1], _FIRST_DAMPING)
    for _ in range(steps):
        decoded, slopes = decoded_with_slopes(decode, latent)
        curvature = tf.einsum("bp,kbp,lbp->bkl", weights, slopes, slopes) + precision
        gradient = tf.einsum("bp,kbp->bk", weights * (target - decoded), slopes)
        gradient -= tf.linalg.matvec(precision, latent - mean)
        diagonal = tf.linalg.diag_part(curvature)
        damped = tf.linalg.set_diag(curvature, diagonal * (1.0 + damping[:, None]))
        moved = latent + tf.linalg.solve(damped, gradient[..., None])[..., 0]
        is_better = misfit(moved, decode(moved)) < misfit(latent, decoded)
        latent = tf.where(is_better[:, None], moved, latent)
        damping = tf.where(is_better, damping / _DAMPING_STEP, damping * _DAMPING_STEP)
    _, slopes = decoded_with_slopes(decode, latent)
    curvature = tf.einsum("bp,kbp,lbp->bkl", weights, slopes, slopes) + precision
    diagonal = tf.linalg.diag_part(curvature)
    # The inverse of the curvature, scaled to a unit diagonal, by its root: float32 is enough.
    scale = tf.math.rsqrt(diagonal)
    scaled = curvature * scale[:, :, None] * scale[:, None, :]
    covariance = tf.linalg.inv(scaled + linalg.JITTER * tf.eye(latent.shape[-1]))
    root = tf.linalg.cholesky(0.5 * (covariance + tf.linalg.matrix_transpose(covariance)))
    return RefinedLatents(latent, -tf.math.log(diagonal), scale[:, :, None] * root)


def decoded_with_slopes(decode: Decoder, latent: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`f(u)`, `(b, p)`, and its derivatives along the axes of the latent, `(d, b, p)`.

    By central differences, in one pass through the decoder. That is exact for a linear
    decoder, costs less than derivatives forward through the layers, and every runtime has it.
    """
    axes = _SLOPE_STEP * np.eye(latent.shape[-1], dtype=np.float32)
    points = [latent, *(latent + sign * axis for axis in axes for sign in (1.0, -1.0))]
    decoded, *moved = tf.split(decode(tf.concat(points, axis=0)), len(points))
    slopes = [up - down for up, down in zip(moved[::2], moved[1::2], strict=True)]
    return decoded, tf.stack(slopes) / (2.0 * _SLOPE_STEP)
