"""Variational recurrent autoencoder: one latent vector for the sequence of rows of a subject."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.baselines.columns import key_column, number_column
from keras_lmmvae.baselines.latent_variable import LatentVariableBaseline
from keras_lmmvae.baselines.noise import mean_noise_log_likelihood, updated_noise_variance
from keras_lmmvae.baselines.recurrent_network import RecurrentAutoencoder
from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.baselines.sequences import PADDING, Sequences, sequences_of
from keras_lmmvae.elbo import latent_kl
from keras_lmmvae.likelihood import gaussian_log_likelihood
from keras_lmmvae.validation import check_positive

__all__ = ["VRAEBaseline"]

tfd = tfp.distributions

_STEPS_AT_ONCE = 8192  # Inference is done in batches of padded steps, which limits its memory.


@dataclass(frozen=True)
class _PackedRows:
    """Standardised rows with their sequences.

    Attributes:
        x: Float32 tensor `(n, p)`.
        time: Float32 tensor `(n,)`.
        sequences: The sequences of the rows.
    """

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
    sequence.

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
        self._noise = tf.Variable(tf.ones(x.shape[1]), trainable=False)
        self.losses_ = self._train(self._packed(data), rng)
        self.noise_variance_ = self._noise_in_units(self._noise)
        return self

    def _train(self, packed: _PackedRows, rng: np.random.Generator) -> list[float]:
        """Trains on batches of sequences in random order and returns the losses of the epochs."""
        n, count = len(packed.sequences.codes), len(packed.sequences)
        num_steps = min(math.ceil(n / self.batch_size), count)
        optimizer = cosine_adam(self.learning_rate, num_steps, 1, self.epochs)
        optimizer.build(self.network_.trainable_variables)
        generator = tf.random.Generator.from_seed(int(rng.integers(2**31)))

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int64)])
        def step(rows: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                negative, error = self._negative_bound(packed, rows, generator)
                loss = negative * (num_steps / n)
            variables = self.network_.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            self._noise.assign(updated_noise_variance(self._noise, error))
            return negative

        losses = []
        for _ in range(self.epochs):
            batches = np.array_split(rng.permutation(count), num_steps)
            total = sum(float(step(packed.sequences.rows(batch))) for batch in batches)
            losses.append(total / n)
        return losses

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

        Args:
            data: Dict with `x`, `(n, p)`, and the columns that were fitted.
            num_samples: Non-negative int. 0 gives the evidence lower bound. A positive number
                gives the importance-weighted bound with that many draws.
        """
        check_is_fitted(self)
        check_positive("num_samples", num_samples, integer=True, minimum=0)
        x = tf.cast(self._known_features(data), tf.float32)
        packed = self._packed(data)
        sequences = packed.sequences
        variance = tf.cast(self._error_variance(data), tf.float32)

        def density(latent: tf.Tensor) -> tf.Tensor:
            error = x - self._decode_sequences(latent, packed)
            rows = gaussian_log_likelihood(error, variance, None)
            return tf.math.unsorted_segment_sum(rows, sequences.codes, len(sequences))

        posterior, prior = self._sequence_posterior(packed), tfd.Normal(0.0, 1.0)
        bound = np.asarray(self._bound(density, posterior, prior, num_samples), np.float64)
        return (bound / sequences.lengths)[sequences.codes]

    def _posterior(self, data: Data) -> tfp.distributions.Normal:
        """Returns q(u) of the sequence of each row, batch shape `(n, d)`."""
        packed = self._packed(data)
        posterior = self._sequence_posterior(packed)
        codes = packed.sequences.codes
        return tfd.Normal(tf.gather(posterior.loc, codes), tf.gather(posterior.scale, codes))

    def _decode(self, latent: tf.Tensor, data: Data) -> tf.Tensor:
        """Returns the reconstruction, `(n, p)`. All rows of a sequence have the same latent."""
        packed = self._packed(data)
        first = packed.sequences.order[packed.sequences.starts]
        return self._decode_sequences(tf.gather(latent, first), packed)

    def _packed(self, data: Data) -> _PackedRows:
        """Returns the checked and standardised rows with their sequences."""
        x = self._known_features(data)
        times = number_column(data, self.time)
        return _PackedRows(
            self._standardised(data),
            tf.constant(self.time_scaler_.transform(times[:, None])[:, 0], tf.float32),
            sequences_of(key_column(data, self.subject), times, x),
        )

    def _sequence_posterior(self, packed: _PackedRows) -> tfp.distributions.Normal:
        """Returns q(u), batch shape `(s, d)`."""
        count = len(packed.sequences)
        mean = np.empty((count, self.latent_dim), np.float32)
        log_var = np.empty_like(mean)
        for numbers in packed.sequences.batches(_STEPS_AT_ONCE):
            steps = packed.steps(packed.sequences.rows(numbers))
            mean[numbers], log_var[numbers] = self.network_.encode(*steps)
        return tfd.Normal(tf.constant(mean), tf.exp(0.5 * tf.constant(log_var)))

    def _decode_sequences(self, latent: tf.Tensor, packed: _PackedRows) -> tf.Tensor:
        """Returns the reconstruction of the rows, `(n, p)` in units, from latents `(s, d)`."""
        standardised = np.empty(packed.x.shape, np.float32)
        for numbers in packed.sequences.batches(_STEPS_AT_ONCE):
            rows = packed.sequences.rows(numbers)
            _, time, mask = packed.steps(rows)
            decoded = self.network_.decode(tf.gather(latent, numbers), time, mask)
            standardised[rows[rows != PADDING]] = decoded.numpy()[rows != PADDING]
        return self._in_units(tf.constant(standardised))
