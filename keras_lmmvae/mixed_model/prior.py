"""The prior of one level's effects."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae import linalg
from keras_lmmvae.layers.state_layer import StateLayer

__all__ = ["EFFECT_VARIANCE_FLOOR", "LevelPrior"]

EFFECT_VARIANCE_FLOOR = 1e-6
"""Smallest effect variance, as a share of the variance of a standardised feature. A term whose
variance is there counts as absent."""


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LevelPrior(StateLayer):
    """Normal prior of the effects of a level, independent between levels.

        B[l, :, f] ~ Normal(0, effect_variance[f] * Psi)

    `Psi`, `(m, m)`, is the covariance of a level's coefficients up to the feature's variance. It
    is the identity, or it is learned and has trace `m`.

    Args:
        basis_size: Positive int, `m`.
        num_features: Positive int, `p`.
        learn_coefficient_covariance: Whether `Psi` is learned.
    """

    def __init__(
        self,
        basis_size: int,
        num_features: int,
        learn_coefficient_covariance: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.basis_size = basis_size
        self.num_features = num_features
        self.learn_coefficient_covariance = learn_coefficient_covariance

    def build(self, input_shape: Any = None) -> None:
        self.effect_variance = self.state("effect_variance", (self.num_features,), "ones")
        self.coefficient_covariance = self.state(
            "coefficient_covariance", (self.basis_size,) * 2, keras.initializers.Identity()
        )

    def inverse_block(self, dtype: Any = "float32") -> tf.Tensor:
        """`inv(Psi)`, `(m, m)`."""
        if not self.learn_coefficient_covariance:
            return tf.eye(self.basis_size, dtype=dtype)
        return linalg.inverse_psi(tf.cast(self.coefficient_covariance, dtype))

    def product(self, effects: tf.Tensor) -> tf.Tensor:
        """`inv(Psi) @ effects / effect_variance`, `(..., m, p)`."""
        if self.learn_coefficient_covariance:
            effects = tf.einsum("ij,...jf->...if", self.inverse_block(), effects)
        return effects / self.effect_variance

    def row_variance(self, basis: tf.Tensor | None, size: tf.Tensor) -> tf.Tensor:
        """Prior variance of rows' `phi' B`, `(b, p)`, for levels never seen."""
        if basis is None:
            return tf.broadcast_to(self.effect_variance.value, (size, self.num_features))
        return self.quadratic(basis)[:, None] * self.effect_variance

    def quadratic(self, basis: tf.Tensor) -> tf.Tensor:
        """`phi' Psi phi`, `(b,)`."""
        return tf.einsum("bi,ij,bj->b", basis, self.coefficient_covariance, basis)

    def assign(self, effect_variance: np.ndarray, coefficient_covariance: Any = None) -> None:
        """Sets the variances, and `Psi` where one is given."""
        self.effect_variance.assign(np.maximum(effect_variance, EFFECT_VARIANCE_FLOOR))
        if coefficient_covariance is not None:
            self.coefficient_covariance.assign(coefficient_covariance)
