"""Encoder and decoder of the variational recurrent autoencoder."""

from collections.abc import Sequence

import keras
import tensorflow as tf

__all__ = ["RecurrentAutoencoder"]

# Outside these bounds float32 arithmetic treats the posterior variance as 0 or infinity.
_LOG_VAR_BOUNDS = (-14.0, 6.0)


class RecurrentAutoencoder(keras.Layer):
    """Encoder and decoder of whole sequences, in standardised units.

        q(u[s]) = Normal(mean(h), exp(log_var(h))),  h = last state of LSTM((x[1], t[1]), ...)
        f(u[s])[1, 2, ...] = dense(LSTM((u[s], t[1]), (u[s], t[2]), ...))

    The decoder does not have the features as inputs. Steps with a mask of `False` do not change the
    states. cuDNN is not used, because it accepts only some masks and gives other results than
    the CPU.

    Args:
        latent_dim: Positive int, `d`.
        num_features: Positive int, `p`.
        hidden_units: Widths of the LSTM layers of the encoder. The decoder has the same in
            reverse order.
        seed: Int that fixes the initial weights.
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

    @tf.function(reduce_retracing=True)
    def encode(self, x: tf.Tensor, time: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mean and log variance of q(u), each `(s, d)`.

        Args:
            x: Float tensor `(s, T, p)`. Values at masked steps have no influence.
            time: Float tensor `(s, T)`.
            mask: Bool tensor `(s, T)`, `False` at padded steps.
        """
        hidden = _read(self.readers, tf.concat([x, time[..., None]], axis=-1), mask)
        log_var = keras.ops.clip(self.log_var_head(hidden), *_LOG_VAR_BOUNDS)
        return self.mean_head(hidden), log_var

    @tf.function(reduce_retracing=True)
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
