"""The parts that the autoencoders share: a Gaussian latent, standardised features and bounds."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Baseline, Data, FloatArray
from keras_lmmvae.baselines.schedule import check_training, cosine_adam, updated_noise_variance
from keras_lmmvae.elbo import Density, importance_bound, plain_bound
from keras_lmmvae.likelihood import gaussian_log_likelihood
from keras_lmmvae.validation import check_positive

__all__ = ["LatentVariableBaseline", "in_chunks", "joined"]

ROWS_AT_ONCE = 4096  # Inference is done in chunks of rows, which limits its memory.

tfd = tfp.distributions

BatchBound: TypeAlias = Callable[
    [tf.Tensor, tf.random.Generator], tuple[tf.Tensor, float | tf.Tensor, tf.Tensor]
]
"""Negative bound of a batch, a scalar, the number of its rows, and their errors `(b, p)`."""


class LatentVariableBaseline(Baseline):
    """Baseline with an encoder q(u[i]) and a decoder of the latent of each row.

        x[i] = f(u[i], columns[i]) + e[i],  u[i] ~ Normal(prior mean, prior variance)

    A subclass defines `_posterior` and `_decode`. It may override `_prior` and `_error_variance`.

    Attributes:
        seed: Optional int that fixes initial weights and draws.
        scaler_: `StandardScaler` of the features. A constant feature is only centred.
        noise_variance_: Float64 array `(p,)`, in squared units of the features.
    """

    seed: int | None
    epochs: int
    learning_rate: float
    n_features_in_: int
    network_: Any
    scaler_: StandardScaler
    noise_variance_: FloatArray

    @abstractmethod
    def _posterior(self, data: Data) -> tfp.distributions.Normal:
        """Returns q(u), batch shape `(n, d)`, float32."""

    @abstractmethod
    def _decode(self, latent: tf.Tensor, data: Data) -> tf.Tensor:
        """Returns the reconstruction of `x` from latents `(n, d)`, float32 `(n, p)`, in units."""

    def _prior(self, data: Data) -> tfp.distributions.Normal:
        """Returns p(u). Its batch shape broadcasts to `(n, d)`."""
        del data
        return tfd.Normal(0.0, 1.0)

    def _error_variance(self, data: Data) -> FloatArray:
        """Returns the variance of `x` around its reconstruction, `(p,)` or `(n, p)`."""
        del data
        return self.noise_variance_

    def transform(self, data: Data) -> FloatArray:
        """Returns the posterior means of the latent, float64 `(n, d)`."""
        check_is_fitted(self)
        self._known_features(data)
        return np.asarray(self._posterior(data).loc, np.float64)

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns the decoded posterior means, float64 `(n, p)`, in the units of the features."""
        check_is_fitted(self)
        self._known_features(data)
        return np.asarray(self._decode(self._posterior(data).loc, data), np.float64)

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns bounds of the rows' log densities given the training rows, float64 `(n,)`."""
        check_is_fitted(self)
        check_positive("num_samples", num_samples, integer=True, minimum=0)
        x = tf.cast(self._known_features(data), tf.float32)
        posterior, prior = self._posterior(data), self._prior(data)
        variance = tf.cast(self._error_variance(data), tf.float32)

        def density(latent: tf.Tensor) -> tf.Tensor:
            return gaussian_log_likelihood(x - self._decode(latent, data), variance, None)

        return np.asarray(self._bound(density, posterior, prior, num_samples), np.float64)

    def _bound(
        self,
        density: Density,
        posterior: tfp.distributions.Normal,
        prior: tfp.distributions.Normal,
        num_samples: int,
    ) -> tf.Tensor:
        """Returns the plain bound, or the importance-weighted one if `num_samples` is positive."""
        shape = tf.shape(posterior.loc)
        own, joint_prior = (
            tfd.MultivariateNormalDiag(
                tf.broadcast_to(one.loc, shape), tf.broadcast_to(one.scale, shape)
            )
            for one in (posterior, prior)
        )
        if not num_samples:
            return plain_bound(density, own, joint_prior)
        seed = 0 if self.seed is None else self.seed
        return importance_bound(density, own, joint_prior, num_samples, seed)

    def _check_training(self) -> None:
        """Raises a ValueError if an argument of the training is out of its range."""
        names = ("hidden_units", "epochs", "batch_size", "learning_rate", "kl_weight")
        check_training(**{name: getattr(self, name) for name in names})

    def _fit_network(
        self,
        bound: BatchBound,
        batch_of: Callable[[np.ndarray], np.ndarray],
        size: int,
        num_steps: int,
        rng: np.random.Generator,
    ) -> None:
        """Trains `network_` and the noise variance on batches in random order.

        Args:
            bound: Bound of a batch, with draws of a generator.
            batch_of: Returns the int64 batch of some of the numbers `0 ... size - 1`.
            size: Positive int.
            num_steps: Positive int, number of batches per epoch.
            rng: Generator of the order and of the seed of the draws.
        """
        variables = self.network_.trainable_variables
        noise = self._noise = tf.Variable(tf.ones(self.n_features_in_), trainable=False)
        optimizer = cosine_adam(self.learning_rate, num_steps, 1, self.epochs)
        optimizer.build(variables)
        generator = tf.random.Generator.from_seed(int(rng.integers(2**31)))
        rank = batch_of(np.arange(1)).ndim

        @tf.function(input_signature=[tf.TensorSpec((None,) * rank, tf.int64)], autograph=False)
        def step(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                negative, count, error = bound(batch, generator)
                loss = negative / count
            optimizer.apply(tape.gradient(loss, variables), variables)
            noise.assign(updated_noise_variance(noise, error))
            return negative, count

        self.losses_ = []
        for _ in range(self.epochs):
            parts = np.array_split(rng.permutation(size), num_steps)
            negative, count = np.sum([step(batch_of(part)) for part in parts], axis=0)
            self.losses_.append(float(negative / count))
        self.noise_variance_ = self._noise_in_units(noise)

    def _standardised(self, data: Data) -> tf.Tensor:
        """Returns the checked features in units of their standard deviations, float32 `(n, p)`."""
        return tf.constant(self.scaler_.transform(self._known_features(data)), tf.float32)

    def _in_units(self, standardised: tf.Tensor) -> tf.Tensor:
        """Returns standardised values `(n, p)` in the units of the features."""
        return standardised * self.scaler_.scale_ + self.scaler_.mean_

    def _noise_in_units(self, noise_variance: Any) -> FloatArray:
        """Returns the noise variance of standardised features in squared units, `(p,)`."""
        return np.asarray(noise_variance, np.float64) * np.square(self.scaler_.scale_)


def in_chunks(function: Callable[[Any], Any], rows: Any) -> list[Any]:
    """Returns the results of a function on chunks of rows, tensors in any nested structure."""

    def chunk(first: int) -> Any:
        return tf.nest.map_structure(lambda part: part[first : first + ROWS_AT_ONCE], rows)

    total = len(tf.nest.flatten(rows)[0])
    return [function(chunk(first)) for first in range(0, total, ROWS_AT_ONCE)]


def joined(chunks: list[Any]) -> Any:
    """Returns the results of chunks of rows as those of all rows."""
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *chunks)
