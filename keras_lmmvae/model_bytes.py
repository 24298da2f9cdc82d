"""A model as the bytes of its `.keras` file: for pickles and copies."""

import tempfile
from pathlib import Path
from typing import Any

import keras

__all__ = ["copied", "from_bytes", "to_bytes"]

_FILE = "model.keras"


def to_bytes(model: keras.Model) -> bytes:
    """What `model.save` writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / _FILE)
        return (Path(folder) / _FILE).read_bytes()


def from_bytes(content: bytes) -> Any:
    """The model that `to_bytes` was given, not compiled."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _FILE).write_bytes(content)
        return keras.saving.load_model(Path(folder) / _FILE, compile=False)


def copied(model: keras.Model) -> Any:
    """A copy that shares nothing with the model, not compiled."""
    return from_bytes(to_bytes(model))
