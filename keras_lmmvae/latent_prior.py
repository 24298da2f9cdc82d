"""Where the latents of the training rows lie."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_lmmvae import linalg
from keras_lmmvae.layers.state_layer import StateLayer

__all__ = ["LatentPrior"]


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LatentPrior(StateLayer):
    """The normal distribution of the latents of the training rows.

        u[i] ~ Normal(mean, root @ root')

    Training draws the latents towards Normal(0, I), but does not bring them there. The effects
    are solved for with the latents integrated out, and this is over what they are.

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

    def fit(self, count: tf.Tensor, total: tf.Tensor, squares: tf.Tensor) -> None:
        """Takes the moments of latents.

        Args:
            count: Scalar, sum of the rows' weights.
            total: Float tensor `(d,)`, weighted sum of the latents.
            squares: Float tensor `(d, d)`, weighted sum of `E[u u']`.
        """
        mean = total / count
        covariance = squares / count - mean[:, None] * mean
        ridge = linalg.JITTER * tf.linalg.trace(covariance) * tf.eye(self.latent_dim)
        self.mean.assign(mean)
        self.root.assign(tf.linalg.cholesky(covariance + ridge))
