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
from keras_lmmvae.baselines.calibration import calibrated_noise, refined_posterior
from keras_lmmvae.baselines.schedule import check_training, cosine_adam, updated_noise_variance
from keras_lmmvae.elbo import Density, Gaussian, importance_bound, plain_bound
from keras_lmmvae.latent_prior import LatentPrior
from keras_lmmvae.likelihood import gaussian_log_likelihood
from keras_lmmvae.refinement import Decoder
from keras_lmmvae.rows import FEATURES, Pass
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

        x[i] = f(u[i], columns[i]) + e[i],  u[i] ~ Normal(prior mean, prior covariance)

    A subclass defines `_posterior` and `_decoder`, in standardised units. It may override the
    priors, `_error_variance`, `_standardised` and `_in_units`.

    Attributes:
        seed: Optional int that fixes initial weights and draws.
        refine: Non-negative int, Gauss-Newton steps from the encoder's answer to the best latent
            of each row; see `refined_latents`. As in `LMMVAE`, features weigh alike in `transform`
            and `reconstruct`, and by their own variances in `log_likelihood`.
        calibration_split: Share of the training rows, chosen by the seed, that are held out of
            the whole fit, and give the noise variance.
        scaler_: `StandardScaler` of the features. A constant feature is only centred.
        noise_variance_: Float64 array `(p,)`, in squared units of the features.
        latent_prior_: The normal distribution of the latents of the training rows, where
            `_fit_prior` was called.
    """

    seed: int | None
    epochs: int
    learning_rate: float
    kl_weight: float
    refine: int = 0
    calibration_split: float = 0.0
    n_features_in_: int
    network_: Any
    scaler_: StandardScaler
    noise_variance_: FloatArray
    latent_prior_: LatentPrior

    @abstractmethod
    def _posterior(self, data: Data) -> Gaussian:
        """Returns the encoder's q(u), batch `(n,)`, event `(d,)`, float32."""

    @abstractmethod
    def _decoder(self, data: Data) -> Decoder:
        """Returns the decoder of these rows, from latents to standardised features.

        It takes latents `(k * n, d)`, of `k` times the same rows, to float32 `(k * n, p)`.
        """

    def _prior(self, data: Data) -> Gaussian:
        """Returns the p(u) of a density: batch `(n,)` or none, event `(d,)`."""
        del data
        return self.latent_prior_.distribution()

    def _training_prior(self, data: Data) -> Gaussian:
        """Returns the p(u) that training draws the latents towards."""
        size = self._posterior(data).loc.shape[-1]
        return tfd.MultivariateNormalDiag(tf.zeros(size), tf.ones(size))

    def _error_variance(self, data: Data) -> FloatArray:
        """Returns the variance of `x` around its reconstruction, `(p,)` or `(n, p)`, in units."""
        del data
        return self.noise_variance_

    def transform(self, data: Data) -> FloatArray:
        """Returns the posterior means of the latent, float64 `(n, d)`."""
        check_is_fitted(self)
        self._known_features(data)
        return np.asarray(self._inferred(data).loc, np.float64)

    def reconstruct(self, data: Data) -> FloatArray:
        """Returns the decoded posterior means, float64 `(n, p)`, in the units of the features."""
        check_is_fitted(self)
        self._known_features(data)
        return np.asarray(self._decode(self._inferred(data).loc, data), np.float64)

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns bounds of the rows' log densities given the training rows, float64 `(n,)`."""
        check_is_fitted(self)
        check_positive("num_samples", num_samples, integer=True, minimum=0)
        target, decoder = self._standardised(data), self._decoder(data)
        variance = self._standard_variance(data)

        def density(latent: tf.Tensor) -> tf.Tensor:
            return gaussian_log_likelihood(target - decoder(latent), variance, None)

        posterior = self._inferred(data, by_density=True)
        bound = self._bound(density, posterior, self._prior(data), num_samples)
        return np.asarray(bound, np.float64) - np.log(self.scaler_.scale_).sum()

    def _decode(self, latent: tf.Tensor, data: Data) -> Any:
        """Returns the reconstruction of `x` from latents `(n, d)`, `(n, p)`, in units."""
        return self._in_units(self._decoder(data)(latent), data)

    def _inferred(self, data: Data, by_density: bool = False) -> Gaussian:
        """Returns q(u) of the rows, batch `(n,)`: the encoder's, or the refined one."""
        posterior = self._posterior(data)
        if not self.refine:
            return posterior
        if by_density:
            prior, weight = self._prior(data), 1.0
            variance = self._standard_variance(data)
        else:
            prior, weight = self._training_prior(data), self.kl_weight
            variance = tf.reduce_mean(tf.cast(self._standard_noise(), tf.float32))
        mean, root = refined_posterior(
            self._decoder(data),
            self._standardised(data),
            variance,
            posterior.loc,
            prior,
            self.refine,
            weight,
        )
        return tfd.MultivariateNormalTriL(mean, root)

    def _standard_noise(self) -> FloatArray:
        """Returns the noise variance of standardised features, `(p,)`."""
        noise: FloatArray = self.noise_variance_ / np.square(self.scaler_.scale_)
        return noise

    def _standard_variance(self, data: Data) -> tf.Tensor:
        """Returns the error variance of standardised features, float32 `(p,)` or `(n, p)`."""
        return tf.cast(self._error_variance(data) / np.square(self.scaler_.scale_), tf.float32)

    def _fit_prior(self, posterior: Gaussian) -> None:
        """Sets `latent_prior_` to mean and covariance of the training rows' latents."""
        self.latent_prior_ = LatentPrior(posterior.loc.shape[-1])
        self.latent_prior_.build()
        rows = {FEATURES: posterior.loc, "log_var": tf.math.log(posterior.variance())}
        self.latent_prior_.fit(Pass(rows), lambda batch: (batch[FEATURES], batch["log_var"]))

    def _calibrate(self, data: Data | None) -> None:
        """Sets the noise variance to its most likely value on rows held out of the fit, if any."""
        if data is None:
            return
        square = np.square(self.scaler_.scale_)
        noise = calibrated_noise(
            self._standard_noise(),
            self._decoder(data),
            self._standardised(data),
            (self._error_variance(data) - self.noise_variance_) / square,
            self._posterior(data).loc,
            self._prior(data),
        )
        self.noise_variance_ = noise * square

    def _bound(
        self,
        density: Density,
        posterior: Gaussian,
        prior: Gaussian,
        num_samples: int,
    ) -> tf.Tensor:
        """Returns the plain bound, or the importance-weighted one if `num_samples` is positive."""
        if not num_samples:
            return plain_bound(density, posterior, prior)
        seed = 0 if self.seed is None else self.seed
        return importance_bound(density, posterior, prior, num_samples, seed)

    def _check_training(self) -> None:
        """Raises a ValueError if an argument of the training is out of its range."""
        names = ("hidden_units", "epochs", "batch_size", "learning_rate", "kl_weight")
        check_training(**{name: getattr(self, name) for name in names})
        check_positive("refine", self.refine, integer=True, minimum=0)

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

    def _in_units(self, standardised: tf.Tensor, data: Data) -> Any:
        """Returns decoded values `(n, p)` of some rows in the units of the features."""
        del data
        return standardised * self.scaler_.scale_ + self.scaler_.mean_

    def _noise_in_units(self, noise_variance: Any) -> FloatArray:
        """Returns the noise variance of standardised features in squared units, `(p,)`."""
        return np.asarray(noise_variance, np.float64) * np.square(self.scaler_.scale_)


def in_chunks(function: Callable[[Any], Any], rows: Any) -> list[Any]:
    """Returns the results of a function on chunks of rows, tensors in any nested structure."""

    def chunk(first: int) -> Any:
        return tf.nest.map_structure(lambda part: part[first : first + ROWS_AT_ONCE], rows)

    total = tf.nest.flatten(rows)[0].shape[0]
    return [function(chunk(first)) for first in range(0, total, ROWS_AT_ONCE)]


def joined(chunks: list[Any]) -> Any:
    """Returns the results of chunks of rows as those of all rows."""
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), *chunks)
