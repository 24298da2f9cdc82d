"""Layers that look up a trainable vector for every level of grouping factors."""

import math
from typing import Any

import keras
import tensorflow as tf

__all__ = ["LevelTable", "OneHotDense"]


class LevelTable(keras.Layer):
    """Embedding of levels. A negative code gives zeros.

        output[i, k] = table[codes[i, k]] if codes[i, k] >= 0 else 0

    The zeros are not a row of the table, so training does not change them. Keras' `Embedding`
    does not accept negative codes.

    Args:
        num_levels: Positive int, levels of all factors together.
        width: Positive int, length of the vectors.
        initializer: Keras initializer of the table.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        codes: Int tensor `(b, K)`.

    Returns:
        Float32 tensor `(b, K, width)`.

    Example:
        >>> LevelTable(3, 2, initializer="ones")(tf.constant([[1], [-1]])).numpy()[:, 0]
        array([[1., 1.],
               [0., 0.]], dtype=float32)
    """

    def __init__(self, num_levels: int, width: int, initializer: Any, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.num_levels = num_levels
        self.width = width
        self.initializer = keras.initializers.get(initializer)

    def build(self, input_shape: Any = None) -> None:
        self.table = self.add_weight(
            name="table",
            shape=(self.num_levels, self.width),
            initializer=self.initializer,
            dtype="float32",
            autocast=False,
        )
        self.built = True

    def call(self, codes: tf.Tensor) -> tf.Tensor:
        rows = tf.gather(tf.convert_to_tensor(self.table), tf.maximum(codes, 0))
        return tf.where((codes >= 0)[..., None], rows, tf.zeros_like(rows))


class OneHotDense(keras.Layer):
    """Dense layer on the features and the one-hot coded levels, without the one-hot columns.

        output[i] = activation(x[i] @ kernel + sum{ table[codes[i, k]] : k=1...K } + bias)

    A one-hot vector times a kernel is a row of the kernel. `table` has the rows of the kernel that
    belong to the levels, and the layer gathers them. Function, gradients and the distribution of
    the initial weights are those of a dense layer. The cost is `K` rows instead of `q` columns.
    A negative code is coded as zeros.

    Args:
        units: Positive int, width of the output.
        num_features: Positive int, `p`.
        num_levels: Positive int, levels of all factors together, `q`.
        activation: Activation.
        seed: Optional int that fixes the initial weights.
        **kwargs: Arguments of `keras.Layer`.

    Call arguments:
        x: Float tensor `(b, p)`.
        codes: Int tensor `(b, K)`, positions among the levels of all factors.

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
        # The limit of Glorot's initializer for a kernel with p + q inputs.
        limit = math.sqrt(6.0 / (num_features + num_levels + units))
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
