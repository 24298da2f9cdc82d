"""Keras must run on TensorFlow; checked before anything is built on it."""

from __future__ import annotations

import keras

__all__ = ["require_tensorflow"]


def require_tensorflow() -> None:
    """Raises an ImportError if Keras runs on another backend than TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            "keras_lmmvae needs Keras on the TensorFlow backend: set the environment variable "
            "KERAS_BACKEND=tensorflow before Keras is imported. "
            f"Received: backend={keras.backend.backend()!r}"
        )
