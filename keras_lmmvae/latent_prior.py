"""Where the latents of the training rows lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae import linalg
from keras_lmmvae.layers.state_layer import StateLayer
from keras_lmmvae.rows import Pass, Rows, row_weights

__all__ = ["LatentPrior"]

tfd = tfp.distributions


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LatentPrior(StateLayer):
    """The normal distribution of the latents of the training rows.

        u[i] ~ Normal(mean, root @ root')

    Training draws the latents towards Normal(0, I), but does not bring them there. So this is
    the prior wherever a fitted model says how likely a latent is: the latents are integrated out
    over it in the equations of the effects, and it is the prior of `log_likelihood`.

    Args:
        latent_dim: Positive int, `d`.
    """

    def __init__(self, latent_dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.latent_dim = latent_dim

    def build(self, input_shape: Any = None) -> None:
        self.mean = self.state("mean", (self.latent_dim,))
        shape = (self.latent_dim, self.latent_dim)
        self.root = self.state("root", shape, keras.initializers.Identity())

    def distribution(self) -> tfp.distributions.MultivariateNormalTriL:
        """The distribution."""
        return tfd.MultivariateNormalTriL(self.mean.value, self.root.value)

    def precision(self) -> tf.Tensor:
        """`inv(root @ root')`, `(d, d)`."""
        return tf.linalg.cholesky_solve(self.root.value, tf.eye(self.latent_dim))

    def fit(self, rows: Pass, latent_of: Callable[[Rows], tuple[tf.Tensor, tf.Tensor]]) -> None:
        """Takes the mean and the covariance of the latents of some rows.

        Args:
            rows: The rows.
            latent_of: Gives means and log variances of q(u) of rows, `(b, d)` each.
        """

        def sums(batch: Rows) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            (latent, log_var), weight = latent_of(batch), row_weights(batch)
            weight = tf.ones_like(latent[:, :1]) if weight is None else weight[:, None]
            variance = tf.reduce_sum(weight * tf.exp(log_var), axis=0)
            squares = tf.matmul(weight * latent, latent, transpose_a=True)
            total = tf.reduce_sum(weight * latent, axis=0)
            return tf.reduce_sum(weight), total, squares + tf.linalg.diag(variance)

        count, total, squares = rows.total(sums)
        mean = total / count
        covariance = squares / count - mean[:, None] * mean
        ridge = linalg.JITTER * tf.linalg.trace(covariance) * tf.eye(self.latent_dim)
        self.mean.assign(mean)
        self.root.assign(tf.linalg.cholesky(covariance + ridge))
