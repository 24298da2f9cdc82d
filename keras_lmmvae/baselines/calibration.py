"""The noise variance of a baseline, from rows that it was not fitted to."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.elbo import Gaussian
from keras_lmmvae.likelihood import NOISE_VARIANCE_FLOOR
from keras_lmmvae.noise_scoring import CALIBRATION_STEPS, most_likely_noise, noise_score
from keras_lmmvae.refinement import Decoder, decoded_with_slopes, refined_latents
from keras_lmmvae.rows import draw_held_out
from keras_lmmvae.validation import received

__all__ = ["calibrated_noise", "refined_posterior", "without_calibration_rows"]


def without_calibration_rows(
    data: Data, share: float, seed: int | None
) -> tuple[Data, Data | None]:
    """Training rows, and those that are held out of the whole fit: the same as in `LMMVAE.fit`.

    Args:
        data: Dict of arrays with `n` rows.
        share: Share of the rows to hold out, in [0, 1). With 0 no row is, and the second part
            is `None`.
        seed: Optional int that fixes which.

    Raises:
        ValueError: If `share` is out of its range, or leaves no row on one side.

    Example:
        >>> fitted, held_out = without_calibration_rows({"x": np.zeros((100, 2))}, 0.05, 0)
        >>> len(fitted["x"]), len(held_out["x"])
        (95, 5)
    """
    if share == 0.0:
        return data, None
    total = len(data["x"])
    size = round(share * total) if 0.0 < share < 1.0 else 0
    if not 0 < size < total:
        raise ValueError(
            "`calibration_split` must lie in [0, 1) and leave rows on both sides. "
            + received(calibration_split=share, rows=total)
        )
    is_held_out = draw_held_out(total, share, seed)

    def where(chosen: np.ndarray) -> Data:
        return {name: np.asarray(column)[chosen] for name, column in data.items()}

    return where(~is_held_out), where(is_held_out)


def refined_posterior(
    decode: Decoder,
    target: tf.Tensor,
    variance: tf.Tensor,
    start: tf.Tensor,
    prior: Gaussian,
    steps: int,
    prior_weight: float = 1.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean `(b, d)` and root `(b, d, d)` of q(u) by `refined_latents`.

    Args:
        decode: The decoder.
        target: Float tensor `(b, p)`.
        variance: Float tensor, broadcasts to `(b, p)`, of the cells given the latent.
        start: Float tensor `(b, d)`.
        prior: Of the latents.
        steps: Positive int.
        prior_weight: Non-negative float, by which the prior's precision is multiplied.
    """
    precision = prior_weight * tf.linalg.inv(prior.covariance())
    weights = tf.ones_like(target) / variance
    found = refined_latents(decode, target, weights, start, prior.loc, precision, steps)
    return found.mean, found.root


def calibrated_noise(
    noise: FloatArray,
    decode: Decoder,
    target: tf.Tensor,
    extra: FloatArray | float,
    start: tf.Tensor,
    prior: Gaussian,
) -> FloatArray:
    """The most likely noise variance of held-out rows, see `noise_score`.

        target[i] = f(u[i]) + e[i],    e[i] ~ Normal(0, diag(noise + extra[i]))

    Args:
        noise: Positive float array `(p,)`, where to start.
        decode: The decoder `f`.
        target: Float tensor `(b, p)`, standardised.
        extra: Broadcasts to `(b, p)`: what else is not known of the target.
        start: Float tensor `(b, d)`, where the search for each row's latent starts.
        prior: Of the latents.

    Returns:
        Float64 array `(p,)`.
    """

    @tf.function(autograph=False)
    def scores(variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        mean, root = refined_posterior(decode, target, variance, start, prior, CALIBRATION_STEPS)
        decoded, slopes = decoded_with_slopes(decode, mean)
        loadings = tf.einsum("kbp,bkl->lbp", slopes, root)
        score, information = noise_score(target - decoded, 1.0 / variance, loadings)
        return tf.reduce_sum(score, axis=0), tf.reduce_sum(information, axis=0)

    def sums(noise: FloatArray) -> tuple[FloatArray, FloatArray]:
        variance = np.broadcast_to(noise + extra, target.shape)
        score, information = scores(tf.constant(variance, tf.float32))
        return score.numpy(), information.numpy()

    return most_likely_noise(noise, sums, NOISE_VARIANCE_FLOOR)
