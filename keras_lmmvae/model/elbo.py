"""The evidence lower bound, row by row and part by part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tensorflow as tf
import tensorflow_probability as tfp

__all__ = ["ElboTerms", "gaussian_log_likelihood", "latent_kl"]

tfd = tfp.distributions


@dataclass(frozen=True)
class ElboTerms:
    """Parts of the ELBO of a mini-batch; every part is a float tensor `(b,)` in nats.

        elbo = log_likelihood - kl_weight * latent_kl - effects_kl_weight * effects_kl

    Attributes:
        log_likelihood: E[log p(x[i] | u[i], B)].
        latent_kl: KL(q(u[i]) || p(u)).
        effects_kl: The row's share of KL(q(B) || p(B)): that of its level over the level's rows.
        squared_error: Squared error of the row, mean over its observed features, in the features'
            squared units.
        residual: x - f(u), before the random effects are taken out, `(b, p)`.
        error: x - f(u) - Z B, `(b, p)`.
    """

    log_likelihood: tf.Tensor
    latent_kl: tf.Tensor
    effects_kl: tf.Tensor
    squared_error: tf.Tensor
    residual: tf.Tensor
    error: tf.Tensor

    def negative_elbo(self, kl_weight: float | tf.Tensor, effects_kl_weight: float) -> tf.Tensor:
        """`(b,)`, to be minimised."""
        penalty = kl_weight * self.latent_kl + effects_kl_weight * self.effects_kl
        return penalty - self.log_likelihood


def gaussian_log_likelihood(
    error: tf.Tensor, variance: tf.Tensor, observed: tf.Tensor | None
) -> tf.Tensor:
    """Log density of the observed cells of every row, `(b,)`.

    Args:
        error: Float tensor `(b, p)`.
        variance: Float tensor `(p,)` or `(b, p)`.
        observed: Bool tensor `(b, p)`, or `None` if all cells are.
    """
    density = -0.5 * (tf.square(error) / variance + tf.math.log(2.0 * math.pi * variance))
    if observed is not None:
        density = tf.where(observed, density, tf.zeros_like(density))
    return tf.reduce_sum(density, axis=-1)


def latent_kl(mean: tf.Tensor, log_var: tf.Tensor) -> tf.Tensor:
    """KL(Normal(mean, exp(log_var)) || Normal(0, I)), `(b,)`."""
    posterior = tfd.Normal(mean, tf.exp(0.5 * log_var))
    return tf.reduce_sum(tfd.kl_divergence(posterior, tfd.Normal(0.0, 1.0)), axis=-1)
