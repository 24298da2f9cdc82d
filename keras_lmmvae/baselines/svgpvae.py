"""Sparse Gaussian process prior variational autoencoder."""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae.baselines.auxiliary_points import AuxiliaryPoints, AuxiliaryRows
from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.baselines.columns import check_training
from keras_lmmvae.baselines.gp_autoencoder import GPAutoencoder, inducing_centres, subject_scores
from keras_lmmvae.baselines.latent_variable import LatentVariableBaseline
from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.baselines.sparse_gp import (
    InducingPosterior,
    inducing_posterior,
    inducing_sums,
)
from keras_lmmvae.baselines.standard_features import StandardFeatures
from keras_lmmvae.likelihood import gaussian_log_likelihood
from keras_lmmvae.validation import check_positive

__all__ = ["SVGPVAEBaseline"]

tfd = tfp.distributions

_ROWS_AT_ONCE = 4096  # of inference: the widest layer's output stays at some megabytes


class SVGPVAEBaseline(LatentVariableBaseline):
    """Autoencoder whose latents are Gaussian processes over coordinates, time or subjects.

        x[i] = f(u[i]) + e[i],  u[:, k] ~ GaussianProcess(0, kernel) for k=1...d
        kernel = RBF(coordinates) * RBF(time) * RBF(subject vectors),  of those that are named

    The encoder gives each row a pseudo-observation Normal(value, variance) of its latent. In each
    step the batch's pseudo-observations, weighed up to all rows, give the posterior of the process
    at `num_inducing` points in closed form; rows are decoded from draws of its marginals. The
    cross-entropy and the inner regression's bound of the paper have the same data terms, so that
    its objective is

        sum_i E[log p(x[i] | u[i])] - kl_weight * KL(q(inducing values) || p(inducing values))

    After training the sums run over all training rows once, and are kept. A row passed later is
    taken as new and by itself: its prior is the process given the training rows, its posterior
    the product of that with the encoder's Gaussian of the row. (Training rows passed again are
    thus counted twice.) Subjects never seen, and missing keys, stand at the mean of the subject
    vectors' prior.

    The kernel's length scales, the inducing points (begun by k-means) and the subject vectors
    (begun by principal components of the subjects' means; with a standard normal prior) are
    trained with the networks. Coordinates are Euclidean.

    Args:
        latent_dim: Positive int, `d`.
        coordinates: Names of the columns of coordinates, or `None`.
        subject: Name of the column with the keys of the subjects, or `None`.
        time: Name of the column with the times, or `None`.
        num_inducing: Positive int, inducing points `m`; fewer where fewer places are distinct.
        subject_dim: Positive int, size of the subject vectors.
        hidden_units: Widths of the encoder's dense layers, mirrored in the decoder.
        epochs: Positive int, passes over the training rows.
        batch_size: Positive int, rows a step at most.
        learning_rate: Positive float, at the first step.
        kl_weight: Non-negative float, weight of the KL divergence in training.
        seed: Optional int that fixes initial weights, clusters, batches and draws.

    Attributes:
        features_: `StandardFeatures` with the noise variance.
        auxiliary_: `AuxiliaryPoints`.
        network_: `GPAutoencoder`.
        posterior_: `InducingPosterior` given all training rows.
        losses_: List of floats, the training loss a row of each epoch, nats.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if an argument is out of range or a column is missing or broken.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(1)
        >>> data = {"x": rng.normal(size=(50, 4)), "lon": rng.uniform(size=50)}
        >>> svgpvae = SVGPVAEBaseline(2, coordinates=["lon"], hidden_units=(8,), epochs=1)
        >>> svgpvae.fit(data).transform(data).shape
        (50, 2)

    References:
        - Jazbec, M., Ashman, M., Fortuin, V., Pearce, M., Mandt, S. & Rätsch, G. (2021), Scalable
          Gaussian process variational autoencoders, arXiv 2010.13472.
    """

    method: ClassVar[str] = "svgpvae"

    def __init__(
        self,
        latent_dim: int,
        *,
        coordinates: Sequence[str] | None = None,
        subject: str | None = None,
        time: str | None = None,
        num_inducing: int = 64,
        subject_dim: int = 4,
        hidden_units: Sequence[int] = (1000, 500),
        epochs: int = 25,
        batch_size: int = 500,
        learning_rate: float = 2e-3,
        kl_weight: float = 1.0,
        seed: int | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.coordinates = coordinates
        self.subject = subject
        self.time = time
        self.num_inducing = num_inducing
        self.subject_dim = subject_dim
        self.hidden_units = hidden_units
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.kl_weight = kl_weight
        self.seed = seed

    def fit(self, data: Data) -> Self:
        """Trains networks and kernel on `data` and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        self._check_arguments()
        rng = np.random.default_rng(self.seed)
        self.auxiliary_ = AuxiliaryPoints(data, self.coordinates, self.subject, self.time)
        rows = self.auxiliary_.rows(data)
        self.features_ = StandardFeatures(x)
        standard = self.features_.to_standard(x)
        self.network_ = self._new_network(standard, rows, rng)
        self.losses_ = self._train(standard, rows, rng)
        self.posterior_ = self._given_all(standard, rows)
        return self

    def _check_arguments(self) -> None:
        check_positive("num_inducing", self.num_inducing, integer=True, minimum=1)
        check_positive("subject_dim", self.subject_dim, integer=True, minimum=1)
        check_training(
            hidden_units=self.hidden_units,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            kl_weight=self.kl_weight,
        )

    def _new_network(
        self, x: tf.Tensor, rows: AuxiliaryRows, rng: np.random.Generator
    ) -> GPAutoencoder:
        """Returns networks and kernel before training."""
        vectors = np.zeros((1, 0))
        if self.subject is not None:
            vectors = subject_scores(np.asarray(x), rows.subjects, self.subject_dim)
        seeds = rng.integers(2**31, size=2).tolist()
        inducing_points = inducing_centres(rows, vectors, self.num_inducing, seeds[0])
        return GPAutoencoder(
            self.latent_dim,
            x.shape[1],
            tuple(self.hidden_units),
            self.auxiliary_.parts,
            vectors,
            inducing_points,
            seeds[1],
        )

    def _train(self, x: tf.Tensor, rows: AuxiliaryRows, rng: np.random.Generator) -> list[float]:
        """Returns the losses of the epochs, each over batches of rows in random order."""
        n = len(x)
        num_steps = math.ceil(n / self.batch_size)
        variables = self.network_.trainable_variables
        optimizer = cosine_adam(self.learning_rate, n, self.batch_size, self.epochs)
        optimizer.build(variables)
        generator = tf.random.Generator.from_seed(int(rng.integers(2**31)))
        places, subjects = tf.constant(rows.places, tf.float32), tf.constant(rows.subjects)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64)])
        def step(batch: tf.Tensor) -> tf.Tensor:
            draws = generator.normal((tf.shape(batch)[0], self.latent_dim))
            with tf.GradientTape() as tape:
                where = tf.gather(places, batch), tf.gather(subjects, batch)
                loss, error = self._loss(tf.gather(x, batch), where, n, draws)
            optimizer.apply(tape.gradient(loss, variables), variables)
            self.features_.update_noise(error)
            return loss * tf.cast(tf.shape(batch)[0], tf.float32)

        losses = []
        for _ in range(self.epochs):
            batches = np.array_split(rng.permutation(n), num_steps)
            losses.append(sum(float(step(batch)) for batch in batches) / n)
        return losses

    def _loss(
        self, x: tf.Tensor, where: tuple[tf.Tensor, tf.Tensor], n: int, draws: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Minus the batch's estimate of the bound a row, a scalar, and the errors of its rows.

        Args:
            x: Standardised features `(b, p)`.
            where: Places `(b, c)` and subjects `(b,)` of the rows.
            n: Number of all training rows.
            draws: Standard normal numbers `(b, d)`.
        """
        value, log_var = self.network_.encoder(x)
        basis = self.network_.basis(*where)
        variance = tf.exp(tf.cast(log_var, tf.float64))
        sums = inducing_sums(basis, tf.cast(value, tf.float64), variance)
        posterior = inducing_posterior(sums, n / tf.shape(x)[0])
        mean, variance = posterior.marginals(basis)
        latent = tf.cast(mean, tf.float32) + tf.cast(tf.sqrt(variance), tf.float32) * draws
        error = x - self.network_.decoder(latent)
        noise = tf.fill((self.n_features_in_,), self.features_.networks_noise_variance())
        density = tf.reduce_mean(gaussian_log_likelihood(error, noise, None))
        divergence = tf.cast(tf.reduce_sum(posterior.divergence()), tf.float32)
        vectors = 0.5 * tf.reduce_sum(tf.square(self.network_.subject_vectors))
        return (self.kl_weight * divergence + vectors) / n - density, error

    def _given_all(self, x: tf.Tensor, rows: AuxiliaryRows) -> InducingPosterior:
        """Returns the posterior at the inducing points given all training rows."""
        parts = []
        for chunk in _chunks(len(x)):
            value, log_var = self.network_.encoder(x[chunk])
            basis = self.network_.basis(*_where(rows, chunk))
            variance = tf.exp(tf.cast(log_var, tf.float64))
            parts.append(inducing_sums(basis, tf.cast(value, tf.float64), variance))
        return inducing_posterior(sum(parts[1:], parts[0]))

    def _prior(self, data: Data) -> tfp.distributions.Normal:
        """Returns the process given the training rows, batch shape `(n, d)`."""
        rows = self.auxiliary_.rows(data)
        parts = [
            self.posterior_.marginals(self.network_.basis(*_where(rows, chunk)))
            for chunk in _chunks(len(rows.subjects))
        ]
        means, variances = (tf.concat(part, axis=0) for part in zip(*parts, strict=True))
        return tfd.Normal(tf.cast(means, tf.float32), tf.cast(tf.sqrt(variances), tf.float32))

    def _posterior(self, data: Data) -> tfp.distributions.Normal:
        """Returns the prior times the encoder's Gaussian, batch shape `(n, d)`."""
        prior, own = self._prior(data), self._pseudo_observation(data)
        precision = 1.0 / prior.variance() + 1.0 / own.variance()
        mean = (prior.loc / prior.variance() + own.loc / own.variance()) / precision
        return tfd.Normal(mean, tf.math.rsqrt(precision))

    def _pseudo_observation(self, data: Data) -> tfp.distributions.Normal:
        """Returns the encoder's Gaussian of every row, batch shape `(n, d)`."""
        x = self.features_.to_standard(self._known_features(data))
        parts = [self.network_.encoder(x[chunk]) for chunk in _chunks(len(x))]
        mean, log_var = (tf.concat(part, axis=0) for part in zip(*parts, strict=True))
        return tfd.Normal(mean, tf.exp(0.5 * log_var))

    def _decode(self, latent: tf.Tensor, data: Data) -> tf.Tensor:
        del data
        parts = [self.network_.decoder(latent[chunk]) for chunk in _chunks(len(latent))]
        return self.features_.to_units(tf.concat(parts, axis=0))

    def _error_variance(self, data: Data) -> FloatArray:
        del data
        return self.features_.error_variance()


def _chunks(n: int) -> list[slice]:
    return [slice(first, first + _ROWS_AT_ONCE) for first in range(0, n, _ROWS_AT_ONCE)]


def _where(rows: AuxiliaryRows, chunk: slice) -> tuple[tf.Tensor, tf.Tensor]:
    """Places and subjects of some rows, as the network takes them."""
    return tf.constant(rows.places[chunk], tf.float32), tf.constant(rows.subjects[chunk])
