"""A trainable vector for every level of grouping factors."""

from typing import Any

import keras
import tensorflow as tf

__all__ = ["LevelTable"]


class LevelTable(keras.Layer):
    """Rows of one table, looked up by code; a negative code gives zeros.

        output[i, k] = table[codes[i, k]] if codes[i, k] >= 0 else 0

    The zeros are no row of the table, so that training cannot move them.

    Args:
        num_levels: Positive int, levels of all factors together.
        width: Positive int, length of the vectors.
        initializer: Keras initializer of the table.
        **kwargs: Of `keras.Layer`.

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
