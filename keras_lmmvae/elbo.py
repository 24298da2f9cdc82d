"""The evidence lower bound of a row, part by part, and bounds of its log density."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import tensorflow as tf
import tensorflow_probability as tfp

__all__ = [
    "Density",
    "ElboTerms",
    "Gaussian",
    "cubature_mean",
    "importance_bound",
    "latent_kl",
    "plain_bound",
]

tfd = tfp.distributions

Density = Callable[[tf.Tensor], tf.Tensor]
"""`log p(x[i] | u[i])`, `(b,)`, of latents `(b, d)`."""

Gaussian: TypeAlias = tfp.distributions.MultivariateNormalLinearOperator
"""Normal distributions of latents: batch `(b,)` or none, event `(d,)`."""


@dataclass(frozen=True)
class ElboTerms:
    """Parts of the ELBO of a mini-batch. Every part is a float tensor `(b,)` in nats.

        elbo = log_likelihood - kl_weight * latent_kl - effects_kl_weight * effects_kl

    Attributes:
        log_likelihood: E[log p(x[i] | u[i], B)], for the density in the features' units.
        latent_kl: KL(q(u[i]) || p(u)).
        effects_kl: The row's share of KL(q(B) || p(B)): that of its level over the level's rows.
        squared_error: Squared error of the row, mean over its observed features, in the features'
            squared units.
    """

    log_likelihood: tf.Tensor
    latent_kl: tf.Tensor
    effects_kl: tf.Tensor
    squared_error: tf.Tensor

    def negative_elbo(self, kl_weight: float | tf.Tensor, effects_kl_weight: float) -> tf.Tensor:
        """`(b,)`, to be minimised."""
        penalty = kl_weight * self.latent_kl + effects_kl_weight * self.effects_kl
        return penalty - self.log_likelihood


def latent_kl(mean: tf.Tensor, log_var: tf.Tensor) -> tf.Tensor:
    """KL(Normal(mean, exp(log_var)) || Normal(0, I)), `(b,)`."""
    posterior = tfd.Normal(mean, tf.exp(0.5 * log_var))
    return tf.reduce_sum(tfd.kl_divergence(posterior, tfd.Normal(0.0, 1.0)), axis=-1)


def plain_bound(density: Density, posterior: Gaussian, prior: Gaussian) -> tf.Tensor:
    """`E_q[log p(x[i] | u)] - KL(q(u[i]) || p(u))`, `(b,)`, the expectation by cubature."""
    return cubature_mean(density, posterior) - tfd.kl_divergence(posterior, prior)


def cubature_mean(density: Density, posterior: Gaussian) -> tf.Tensor:
    """Mean of a function over a Gaussian, `(b,)`, exact for polynomials of degree 3.

    It is the mean over the points `mean +- sqrt(d) r` for the columns `r` of a root of the
    covariance, all of one weight: no point counts negatively, as the centre of the unscented
    transform does for `d > 3`.

    References:
        - Arasaratnam, I. & Haykin, S. (2009), Cubature Kalman filters, section III.
    """
    mean, root = posterior.loc, posterior.scale.to_dense()
    size = mean.shape[-1]
    total = tf.zeros_like(mean[..., 0])
    for axis in range(size):
        move = tf.sqrt(float(size)) * root[..., axis]
        total += density(mean + move) + density(mean - move)
    return total / (2.0 * size)


def importance_bound(
    density: Density, posterior: Gaussian, prior: Gaussian, num_samples: int, seed: int
) -> tf.Tensor:
    """`log mean_s p(x | u_s) p(u_s) / q(u_s)` with `u_s` drawn from q, `(b,)`.

    References:
        - Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, eq. (8).
    """
    # Densities without the factors of 2 pi, which cancel.
    size_of_posterior = posterior.scale.log_abs_determinant()
    size_of_prior = prior.scale.log_abs_determinant()
    weights = []
    for number in range(num_samples):
        noise = tf.random.stateless_normal(tf.shape(posterior.loc), (seed, number))
        latent = posterior.loc + posterior.scale.matvec(noise)
        away = prior.scale.solvevec(latent - prior.loc)
        log_prior = -0.5 * tf.reduce_sum(tf.square(away), axis=-1) - size_of_prior
        log_posterior = -0.5 * tf.reduce_sum(tf.square(noise), axis=-1) - size_of_posterior
        weights.append(density(latent) + log_prior - log_posterior)
    return tf.reduce_logsumexp(tf.stack(weights), axis=0) - tf.math.log(float(num_samples))
