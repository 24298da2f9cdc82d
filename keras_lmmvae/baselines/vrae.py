"""Variational recurrent autoencoder: one latent vector for the sequence of rows of a subject."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import (
    Data,
    FloatArray,
    IntArray,
    is_null,
    key_column,
    number_column,
)
from keras_lmmvae.baselines.latent_variable import LatentVariableBaseline
from keras_lmmvae.baselines.schedule import mean_noise_log_likelihood
from keras_lmmvae.elbo import Gaussian, latent_kl
from keras_lmmvae.likelihood import gaussian_log_likelihood
from keras_lmmvae.refinement import Decoder
from keras_lmmvae.validation import check_positive

__all__ = ["PADDING", "RecurrentAutoencoder", "Sequences", "VRAEBaseline", "sequences_of"]

PADDING = -1
"""Row number of padded steps."""

tfd = tfp.distributions

_STEPS_AT_ONCE = 8192  # Inference is done in batches of padded steps, which limits its memory.
# Outside these bounds float32 arithmetic treats the posterior variance as 0 or infinity.
_LOG_VAR_BOUNDS = (-14.0, 6.0)


@dataclass(frozen=True)
class Sequences:
    """Rows of each sequence, as returned by `sequences_of`.

    Attributes:
        codes: Int64 array `(n,)`, number of the sequence of each row.
        order: Int64 array `(n,)`, row numbers, sorted by sequence.
        starts: Int64 array `(s,)`, position in `order` of the first row of each sequence.
        lengths: Int64 array `(s,)`, number of rows of each sequence.
    """

    codes: IntArray
    order: IntArray
    starts: IntArray
    lengths: IntArray

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, numbers: IntArray) -> IntArray:
        """Returns the row numbers of some sequences, int64 `(k, longest)`, `PADDING` at the end."""
        lengths = self.lengths[numbers, None]  # (k, 1)
        step = np.arange(lengths.max())
        place = self.starts[numbers, None] + np.minimum(step, lengths - 1)
        return np.where(step < lengths, self.order[place], PADDING)

    def batches(self, most_steps: int) -> Iterator[IntArray]:
        """Yields numbers of sequences of similar length, with at most `most_steps` padded steps.

        A longer sequence is a batch by itself.
        """
        by_length = np.argsort(self.lengths, kind="stable")
        first = 0
        for end in range(1, len(self) + 1):
            longest = self.lengths[by_length[min(end, len(self) - 1)]]
            if end == len(self) or (end + 1 - first) * longest > most_steps:
                yield by_length[first:end]
                first = end


@dataclass(frozen=True)
class _PackedRows:
    """Standardised features `(n, p)` and times `(n,)` of rows with their sequences."""

    x: tf.Tensor
    time: tf.Tensor
    sequences: Sequences

    def steps(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Features `(s, T, p)`, times and mask, each `(s, T)`, of padded row numbers `(s, T)`."""
        mask = tf.not_equal(rows, PADDING)
        number = tf.maximum(rows, 0)
        return tf.gather(self.x, number), tf.gather(self.time, number), mask


class VRAEBaseline(LatentVariableBaseline):
    """Variational recurrent autoencoder of longitudinal data: each sequence has one latent.

        x[i] = f(u[s], t[1], ..., t[i])[i] + e[i],  s the subject of row i, t its times in order
        u[s] ~ Normal(0, I_d),  e[i] ~ Normal(0, diag(noise_variance))

    The encoder is an LSTM that reads the rows and times of the subject and gives q(u[s]). The
    decoder is another LSTM. Its inputs at each step are `u[s]` and the time, so all rows of a
    subject are reconstructed from `d` numbers. Sequences are formed from the rows of the call: the
    held-out rows of a subject are a sequence with its own latent. A row with a null key is a
    sequence of one row.

    The bound is a bound for whole sequences. Each row gets an equal share of the bound of its
    sequence. The latents are the encoder's, and the noise variance that of training: refinement
    and calibration of `LatentVariableBaseline` are for latents of single rows.

    Args:
        latent_dim: Positive int, `d`, latent variables per sequence.
        subject: Name of the column with the keys of the subjects, str or int.
        time: Name of the column with the times, finite numbers.
        hidden_units: Widths of the LSTM layers of the encoder. The decoder has the same in
            reverse order.
        epochs: Positive int, passes over the training rows.
        batch_size: Positive int, average number of rows per step. Batches are whole sequences.
        learning_rate: Positive float, learning rate of the first step.
        kl_weight: Non-negative float, weight of KL(q(u) || p(u)) in training.
        seed: Optional int that fixes initial weights, batches and draws.

    Attributes:
        scaler_: `StandardScaler` of the features.
        time_scaler_: `StandardScaler` of the times.
        noise_variance_: Float64 array `(p,)`, in squared units of the features.
        network_: `RecurrentAutoencoder`.
        losses_: List of floats, training loss per row of each epoch, nats.
        n_features_in_: Int, number of features `p`.

    Raises:
        ValueError: In `fit`, if an argument is out of range or a column is missing or invalid.

    Example:
        >>> import numpy as np
        >>> data = {"x": np.random.default_rng(1).normal(size=(50, 4))}
        >>> data |= {"patient": np.arange(50) // 5, "visit": np.arange(50) % 5}
        >>> vrae = VRAEBaseline(2, subject="patient", time="visit", hidden_units=(8,), epochs=1)
        >>> vrae.fit(data).transform(data).shape
        (50, 2)

    References:
        - Fabius, O. & van Amersfoort, J. (2014), Variational recurrent auto-encoders,
          arXiv 1412.6581.
    """

    method: ClassVar[str] = "vrae"

    def __init__(
        self,
        latent_dim: int,
        *,
        subject: str,
        time: str,
        hidden_units: Sequence[int] = (128,),
        epochs: int = 25,
        batch_size: int = 128,
        learning_rate: float = 2e-3,
        kl_weight: float = 1.0,
        seed: int | None = None,
    ) -> None:
        self.latent_dim = latent_dim
        self.subject = subject
        self.time = time
        self.hidden_units = hidden_units
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.kl_weight = kl_weight
        self.seed = seed

    def fit(self, data: Data) -> Self:
        """Trains the networks on `data` and returns the baseline."""
        x = self._fit_features(data, self.latent_dim)
        self._check_training()
        times = number_column(data, self.time)
        rng = np.random.default_rng(self.seed)
        self.scaler_ = StandardScaler().fit(x)
        self.time_scaler_ = StandardScaler().fit(times[:, None])
        self.network_ = RecurrentAutoencoder(
            self.latent_dim, x.shape[1], tuple(self.hidden_units), int(rng.integers(2**31))
        )
        packed = self._packed(data)
        self._train(packed, rng)
        self._fit_prior(self._sequence_posterior(packed))
        return self

    def _train(self, packed: _PackedRows, rng: np.random.Generator) -> None:
        """Trains the networks on batches of sequences."""
        n, count = len(packed.sequences.codes), len(packed.sequences)
        num_steps = min(math.ceil(n / self.batch_size), count)

        def bound(
            rows: tf.Tensor, generator: tf.random.Generator
        ) -> tuple[tf.Tensor, float, tf.Tensor]:
            negative, error = self._negative_bound(packed, rows, generator)
            return negative, n / num_steps, error

        self._fit_network(bound, packed.sequences.rows, count, num_steps, rng)

    def _negative_bound(
        self, packed: _PackedRows, rows: tf.Tensor, generator: tf.random.Generator
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Negative bound of a batch with one draw, a scalar, and the errors of its rows."""
        x, time, mask = packed.steps(rows)
        mean, log_var = self.network_.encode(x, time, mask)
        latent = mean + tf.exp(0.5 * log_var) * generator.normal(tf.shape(mean))
        error = tf.boolean_mask(x - self.network_.decode(latent, time, mask), mask)
        density = tf.reduce_sum(mean_noise_log_likelihood(error, self._noise))
        return self.kl_weight * tf.reduce_sum(latent_kl(mean, log_var)) - density, error

    def log_likelihood(self, data: Data, num_samples: int = 0) -> FloatArray:
        """Returns the share of each row in the bound of its sequence, float64 `(n,)`, nats.

        The KL divergence and the importance weights belong to sequences, not to rows.
        """
        check_is_fitted(self)
        check_positive("num_samples", num_samples, integer=True, minimum=0)
        packed = self._packed(data)
        sequences, variance = packed.sequences, self._standard_variance(data)

        def density(latent: tf.Tensor) -> tf.Tensor:
            error = packed.x - self._decode_sequences(latent, packed)
            rows = gaussian_log_likelihood(error, variance, None)
            return tf.math.unsorted_segment_sum(rows, sequences.codes, len(sequences))

        posterior, prior = self._sequence_posterior(packed), self._prior(data)
        bound = np.asarray(self._bound(density, posterior, prior, num_samples), np.float64)
        shares = (bound / sequences.lengths)[sequences.codes]
        return shares - np.log(self.scaler_.scale_).sum()

    def _posterior(self, data: Data) -> Gaussian:
        """Returns q(u) of the sequence of each row, batch `(n,)`, event `(d,)`."""
        packed = self._packed(data)
        posterior = self._sequence_posterior(packed)
        codes = packed.sequences.codes
        means, deviations = posterior.loc, posterior.stddev()
        return tfd.MultivariateNormalDiag(tf.gather(means, codes), tf.gather(deviations, codes))

    def _decoder(self, data: Data) -> Decoder:
        """Returns the decoder of these rows. All rows of a sequence have the same latent."""
        packed = self._packed(data)
        first = packed.sequences.order[packed.sequences.starts]
        return lambda latent: self._decode_sequences(tf.gather(latent, first), packed)

    def _packed(self, data: Data) -> _PackedRows:
        """Returns the checked and standardised rows with their sequences."""
        x = self._known_features(data)
        times = number_column(data, self.time)
        return _PackedRows(
            self._standardised(data),
            tf.constant(self.time_scaler_.transform(times[:, None])[:, 0], tf.float32),
            sequences_of(key_column(data, self.subject), times, x),
        )

    def _sequence_posterior(self, packed: _PackedRows) -> Gaussian:
        """Returns q(u), batch `(s,)`, event `(d,)`."""
        count = len(packed.sequences)
        mean = np.empty((count, self.latent_dim), np.float32)
        log_var = np.empty_like(mean)
        for numbers in packed.sequences.batches(_STEPS_AT_ONCE):
            steps = packed.steps(packed.sequences.rows(numbers))
            mean[numbers], log_var[numbers] = self.network_.encode(*steps)
        return tfd.MultivariateNormalDiag(tf.constant(mean), tf.exp(0.5 * tf.constant(log_var)))

    def _decode_sequences(self, latent: tf.Tensor, packed: _PackedRows) -> tf.Tensor:
        """Returns the standardised reconstruction of the rows, `(n, p)`, from latents `(s, d)`."""
        standardised = np.empty(packed.x.shape, np.float32)
        for numbers in packed.sequences.batches(_STEPS_AT_ONCE):
            rows = packed.sequences.rows(numbers)
            _, time, mask = packed.steps(rows)
            decoded = self.network_.decode(tf.gather(latent, numbers), time, mask)
            standardised[rows[rows != PADDING]] = decoded.numpy()[rows != PADDING]
        return tf.constant(standardised)


class RecurrentAutoencoder(keras.Layer):
    """Encoder and decoder of whole sequences, in standardised units.

        q(u[s]) = Normal(mean(h), exp(log_var(h))),  h = last state of LSTM((x[1], t[1]), ...)
        f(u[s])[1, 2, ...] = dense(LSTM((u[s], t[1]), (u[s], t[2]), ...))

    The decoder does not have the features as inputs. Steps with a mask of `False` do not change the
    states. cuDNN is not used, because it accepts only some masks and gives other results than
    the CPU.
    """

    def __init__(
        self, latent_dim: int, num_features: int, hidden_units: Sequence[int], seed: int
    ) -> None:
        super().__init__()
        self.readers = _lstm_stack(num_features + 1, hidden_units, seed, returns_last=True)
        self.writers = _lstm_stack(latent_dim + 1, hidden_units[::-1], seed + 100)
        self.mean_head = _dense(hidden_units[-1], latent_dim, seed + 200)
        self.log_var_head = _dense(hidden_units[-1], latent_dim, seed + 201)
        self.features_head = _dense(hidden_units[0], num_features, seed + 202)

    @tf.function(reduce_retracing=True, autograph=False)
    def encode(self, x: tf.Tensor, time: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log variance of q(u), each `(s, d)`, from features `(s, T, p)`."""
        hidden = _read(self.readers, tf.concat([x, time[..., None]], axis=-1), mask)
        log_var = keras.ops.clip(self.log_var_head(hidden), *_LOG_VAR_BOUNDS)
        return self.mean_head(hidden), log_var

    @tf.function(reduce_retracing=True, autograph=False)
    def decode(self, latent: tf.Tensor, time: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Returns the features of every step, `(s, T, p)`, from latents `(s, d)`."""
        repeated = tf.repeat(latent[:, None, :], tf.shape(time)[1], axis=1)
        inputs = tf.concat([repeated, time[..., None]], axis=-1)
        return self.features_head(_read(self.writers, inputs, mask))


def _lstm_stack(
    width: int, hidden_units: Sequence[int], seed: int, returns_last: bool = False
) -> list[keras.layers.LSTM]:
    """Built LSTM layers for inputs of `width`. The last one may return only its last state."""
    layers = []
    for number, units in enumerate(hidden_units):
        layer = keras.layers.LSTM(
            units,
            return_sequences=not (returns_last and number == len(hidden_units) - 1),
            kernel_initializer=keras.initializers.GlorotUniform(seed + 2 * number),
            recurrent_initializer=keras.initializers.Orthogonal(seed=seed + 2 * number + 1),
            use_cudnn=False,
        )
        layer.build((None, None, width))
        layers.append(layer)
        width = units
    return layers


def _dense(width: int, units: int, seed: int) -> keras.layers.Dense:
    layer = keras.layers.Dense(units, kernel_initializer=keras.initializers.GlorotUniform(seed))
    layer.build((None, width))
    return layer


def _read(layers: Sequence[keras.layers.LSTM], values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    for layer in layers:
        values = layer(values, mask=mask)
    return values


def sequences_of(keys: np.ndarray, time: FloatArray, x: FloatArray) -> Sequences:
    """Groups rows by key and sorts each group by time.

    Rows with equal times are sorted by their features, so that the order of the data has no
    influence. Each row with a null key is a sequence by itself.

    Example:
        >>> keys, time = np.array([7, 3, 7]), np.array([2.0, 0.0, 1.0])
        >>> sequences_of(keys, time, np.zeros((3, 1))).rows(np.array([0, 1]))
        array([[ 1, -1],
               [ 2,  0]])
    """
    missing = is_null(keys)
    codes = np.empty(len(keys), np.int64)
    present, levels = pd.factorize(keys[~missing], sort=True)
    codes[~missing] = present
    codes[missing] = len(levels) + np.arange(missing.sum())
    order = np.lexsort((*x.T[::-1], time, codes))
    lengths = np.bincount(codes)
    return Sequences(codes, order, np.cumsum(lengths) - lengths, lengths)
