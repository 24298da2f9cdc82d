"""A dense layer of features and one-hot coded levels, without the one-hot."""

import math
from typing import Any

import keras
import tensorflow as tf

from keras_lmmvae.baselines.level_table import LevelTable

__all__ = ["OneHotDense"]


class OneHotDense(keras.Layer):
    """Dense layer of `[x, one-hot of every factor's level]`; a negative code is coded as zeros.

        output[i] = activation(x[i] @ kernel + sum{ table[codes[i, k]] : k=1...K } + bias)

    A one-hot vector times a kernel is a row of the kernel: `table` is the part of the dense
    layer's kernel that the one-hot columns meet, and its rows are gathered. The same function,
    initial weights' distribution and gradients as the dense computation, at the cost of `K` rows
    instead of `q` columns.

    Args:
        units: Positive int, width of the output.
        num_features: Positive int, `p`.
        num_levels: Positive int, levels of all factors together, `q`.
        activation: Activation.
        seed: Optional int that fixes the initial weights.
        **kwargs: Of `keras.Layer`.

    Call arguments:
        x: Float tensor `(b, p)`.
        codes: Int tensor `(b, K)` of places among the levels of all factors.

    Returns:
        Float tensor `(b, units)`.

    Example:
        >>> layer = OneHotDense(4, num_features=2, num_levels=3, activation="relu", seed=0)
        >>> layer(tf.zeros((5, 2)), tf.zeros((5, 1), tf.int32)).shape
        TensorShape([5, 4])
    """

    def __init__(
        self,
        units: int,
        num_features: int,
        num_levels: int,
        activation: Any,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        limit = math.sqrt(6.0 / (num_features + num_levels + units))  # Glorot's for both parts
        self.dense, self.levels = (
            keras.layers.Dense(units, kernel_initializer=_uniform(limit, seed), dtype=self.dtype),
            LevelTable(num_levels, units, _uniform(limit, None if seed is None else seed + 1)),
        )
        self.activation = keras.activations.get(activation)
        self.num_features = num_features

    def build(self, *input_shapes: Any, **named_shapes: Any) -> None:
        self.dense.build((None, self.num_features))
        self.levels.build()
        self.built = True

    def call(self, x: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        return self.activation(self.dense(x) + tf.reduce_sum(self.levels(codes), axis=1))


def _uniform(limit: float, seed: int | None) -> keras.initializers.Initializer:
    return keras.initializers.RandomUniform(-limit, limit, seed=seed)
