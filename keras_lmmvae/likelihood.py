"""How a row's features come from their mean `f(u) + Z B`: the Gaussian likelihood."""

import math
from abc import abstractmethod
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.layers.state_layer import StateLayer

__all__ = [
    "NOISE_MOMENTUM",
    "NOISE_VARIANCE_FLOOR",
    "GaussianLikelihood",
    "Likelihood",
    "gaussian_log_likelihood",
]

NOISE_VARIANCE_FLOOR = 1e-5
"""Smallest noise variance, as a share of the variance of a standardised feature. A feature that its
groups explain fully would otherwise drive the noise variance, and with it every posterior variance,
to zero."""

NOISE_MOMENTUM = 0.95
"""Share of the running mean of squared errors that a training step keeps."""


class Likelihood(StateLayer):
    """How likely features are given their linear predictor `eta = f(u) + Z B`.

    A subclass says how likely they are, and as which normal response with which weights they
    enter the mixed model equations.
    """

    @abstractmethod
    def log_prob(
        self,
        x: tf.Tensor,
        eta: tf.Tensor,
        eta_variance: tf.Tensor | float = 0.0,
        observed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Log density of the observed cells of every row, `(b,)`."""

    @abstractmethod
    def working(self, x: tf.Tensor, eta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The response of the mixed model equations, `(b, p)`, and its weights, `(p,)`."""


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class GaussianLikelihood(Likelihood):
    """`x = eta + e`, `e ~ Normal(0, diag(noise_variance))`, in standardised units.

    Args:
        num_features: Positive int, `p`.
        is_learned: Whether the noise variance is learned; else it stays as `fix` set it.
    """

    def __init__(self, num_features: int, is_learned: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        self.is_learned = is_learned

    def build(self, input_shape: Any = None) -> None:
        self.noise_variance = self.state("noise_variance", (self.num_features,), "ones")

    def log_prob(
        self,
        x: tf.Tensor,
        eta: tf.Tensor,
        eta_variance: tf.Tensor | float = 0.0,
        observed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        return gaussian_log_likelihood(x - eta, self.noise_variance + eta_variance, observed)

    def working(self, x: tf.Tensor, eta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The features themselves, with the inverse noise variance as weights."""
        del eta
        return x, 1.0 / tf.convert_to_tensor(self.noise_variance)

    def assign(self, noise_variance: np.ndarray) -> None:
        """Sets the noise variance `(p,)`, raised to its floor, unless it is fixed."""
        if self.is_learned:
            self.fix(noise_variance)

    def fix(self, noise_variance: np.ndarray) -> None:
        """Sets the noise variance `(p,)`, raised to its floor."""
        self.noise_variance.assign(np.maximum(noise_variance, NOISE_VARIANCE_FLOOR))

    def update(self, squares: tf.Tensor, weights: tf.Tensor | None) -> None:
        """Moves the noise variance towards a batch's mean of squared errors."""
        if not self.is_learned:
            return
        noise = tf.convert_to_tensor(self.noise_variance)
        if weights is None:
            mean = tf.reduce_mean(squares, axis=0)
        else:
            weights = weights * tf.ones_like(squares)
            total = tf.reduce_sum(weights, axis=0)
            mean = tf.math.divide_no_nan(tf.reduce_sum(weights * squares, axis=0), total)
            mean = tf.where(total > 0.0, mean, noise)
        updated = NOISE_MOMENTUM * noise + (1.0 - NOISE_MOMENTUM) * mean
        self.noise_variance.assign(tf.maximum(updated, NOISE_VARIANCE_FLOOR))


def gaussian_log_likelihood(
    error: tf.Tensor, variance: tf.Tensor, observed: tf.Tensor | None
) -> tf.Tensor:
    """Log density of the observed cells of every row, `(b,)`."""
    density = -0.5 * (tf.square(error) / variance + tf.math.log(2.0 * math.pi * variance))
    if observed is not None:
        density = tf.where(observed, density, tf.zeros_like(density))
    return tf.reduce_sum(density, axis=-1)
