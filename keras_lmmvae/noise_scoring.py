"""The most likely noise variance of rows whose latent is not known: Fisher scoring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

__all__ = ["CALIBRATION_STEPS", "most_likely_noise", "noise_score"]

CALIBRATION_STEPS = 10
"""Gauss-Newton steps on the latents before every score."""

_ROUNDS = 20
# A variance changes by this factor a round at most.
_LARGEST_CHANGE = 4.0
_TOLERANCE = 1e-3


def noise_score(
    error: tf.Tensor, precision: tf.Tensor, loadings: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Score and information of every row for the noise variances, twice both.

        D = diag(precision),  inv(Omega) = D - D A A' D
        score = (D error)^2 - diag(inv(Omega)),  information = inv(Omega)^2

    `Omega` is the covariance of a row, `A A'` that of `f(u)` under q(u), the decoder taken as
    linear, and `error` is `x - f(u)` at the mode of `u`, so that `D error` is `inv(Omega)` times
    what the row is off its mean. Squares are taken entry by entry.

    Args:
        error: Float tensor `(b, p)`.
        precision: Float tensor `(b, p)`, 1 over the variance of a cell given the latent; 0 where
            one is missing.
        loadings: Float tensor `(d, b, p)`, `A`.

    Returns:
        Score `(b, p)` and information `(b, p, p)`.

    References:
        - Joreskog, K. G. (1967), Some contributions to maximum likelihood factor analysis.
    """
    scaled = loadings * precision
    inverse = tf.linalg.diag(precision) - tf.einsum("lbp,lbq->bpq", scaled, scaled)
    return tf.square(precision * error) - tf.linalg.diag_part(inverse), tf.square(inverse)


def most_likely_noise(
    start: np.ndarray, sums: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], floor: float
) -> np.ndarray:
    """Noise variances at which the score is 0, or negative at the floor, by Fisher scoring.

    Args:
        start: Positive float array `(p,)`.
        sums: Gives score `(p,)` and information `(p, p)`, summed over the rows, at noise
            variances `(p,)`. A feature without a cell has information 0, and keeps its variance.
        floor: Positive float, the smallest noise variance.

    Returns:
        Float64 array `(p,)`.

    Example:
        The variance of four numbers with mean 0, from a wrong start:

        >>> numbers = np.array([1.0, -2.0, 3.0, 2.0])
        >>> def sums(noise):
        ...     score = np.sum(numbers**2 / noise**2 - 1 / noise, keepdims=True)
        ...     return score, 4 / noise[:, None] ** 2
        >>> most_likely_noise(np.array([9.0]), sums, 1e-5)
        array([4.5])
    """
    noise = np.asarray(start, np.float64)
    for _ in range(_ROUNDS):
        score, information = (np.asarray(value, np.float64) for value in sums(noise))
        # In units of the present variances.
        score, information = score * noise, information * np.outer(noise, noise)
        # A variance at its floor whose likelihood rises below stays there, and moves no other.
        known = (np.diag(information) > 0.0) & ((noise > floor) | (score > 0.0))
        step = np.zeros_like(noise)
        step[known] = np.linalg.solve(information[np.ix_(known, known)], score[known])
        changed = noise * np.clip(1.0 + step, 1.0 / _LARGEST_CHANGE, _LARGEST_CHANGE)
        noise = np.maximum(changed, floor)
        if np.abs(step).max() < _TOLERANCE:
            break
    return noise
