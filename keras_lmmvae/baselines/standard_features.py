"""Standardised features and the noise around their reconstruction, for the autoencoders."""

import numpy as np
import tensorflow as tf
from sklearn.preprocessing import StandardScaler

from keras_lmmvae.baselines.base import FloatArray
from keras_lmmvae.likelihood import NOISE_MOMENTUM, NOISE_VARIANCE_FLOOR

__all__ = ["StandardFeatures"]


class StandardFeatures:
    """Features in units of their own standard deviations, and the variance of their noise.

    The noise variance begins at 1 and follows the squared errors of the training batches.

    Args:
        x: Float64 array `(n, p)`; a constant feature is only centred.

    Attributes:
        noise_variance: `tf.Variable` `(p,)`, in standardised units.

    Example:
        >>> import numpy as np
        >>> features = StandardFeatures(np.array([[1.0], [3.0]]))
        >>> features.to_standard(np.array([[2.0], [4.0]])).numpy().ravel().tolist()
        [0.0, 2.0]
    """

    def __init__(self, x: FloatArray) -> None:
        self.scaler = StandardScaler().fit(x)
        self.noise_variance = tf.Variable(tf.ones(x.shape[1]), trainable=False)

    def to_standard(self, x: FloatArray) -> tf.Tensor:
        """Returns `(x - mean) / scale`, float32 `(n, p)`."""
        return tf.constant(self.scaler.transform(x), tf.float32)

    def to_units(self, standard: tf.Tensor) -> tf.Tensor:
        """Returns values `(n, p)` in the units of the features, float32."""
        scale = tf.constant(self.scaler.scale_, tf.float32)
        return standard * scale + tf.constant(self.scaler.mean_, tf.float32)

    def networks_noise_variance(self) -> tf.Tensor:
        """Returns the mean noise variance, a scalar: the loss weighs all features equally."""
        return tf.reduce_mean(self.noise_variance)

    def update_noise(self, error: tf.Tensor) -> None:
        """Moves the noise variance towards the mean squares of `error`, `(b, p)`, standardised."""
        mean = tf.reduce_mean(tf.square(error), axis=0)
        updated = NOISE_MOMENTUM * self.noise_variance + (1.0 - NOISE_MOMENTUM) * mean
        self.noise_variance.assign(tf.maximum(updated, NOISE_VARIANCE_FLOOR))

    def error_variance(self) -> FloatArray:
        """Returns the noise variance in squared units of the features, float64 `(p,)`."""
        standard: FloatArray = self.noise_variance.numpy().astype(np.float64)
        variance: FloatArray = standard * np.square(self.scaler.scale_)
        return variance
