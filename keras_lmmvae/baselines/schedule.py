"""How the autoencoders are trained: checks of the arguments, the optimizer and the noise."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_lmmvae.likelihood import NOISE_MOMENTUM, NOISE_VARIANCE_FLOOR, gaussian_log_likelihood
from keras_lmmvae.validation import check_not_negative, check_positive, received

__all__ = [
    "check_training",
    "cosine_adam",
    "mean_noise_log_likelihood",
    "updated_noise_variance",
]


def check_training(
    *,
    hidden_units: Sequence[int],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    kl_weight: float,
) -> None:
    """Raises a ValueError if an argument of the training is out of its range."""
    if isinstance(hidden_units, int) or len(hidden_units) == 0:
        raise ValueError(
            "`hidden_units` must be a list with the width of at least one layer. "
            + received(hidden_units=hidden_units)
        )
    for units in hidden_units:
        check_positive("hidden_units", units, integer=True, minimum=1)
    check_positive("epochs", epochs, integer=True, minimum=1)
    check_positive("batch_size", batch_size, integer=True, minimum=1)
    check_positive("learning_rate", learning_rate)
    check_not_negative("kl_weight", kl_weight)


def cosine_adam(
    learning_rate: float, num_rows: int, batch_size: int, epochs: int
) -> keras.optimizers.Adam:
    """Adam with a learning rate that falls to 0 over the training, by Keras' `CosineDecay`.

    Args:
        learning_rate: Positive float, learning rate of the first step.
        num_rows: Positive int, number of training rows.
        batch_size: Positive int, rows per step. The last step of an epoch may have fewer.
        epochs: Positive int.

    Example:
        >>> optimizer = cosine_adam(1e-3, num_rows=1000, batch_size=100, epochs=3)
        >>> optimizer._learning_rate.decay_steps
        30
    """
    steps = math.ceil(num_rows / batch_size) * epochs
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps))


def mean_noise_log_likelihood(error: tf.Tensor, noise_variance: tf.Tensor) -> tf.Tensor:
    """Log likelihood of errors `(b, p)` at the mean of the noise variances `(p,)`: `(b,)`, nats.

    As in `LMMVAE`, the networks are trained with one noise variance for all features, so that all
    features have equal weights.
    """
    noise_variance = tf.convert_to_tensor(noise_variance)
    mean = tf.fill(noise_variance.shape, tf.reduce_mean(noise_variance))
    return gaussian_log_likelihood(error, mean, None)


def updated_noise_variance(noise_variance: tf.Tensor, error: tf.Tensor) -> tf.Tensor:
    """Noise variance `(p,)` after a step with errors `(b, p)`: a running mean of their squares."""
    squares = tf.reduce_mean(tf.square(error), axis=0)
    updated = NOISE_MOMENTUM * noise_variance + (1.0 - NOISE_MOMENTUM) * squares
    return tf.maximum(updated, NOISE_VARIANCE_FLOOR)
