"""Base class of the callbacks for `LMMVAE.fit`."""

from __future__ import annotations

import keras

from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.validation import received

__all__ = ["ModelCallback"]


class ModelCallback(keras.callbacks.Callback):
    """Callback that requires an `LMMVAE`."""

    @property
    def lmmvae(self) -> LMMVAE:
        """The model that is trained.

        Raises:
            ValueError: If it is not an `LMMVAE`.
        """
        if not isinstance(self.model, LMMVAE):
            raise ValueError(
                f"`{type(self).__name__}` is a callback of `LMMVAE.fit`, expected an LMMVAE. "
                + received(model=type(self.model).__name__)
            )
        return self.model
