"""The optimizer of all autoencoders among the baselines."""

import math

import keras

__all__ = ["cosine_adam"]


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
