"""The noise variance that rows show which no part of a fit has seen."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.rows import Pass, Rows

__all__ = ["calibrate_noise"]

_ROUNDS = 20
_REFINE = 10
# A variance changes by this factor a round at most.
_LARGEST_CHANGE = 4.0
_TOLERANCE = 1e-3


def calibrate_noise(model: FittedModel, rows: Pass) -> None:
    """Sets the noise variance to its maximum-likelihood value on held-out rows.

    Training rows are reconstructed too well, because networks and effects have seen them. With
    `e = x - f(u) - Z B` at the mode of `u`, `D = diag(1 / (noise_variance + V))` for the variance
    `V` of the effects, and `A A'` the covariance of `f(u)` under q(u), the decoder taken as linear,

        inv(Omega) = D - D A A' D
        score = sum over rows of (D e)^2 - diag(inv(Omega)),  information = sum of inv(Omega)^2

    with the squares taken entry by entry. Steps of Fisher scoring solve `score = 0`, each with the
    latents refined at the present noise variance.

    References:
        - Joreskog, K. G. (1967), Some contributions to maximum likelihood factor analysis.
    """

    @tf.function(autograph=False)
    def sums(batch: Rows) -> tuple[tf.Tensor, tf.Tensor]:
        seen = model.infer_refined(batch, _REFINE, by_density=True)
        scale = 1.0 / model.variance_given_latent(batch)
        if seen.observed is not None:
            scale *= tf.cast(seen.observed, tf.float32)
        loadings = seen.loadings * scale
        precision = tf.linalg.diag(scale) - tf.einsum("lbp,lbq->bpq", loadings, loadings)
        score = tf.square(scale * seen.error) - tf.linalg.diag_part(precision)
        information = tf.square(precision)
        weight = batch.get("weight")
        if weight is not None:
            score *= weight[:, None]
            information *= weight[:, None, None]
        return tf.reduce_sum(score, axis=0), tf.reduce_sum(information, axis=0)

    for _ in range(_ROUNDS):
        before = np.asarray(model.noise_variance, np.float64)
        score, information = (value.numpy().astype(np.float64) for value in rows.total(sums))
        # In units of the present variances; a feature without a cell keeps its variance.
        score, information = score * before, information * np.outer(before, before)
        known = np.diag(information) > 0.0
        step = np.zeros_like(before)
        step[known] = np.linalg.solve(information[np.ix_(known, known)], score[known])
        model.likelihood.assign(
            before * np.clip(1.0 + step, 1.0 / _LARGEST_CHANGE, _LARGEST_CHANGE)
        )
        if np.abs(step).max() < _TOLERANCE:
            break
