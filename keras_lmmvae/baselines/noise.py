"""The noise of the autoencoders during training, for standardised features."""

import tensorflow as tf

from keras_lmmvae.likelihood import NOISE_MOMENTUM, NOISE_VARIANCE_FLOOR, gaussian_log_likelihood

__all__ = ["mean_noise_log_likelihood", "updated_noise_variance"]


def mean_noise_log_likelihood(error: tf.Tensor, noise_variance: tf.Tensor) -> tf.Tensor:
    """Log likelihood of errors at the mean noise variance, `(b,)`, nats.

    As in `LMMVAE`, the networks are trained with one noise variance for all features, so that all
    features have equal weights.

    Args:
        error: Float tensor `(b, p)`.
        noise_variance: Float tensor `(p,)`.
    """
    noise_variance = tf.convert_to_tensor(noise_variance)
    mean = tf.fill(noise_variance.shape, tf.reduce_mean(noise_variance))
    return gaussian_log_likelihood(error, mean, None)


def updated_noise_variance(noise_variance: tf.Tensor, error: tf.Tensor) -> tf.Tensor:
    """Noise variance after a training step, `(p,)`: a running mean of squared errors.

    Args:
        noise_variance: Float tensor `(p,)`.
        error: Float tensor `(b, p)`, the errors of the batch.
    """
    squares = tf.reduce_mean(tf.square(error), axis=0)
    updated = NOISE_MOMENTUM * noise_variance + (1.0 - NOISE_MOMENTUM) * squares
    return tf.maximum(updated, NOISE_VARIANCE_FLOOR)
