"""The noise variance that rows show which no part of a fit has seen."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.likelihood import NOISE_VARIANCE_FLOOR
from keras_lmmvae.noise_scoring import CALIBRATION_STEPS, most_likely_noise, noise_score
from keras_lmmvae.rows import Pass, Rows

__all__ = ["calibrate_noise"]


def calibrate_noise(model: FittedModel, rows: Pass) -> None:
    """Sets the noise variance to its maximum-likelihood value on held-out rows.

    Training rows are reconstructed too well, because networks and effects have seen them. The
    equation is that of `noise_score`, with the effects and what is not known of them in the error
    and its variance; its latents are refined at the present noise variance.
    """

    @tf.function(autograph=False)
    def scores(batch: Rows) -> tuple[tf.Tensor, tf.Tensor]:
        seen = model.infer_refined(batch, CALIBRATION_STEPS, by_density=True)
        precision = 1.0 / model.variance_given_latent(batch)
        if seen.observed is not None:
            precision *= tf.cast(seen.observed, tf.float32)
        score, information = noise_score(seen.error, precision, seen.loadings)
        weight = batch.get("weight")
        if weight is not None:
            score *= weight[:, None]
            information *= weight[:, None, None]
        return tf.reduce_sum(score, axis=0), tf.reduce_sum(information, axis=0)

    def sums(noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model.likelihood.fix(noise)
        score, information = rows.total(scores)
        return score.numpy(), information.numpy()

    start = np.asarray(model.noise_variance, np.float64)
    model.likelihood.fix(most_likely_noise(start, sums, NOISE_VARIANCE_FLOOR))
