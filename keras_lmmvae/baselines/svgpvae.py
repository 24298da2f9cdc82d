"""Variational autoencoder with a sparse Gaussian process prior."""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.preprocessing import StandardScaler

from keras_lmmvae.baselines.auxiliary_points import AuxiliaryPoints, AuxiliaryRows
from keras_lmmvae.baselines.base import Data
from keras_lmmvae.baselines.gp_autoencoder import GPAutoencoder, inducing_centres, subject_scores
from keras_lmmvae.baselines.latent_variable import LatentVariableBaseline, in_chunks, joined
from keras_lmmvae.baselines.noise import mean_noise_log_likelihood, updated_noise_variance
from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.baselines.sparse_gp import (
    InducingPosterior,
    InducingSums,
    inducing_posterior,
    inducing_sums,
)
from keras_lmmvae.validation import check_positive

__all__ = ["SVGPVAEBaseline"]

tfd = tfp.distributions


class SVGPVAEBaseline(LatentVariableBaseline):
    """Autoencoder whose latents are Gaussian processes over coordinates, time or subjects.

        x[i] = f(u[i]) + e[i],  u[:, k] ~ GaussianProcess(0, kernel) for k=1...d
        kernel = RBF(coordinates) * RBF(time) * RBF(subject vectors),  those that are named

    The encoder gives each row a pseudo-observation Normal(value, variance) of its latent. In each
    step the pseudo-observations of the batch, weighted up to all rows, give the posterior of the
    process at `num_inducing` points in closed form. Rows are decoded from draws of its marginals.
    The paper's cross-entropy and its bound of the inner regression have the same data terms, so
    the objective is

        sum_i E[log p(x[i] | u[i])] - kl_weight * KL(q(inducing values) || p(inducing values))

    After training, the posterior at the inducing points is computed once from all training rows.
    Each row of later calls is treated as new. Its prior is the process given the training rows.
    Its posterior is this prior times the encoder's Gaussian of the row. Training rows that are
    passed again are therefore counted twice. Unseen and null keys have the prior mean of the
    subject vectors.

    Length scales, inducing points and subject vectors are trained with the networks. The inducing
    points are initialised by k-means. The subject vectors have a standard normal prior and are
    initialised by principal components of the subject means. Distances are Euclidean.

    Args:
        latent_dim: Positive int, `d`.
        coordinates: Names of the columns of coordinates, or `None`.
        subject: Name of the column with the keys of the subjects, or `None`.
        time: Name of the column with the times, or `None`.
        num_inducing: Positive int, maximum number `m` of inducing points. There are fewer if the
            training rows have fewer distinct places.
        subject_dim: Positive int, length of the subject vectors.
        hidden_units: Widths of the dense layers of the encoder. The decoder has the same in
            reverse order.
        epochs: Positive int, passes over the training rows.
        batch_size: Positive int, maximum number of rows per step.
        learning_rate: Positive float, learning rate of the first step.
        kl_weight: Non-negative float, weight of the KL divergence in training.
        seed: Optional int that fixes initial weights, clusters, batches and draws.

    Attributes:
        scaler_: `StandardScaler` of the features.
        noise_variance_: Float64 array `(p,)`, in squared units of the features.
        auxiliary_: `AuxiliaryPoints`.
        network_: `GPAutoencoder`.
        posterior_: `InducingPosterior` given all training rows.
        losses_: List of floats, training loss per row of each epoch, nats.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if an argument is out of range or a column is missing or invalid.

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
        self.scaler_ = StandardScaler().fit(x)
        standardised = self._standardised(data)
        self.network_ = self._new_network(standardised, rows, rng)
        self._noise = tf.Variable(tf.ones(x.shape[1]), trainable=False)
        self.losses_ = self._train(standardised, rows, rng)
        self.noise_variance_ = self._noise_in_units(self._noise)
        self.posterior_ = self._given_all(standardised, rows)
        return self

    def _check_arguments(self) -> None:
        check_positive("num_inducing", self.num_inducing, integer=True, minimum=1)
        check_positive("subject_dim", self.subject_dim, integer=True, minimum=1)
        self._check_training()

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
        """Trains on batches of rows in random order and returns the losses of the epochs."""
        n = len(x)
        num_steps = math.ceil(n / self.batch_size)
        variables = self.network_.trainable_variables
        optimizer = cosine_adam(self.learning_rate, n, self.batch_size, self.epochs)
        optimizer.build(variables)
        generator = tf.random.Generator.from_seed(int(rng.integers(2**31)))
        inputs = _inputs(rows)

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int64)])
        def step(batch: tf.Tensor) -> tf.Tensor:
            draws = generator.normal((tf.shape(batch)[0], self.latent_dim))
            with tf.GradientTape() as tape:
                own = tf.nest.map_structure(lambda part: tf.gather(part, batch), inputs)
                loss, error = self._loss(tf.gather(x, batch), own, n, draws)
            optimizer.apply(tape.gradient(loss, variables), variables)
            self._noise.assign(updated_noise_variance(self._noise, error))
            return loss * tf.cast(tf.shape(batch)[0], tf.float32)

        losses = []
        for _ in range(self.epochs):
            batches = np.array_split(rng.permutation(n), num_steps)
            losses.append(sum(float(step(batch)) for batch in batches) / n)
        return losses

    def _loss(
        self, x: tf.Tensor, inputs: tuple[tf.Tensor, tf.Tensor], n: int, draws: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Negative bound per row, estimated from a batch, a scalar, and the errors of its rows.

        Args:
            x: Standardised features `(b, p)`.
            inputs: Places `(b, c)` and subjects `(b,)` of the rows.
            n: Number of all training rows.
            draws: Standard normal numbers `(b, d)`.
        """
        basis = self.network_.basis(*inputs)
        posterior = inducing_posterior(self._sums(x, basis), n / tf.shape(x)[0])
        mean, variance = posterior.marginals(basis)
        latent = tf.cast(mean, tf.float32) + tf.cast(tf.sqrt(variance), tf.float32) * draws
        error = x - self.network_.decoder(latent)
        density = tf.reduce_mean(mean_noise_log_likelihood(error, self._noise))
        divergence = tf.cast(tf.reduce_sum(posterior.divergence()), tf.float32)
        vectors = 0.5 * tf.reduce_sum(tf.square(self.network_.subject_vectors))
        return (self.kl_weight * divergence + vectors) / n - density, error

    def _sums(self, x: tf.Tensor, basis: tf.Tensor) -> InducingSums:
        """Returns the sums of the encoder's pseudo-observations of rows."""
        value, log_var = self.network_.encoder(x)
        variance = tf.exp(tf.cast(log_var, tf.float64))
        return inducing_sums(basis, tf.cast(value, tf.float64), variance)

    def _given_all(self, x: tf.Tensor, rows: AuxiliaryRows) -> InducingPosterior:
        """Returns the posterior at the inducing points given all training rows."""

        def sums(part: tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]) -> InducingSums:
            return self._sums(part[0], self.network_.basis(*part[1]))

        first, *others = in_chunks(sums, (x, _inputs(rows)))
        return inducing_posterior(sum(others, first))

    def _prior(self, data: Data) -> tfp.distributions.Normal:
        """Returns the process given the training rows, batch shape `(n, d)`."""

        def marginals(inputs: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            return self.posterior_.marginals(self.network_.basis(*inputs))

        means, variances = joined(in_chunks(marginals, _inputs(self.auxiliary_.rows(data))))
        return tfd.Normal(tf.cast(means, tf.float32), tf.cast(tf.sqrt(variances), tf.float32))

    def _posterior(self, data: Data) -> tfp.distributions.Normal:
        """Returns the prior times the encoder's Gaussian, batch shape `(n, d)`."""
        prior, own = self._prior(data), self._pseudo_observation(data)
        precision = 1.0 / prior.variance() + 1.0 / own.variance()
        mean = (prior.loc / prior.variance() + own.loc / own.variance()) / precision
        return tfd.Normal(mean, tf.math.rsqrt(precision))

    def _pseudo_observation(self, data: Data) -> tfp.distributions.Normal:
        """Returns the encoder's Gaussian of every row, batch shape `(n, d)`."""
        mean, log_var = joined(in_chunks(self.network_.encoder, self._standardised(data)))
        return tfd.Normal(mean, tf.exp(0.5 * log_var))

    def _decode(self, latent: tf.Tensor, data: Data) -> tf.Tensor:
        del data
        return self._in_units(joined(in_chunks(self.network_.decoder, latent)))


def _inputs(rows: AuxiliaryRows) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns places and subjects as tensors."""
    return tf.constant(rows.places, tf.float32), tf.constant(rows.subjects)
