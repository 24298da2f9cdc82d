"""The two recurrent networks of the variational recurrent autoencoder."""

from collections.abc import Sequence

import keras
import tensorflow as tf

__all__ = ["RecurrentAutoencoder"]

# No posterior variance that float32 arithmetic cannot tell from 0 or infinity.
_LOG_VAR_BOUNDS = (-14.0, 6.0)


class RecurrentAutoencoder(keras.layers.Layer):
    """Encoder and decoder of whole sequences, in standardised units.

        q(u[s]) = Normal(mean(h), exp(log_var(h))),  h = last state of LSTM((x[1], t[1]), ...)
        f(u[s])[1, 2, ...] = dense(LSTM((u[s], t[1]), (u[s], t[2]), ...))

    The decoder never reads the features. Steps with a mask of `False` leave the states as they
    are. cuDNN is not used: it takes only some masks, and answers would hang on the machine.

    Args:
        latent_dim: Positive int, `d`.
        num_features: Positive int, `p`.
        hidden_units: Widths of the encoder's LSTM layers, mirrored in the decoder.
        seed: Int that fixes the initial weights.
    """

    def __init__(
        self, latent_dim: int, num_features: int, hidden_units: Sequence[int], seed: int
    ) -> None:
        super().__init__()
        self.readers = _lstm_stack(hidden_units, seed, returns_last=True)
        self.writers = _lstm_stack(hidden_units[::-1], seed + 100, returns_last=False)
        self.mean_head = _dense(latent_dim, seed + 200)
        self.log_var_head = _dense(latent_dim, seed + 201)
        self.features_head = _dense(num_features, seed + 202)
        step = tf.ones((1, 1, num_features)), tf.ones((1, 1)), tf.ones((1, 1), tf.bool)
        mean, _ = self.encode(*step)
        self.decode(mean, *step[1:])  # weights exist from here on, before any graph is traced

    def encode(self, x: tf.Tensor, time: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log variance of q(u), each `(s, d)`.

        Args:
            x: Float tensor `(s, T, p)`; what stands at masked steps is of no matter.
            time: Float tensor `(s, T)`.
            mask: Bool tensor `(s, T)`, `True` at the steps that exist.
        """
        hidden = _read(self.readers, tf.concat([x, time[..., None]], axis=-1), mask)
        log_var = keras.ops.clip(self.log_var_head(hidden), *_LOG_VAR_BOUNDS)
        return self.mean_head(hidden), log_var

    def decode(self, latent: tf.Tensor, time: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Returns the features of every step, `(s, T, p)`, from latents `(s, d)`."""
        repeated = tf.repeat(latent[:, None, :], tf.shape(time)[1], axis=1)
        inputs = tf.concat([repeated, time[..., None]], axis=-1)
        return self.features_head(_read(self.writers, inputs, mask))


def _lstm_stack(
    hidden_units: Sequence[int], seed: int, returns_last: bool
) -> list[keras.layers.LSTM]:
    """LSTM layers; the last one gives its last state only, if asked."""
    return [
        keras.layers.LSTM(
            units,
            return_sequences=not (returns_last and number == len(hidden_units) - 1),
            kernel_initializer=keras.initializers.GlorotUniform(seed + 2 * number),
            recurrent_initializer=keras.initializers.Orthogonal(seed=seed + 2 * number + 1),
            use_cudnn=False,
        )
        for number, units in enumerate(hidden_units)
    ]


def _dense(width: int, seed: int) -> keras.layers.Dense:
    return keras.layers.Dense(width, kernel_initializer=keras.initializers.GlorotUniform(seed))


def _read(layers: Sequence[keras.layers.LSTM], values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    for layer in layers:
        values = layer(values, mask=mask)
    return values
