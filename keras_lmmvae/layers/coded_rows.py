"""Checks and float types that the layers share."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_lmmvae.validation import received

__all__ = ["check_shapes", "unpack", "working_dtype"]

Shape = tuple[int | None, ...]


def working_dtype(layer: keras.Layer) -> tf.DType:
    """Float type of sums and solutions: the layer's own, but at least float32."""
    compute = tf.as_dtype(layer.compute_dtype)
    return tf.float32 if compute.size < 4 else compute


def check_shapes(
    layer: keras.Layer, first: str, shapes: Sequence[Any], axes: tuple[int, ...] = (2, 3)
) -> tuple[Shape, Shape, Shape | None]:
    """Checks the shapes of `[first, codes]` or `[first, codes, basis]` and returns all three.

    `axes` are the numbers of axes that the first input may have.
    """
    is_list = isinstance(shapes, (list, tuple)) and len(shapes) in (2, 3)
    ranks = [len(shape) for shape in shapes] if is_list else []
    if not is_list or ranks[0] not in axes or ranks[1] != 1 or ranks[2:] not in ([], [2]):
        numbers = " or ".join(str(number) for number in axes)
        raise ValueError(
            f"The layer '{layer.name}' must be called on [{first}, codes] or [{first}, codes, "
            f"basis], where {first} has {numbers} axes, codes has 1 and basis has 2. "
            + received(shapes=shapes)
        )
    basis = tuple(shapes[2]) if len(shapes) == 3 else None
    return tuple(shapes[0]), tuple(shapes[1]), basis


def unpack(
    layer: keras.Layer, first: str, inputs: Sequence[Any], axes: tuple[int, ...] = (2, 3)
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """The checked inputs: floats in `working_dtype`, codes in int32."""
    tensors = [tf.convert_to_tensor(value) for value in inputs]
    check_shapes(layer, first, [tuple(tensor.shape) for tensor in tensors], axes)
    values, codes, *rest = tensors
    if not codes.dtype.is_integer:
        raise ValueError(
            f"The codes of layer '{layer.name}' must be integers. "
            + received(dtype=codes.dtype.name)
        )
    dtype = working_dtype(layer)
    basis = tf.cast(rest[0], dtype) if rest else None
    return tf.cast(values, dtype), tf.cast(codes, tf.int32), basis
