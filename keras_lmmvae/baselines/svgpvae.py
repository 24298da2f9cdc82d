"""Variational autoencoder with a sparse Gaussian process prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from keras_lmmvae.baselines.base import Data, FloatArray, IntArray, Levels, number_column
from keras_lmmvae.baselines.calibration import without_calibration_rows
from keras_lmmvae.baselines.latent_variable import LatentVariableBaseline, in_chunks, joined
from keras_lmmvae.baselines.schedule import mean_noise_log_likelihood
from keras_lmmvae.baselines.sparse_gp import (
    InducingPosterior,
    InducingSums,
    inducing_posterior,
    inducing_sums,
    whitened_basis,
)
from keras_lmmvae.elbo import Gaussian
from keras_lmmvae.networks import LatentDecoder, LatentEncoder, dense_stack
from keras_lmmvae.refinement import Decoder
from keras_lmmvae.validation import check_positive, received

__all__ = [
    "AuxiliaryPoints",
    "AuxiliaryRows",
    "GPAutoencoder",
    "SVGPVAEBaseline",
    "inducing_centres",
    "subject_scores",
]

tfd = tfp.distributions

_FIRST_LENGTH_SCALE = 0.5  # initial length scale of standardised coordinates and times
_FIRST_SUBJECT_SCALE = 1.0  # initial standard deviation of subject vectors, as in their prior


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
        refine: Non-negative int, Gauss-Newton steps to the best latent of each row.
        calibration_split: Share of the training rows that are held out of the fit and give the
            noise variance.
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
        refine: int = 0,
        calibration_split: float = 0.0,
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
        self.refine = refine
        self.calibration_split = calibration_split
        self.seed = seed

    def fit(self, data: Data) -> Self:
        """Trains networks and kernel on `data` and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        check_positive("num_inducing", self.num_inducing, integer=True, minimum=1)
        check_positive("subject_dim", self.subject_dim, integer=True, minimum=1)
        self._check_training()
        data, held_out = without_calibration_rows(data, self.calibration_split, self.seed)
        x = self._known_features(data)
        rng = np.random.default_rng(self.seed)
        self.auxiliary_ = AuxiliaryPoints(data, self.coordinates, self.subject, self.time)
        rows = self.auxiliary_.rows(data)
        self.scaler_ = StandardScaler().fit(x)
        standardised = self._standardised(data)
        self.network_ = self._new_network(standardised, rows, rng)
        self._train(standardised, rows, rng)
        self.posterior_ = self._given_all(standardised, rows)
        self._calibrate(held_out)
        return self

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

    def _train(self, x: tf.Tensor, rows: AuxiliaryRows, rng: np.random.Generator) -> None:
        """Trains networks and kernel on batches of rows."""
        n, inputs = len(x), _inputs(rows)

        def bound(
            batch: tf.Tensor, generator: tf.random.Generator
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            size = tf.shape(batch)[0]
            draws = generator.normal((size, self.latent_dim))
            own = tf.nest.map_structure(lambda part: tf.gather(part, batch), inputs)
            loss, error = self._loss(tf.gather(x, batch), own, n, draws)
            return loss * tf.cast(size, tf.float32), tf.cast(size, tf.float32), error

        self._fit_network(bound, lambda rows: rows, n, math.ceil(n / self.batch_size), rng)

    def _loss(
        self, x: tf.Tensor, inputs: tuple[tf.Tensor, tf.Tensor], n: int, draws: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Negative bound per row, a scalar, estimated from a batch, and the errors of its rows."""
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

    def _prior(self, data: Data) -> Gaussian:
        """Returns the process given the training rows, batch `(n,)`, event `(d,)`."""

        def marginals(inputs: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            return self.posterior_.marginals(self.network_.basis(*inputs))

        means, variances = joined(in_chunks(marginals, _inputs(self.auxiliary_.rows(data))))
        deviations = tf.cast(tf.sqrt(variances), tf.float32)
        return tfd.MultivariateNormalDiag(tf.cast(means, tf.float32), deviations)

    def _training_prior(self, data: Data) -> Gaussian:
        return self._prior(data)

    def _posterior(self, data: Data) -> Gaussian:
        """Returns the prior times the encoder's Gaussian, batch `(n,)`, event `(d,)`."""
        prior, own = self._prior(data), self._pseudo_observation(data)
        precision = 1.0 / prior.variance() + 1.0 / own.variance()
        mean = (prior.loc / prior.variance() + own.loc / own.variance()) / precision
        return tfd.MultivariateNormalDiag(mean, tf.math.rsqrt(precision))

    def _pseudo_observation(self, data: Data) -> Gaussian:
        """Returns the encoder's Gaussian of every row, batch `(n,)`, event `(d,)`."""
        mean, log_var = joined(in_chunks(self.network_.encoder, self._standardised(data)))
        return tfd.MultivariateNormalDiag(mean, tf.exp(0.5 * log_var))

    def _decoder(self, data: Data) -> Decoder:
        del data
        return lambda latent: joined(in_chunks(self.network_.decoder, latent))


def _inputs(rows: AuxiliaryRows) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns places and subjects as tensors."""
    return tf.constant(rows.places, tf.float32), tf.constant(rows.subjects)


class AuxiliaryRows(NamedTuple):
    """Auxiliary data of some rows.

    Attributes:
        places: Float64 array `(n, c)`, standardised coordinates, then the standardised time.
        subjects: Int64 array `(n,)`, codes of the subjects, negative for unseen and null keys.
            All codes are 0 if there is no subject column.
    """

    places: FloatArray
    subjects: IntArray


class AuxiliaryPoints:
    """Reads coordinates, time and subject of rows and standardises them by the training rows.

    All coordinates are divided by the same number, the root of their mean variance, so that
    distances keep their proportions. Times are divided by their standard deviation.

    Attributes:
        parts: Numbers of columns with a common length scale: coordinates, time.
        levels: `Levels` of the subjects, or `None`.

    Example:
        >>> data = {"x": np.zeros((2, 1)), "t": np.array([1.0, 3.0])}
        >>> AuxiliaryPoints(data, None, None, "t").rows(data).places.ravel().tolist()
        [-1.0, 1.0]
    """

    def __init__(
        self,
        data: Data,
        coordinates: Sequence[str] | None,
        subject: str | None,
        time: str | None,
    ) -> None:
        if isinstance(coordinates, str):
            raise ValueError(
                "`coordinates` must be a sequence of column names. "
                + received(coordinates=coordinates)
            )
        groups = [list(coordinates or ()), [] if time is None else [time]]
        self.names = [name for group in groups for name in group]
        self.parts = [len(group) for group in groups if group]
        if not self.names and subject is None:
            raise ValueError(
                "At least one of `coordinates`, `subject` and `time` must name a column, as input "
                "of the Gaussian process. "
                + received(coordinates=coordinates, subject=subject, time=time)
            )
        places = self._places(data)
        self.mean = places.mean(axis=0)
        variance = places.var(axis=0)
        if coordinates:
            variance[: self.parts[0]] = variance[: self.parts[0]].mean()
        self.scale = np.sqrt(np.where(variance > 0.0, variance, 1.0))
        self.levels = None if subject is None else Levels(data, [subject])

    def rows(self, data: Data) -> AuxiliaryRows:
        """Returns standardised places and subject codes of the rows of `data`."""
        subjects = np.zeros(len(data["x"]), np.int64)
        if self.levels is not None:
            (subjects,) = self.levels.codes(data).values()
        return AuxiliaryRows((self._places(data) - self.mean) / self.scale, subjects)

    def _places(self, data: Data) -> FloatArray:
        columns = [number_column(data, name) for name in self.names]
        return np.stack(columns, axis=1) if columns else np.zeros((len(data["x"]), 0))


class GPAutoencoder(keras.Layer):
    """Encoder, decoder and trainable parameters of the kernel, in standardised units.

        k(a, a') = product over parts{ exp(-|a_part - a'_part|**2 / (2 length_scale_part**2)) }

    The parts are the coordinates, the time and the vector of the subject (length scale 1).

    Args:
        latent_dim: Positive int, `d`.
        num_features: Positive int, `p`.
        hidden_units: Widths of the layers of the encoder.
        parts: Numbers of place columns with a common length scale.
        subject_vectors: Initial vectors of the subjects, `(q, r)`, or `(1, 0)` without subjects.
        inducing_points: Initial points, `(m, c + r)`: places, then subject vectors.
        seed: Int that fixes the initial weights.
    """

    def __init__(
        self,
        latent_dim: int,
        num_features: int,
        hidden_units: Sequence[int],
        parts: Sequence[int],
        subject_vectors: FloatArray,
        inducing_points: FloatArray,
        seed: int,
    ) -> None:
        super().__init__()
        self.parts = tuple(parts)
        trunk = dense_stack(hidden_units, "relu", "encoder_trunk", None, seed)
        self.encoder = LatentEncoder(trunk, latent_dim, seed + 100)
        trunk = dense_stack(hidden_units[::-1], "relu", "decoder_trunk", None, seed + 200)
        self.decoder = LatentDecoder(trunk, num_features, seed=seed + 300)
        self.encoder.build((None, num_features))
        self.decoder.build((None, latent_dim))
        self.log_length_scales = self._weight(np.full(len(parts), np.log(_FIRST_LENGTH_SCALE)))
        self.subject_vectors = self._weight(subject_vectors)
        self.inducing_points = self._weight(inducing_points)

    def _weight(self, values: FloatArray) -> keras.Variable:
        weight = self.add_weight(shape=values.shape, initializer="zeros", trainable=values.size > 0)
        weight.assign(values)
        return weight

    def vectors(self, subjects: tf.Tensor) -> tf.Tensor:
        """Vectors of subjects `(b, r)`. A negative code gives 0, the prior mean of the vectors."""
        known = tf.gather(tf.convert_to_tensor(self.subject_vectors), tf.maximum(subjects, 0))
        return tf.where((subjects < 0)[:, None], 0.0, known)

    def basis(self, places: tf.Tensor, subjects: tf.Tensor) -> tf.Tensor:
        """Whitened kernel features of rows, float64 `(b, m)`."""
        points = tf.concat([places, self.vectors(subjects)], axis=1)
        inducing_points = tf.convert_to_tensor(self.inducing_points)
        return whitened_basis(self._in_scales(points), self._in_scales(inducing_points))

    def _in_scales(self, points: tf.Tensor) -> tf.Tensor:
        """Points in units of the length scales, float64."""
        log_scales = tf.repeat(tf.convert_to_tensor(self.log_length_scales), self.parts)
        rest = points.shape[1] - sum(self.parts)
        scales = tf.exp(tf.concat([log_scales, tf.zeros(rest)], axis=0))
        return tf.cast(points, tf.float64) / tf.cast(scales, tf.float64)


def subject_scores(x: FloatArray, subjects: np.ndarray, subject_dim: int) -> FloatArray:
    """Initial subject vectors `(q, r)`: scaled principal components of the subjects' mean features.

    Rows with a negative code are left out. Components beyond the rank of the means are 0.

    Example:
        >>> vectors = subject_scores(np.array([[1.0], [3.0], [3.0]]), np.array([0, 1, 1]), 2)
        >>> np.abs(vectors).round(6).tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    known = subjects >= 0
    rows = pd.DataFrame(x[known].astype(np.float64))
    means = rows.groupby(subjects[known]).mean().to_numpy()
    rank = min(subject_dim, *means.shape)
    scores = PCA(rank, svd_solver="full").fit_transform(means)
    scales = np.sqrt(np.square(scores).mean(axis=0))
    vectors = np.zeros((len(means), subject_dim))
    vectors[:, :rank] = _FIRST_SUBJECT_SCALE * scores / np.where(scales > 1e-9, scales, 1.0)
    return vectors


def inducing_centres(
    rows: AuxiliaryRows, vectors: FloatArray, num_inducing: int, seed: int
) -> FloatArray:
    """Initial inducing points by k-means over the rows, float64 `(m, c + r)`.

    There are fewer than `num_inducing` if the rows have fewer distinct points.
    """
    known = np.where((rows.subjects < 0)[:, None], 0.0, vectors[np.maximum(rows.subjects, 0)])
    points = np.concatenate([rows.places, known], axis=1)
    size = min(num_inducing, len(np.unique(points, axis=0)))
    clusters = KMeans(size, n_init=1, random_state=seed).fit(points)
    return np.asarray(clusters.cluster_centers_, np.float64)
