"""Base of the parts that `LMMVAE` is put together from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

__all__ = ["ModelPart"]

if TYPE_CHECKING:
    # A part uses attributes of the whole model; to the type checker it is one.
    ModelPart = keras.Model
else:

    class ModelPart:
        """A part of the model: methods only, all state is the model's."""
