"""What every public layer owes its users, checked by one function."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["check"]

Layer = keras.layers.Layer
Arrays = Sequence[np.ndarray]


def check(
    layer_class: type[Layer],
    kwargs: dict[str, Any],
    inputs: Arrays,
    make_model: Callable[[Layer], keras.Model],
    rows: Arrays,
    folder: Path,
    *,
    num_weights: int = 0,
) -> None:
    """Checks a layer alone and inside a functional model.

    Args:
        layer_class: The class.
        kwargs: Its arguments.
        inputs: What the layer is called on.
        make_model: Function that puts a layer into a functional model with some weights and one
            float output `(b, k)`, which every weight reaches through the layer.
        rows: What that model is called on, `b` rows.
        folder: An empty folder.
        num_weights: Weights that the layer should have.
    """
    check_config(layer_class, kwargs, inputs)
    check_shapes(layer_class(**kwargs), inputs, num_weights)
    check_half_precision(layer_class, kwargs, inputs)
    check_gradients(make_model(layer_class(**kwargs)), rows)
    for jit_compile in (False, True):
        check_fit(make_model(layer_class(**kwargs)), rows, jit_compile)
    check_saving(make_model(layer_class(**kwargs)), rows, folder)


def check_config(layer_class: type[Layer], kwargs: dict[str, Any], inputs: Arrays) -> None:
    """The configuration is plain JSON and makes the same layer, before and after building."""
    layer = layer_class(**kwargs)
    before = layer.get_config()
    json.dumps(before)
    assert set(kwargs) <= set(before)
    result = np.asarray(layer(inputs))
    assert layer.get_config() == before, "building changed the configuration"
    again = layer_class.from_config(before)
    assert again.get_config() == before
    np.testing.assert_array_equal(again(inputs), result)


def check_shapes(layer: Layer, inputs: Arrays, num_weights: int) -> None:
    """The symbolic shape is the eager one; the number of weights is as stated."""
    symbolic = layer([keras.KerasTensor(x.shape, dtype=x.dtype.name) for x in inputs])
    assert symbolic.shape == tuple(layer(inputs).shape)
    assert layer.compute_output_shape([x.shape for x in inputs]) == symbolic.shape
    assert len(layer.weights) == num_weights


def check_half_precision(layer_class: type[Layer], kwargs: dict[str, Any], inputs: Arrays) -> None:
    """Under "mixed_bfloat16" the output is bfloat16, and only its own rounding is lost."""
    full = np.asarray(layer_class(**kwargs)(inputs))
    half = layer_class(**kwargs, dtype="mixed_bfloat16")(inputs)
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    np.testing.assert_allclose(tf.cast(half, tf.float32), full, rtol=2**-7, atol=1e-6)


def check_gradients(model: keras.Model, rows: Arrays) -> None:
    """The loss reaches every trainable weight through the layer, with a finite gradient."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(rows)))
    assert model.trainable_weights
    for weight, gradient in zip(
        model.trainable_weights,
        tape.gradient(loss, [weight.value for weight in model.trainable_weights]),
        strict=True,
    ):
        assert gradient is not None, weight.path
        assert np.isfinite(gradient).all(), weight.path


def check_fit(model: keras.Model, rows: Arrays, jit_compile: bool) -> None:
    """One compiled training step changes the weights and leaves them finite."""
    before = [np.copy(weight) for weight in model.trainable_weights]
    model.compile("sgd", "mse", jit_compile=jit_compile)
    target = np.ones((len(rows[0]), model.output_shape[-1]), "float32")
    history = model.fit(list(rows), target, batch_size=len(target), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert np.isfinite(weight).all()
        assert not np.array_equal(weight, old), weight.path


def check_saving(model: keras.Model, rows: Arrays, folder: Path) -> None:
    """A `.keras` file gives the same model back."""
    path = folder / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    np.testing.assert_allclose(again(rows), model(rows), rtol=1e-6, atol=1e-6)
