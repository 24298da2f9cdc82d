"""Exact effects and variances after chosen epochs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from keras_lmmvae.callbacks.model_callback import ModelCallback
from keras_lmmvae.validation import check_positive, received

__all__ = ["RefreshEffects"]


class RefreshEffects(ModelCallback):
    """Solves the effects exactly and estimates their variances again after chosen epochs.

    Training steps only approximate the BLUPs given the networks. `fit` computes them exactly after
    epochs 1, 4, 16, 64, ... (counted from the model's `latent_epochs`) and at the end. Between
    these epochs effects and variance components lag behind if the networks still change much. A
    refresh costs a few passes over the training rows.

    Epochs are counted from 1. The refresh comes before the validation of the epoch and before
    later callbacks in the list. There is none during `latent_epochs`.

    Args:
        every: Optional positive int, number of epochs between refreshes.
        at: Optional collection of positive ints, the epochs with a refresh.

    Raises:
        ValueError: If both or neither of `every` and `at` are given, or if a number is below 1;
            in `fit`, if the posterior is amortized, because its effects have no exact solution.

    Example:
        >>> import keras_lmmvae as lmm
        >>> refresh = lmm.callbacks.RefreshEffects(every=5)
        >>> [epoch for epoch in range(1, 12) if refresh.is_due(epoch)]
        [5, 10]
    """

    def __init__(self, every: int | None = None, at: Collection[int] | None = None) -> None:
        if (every is None) == (at is None):
            raise ValueError(
                "Give either `every`, a number of epochs, or `at`, the epochs with a refresh. "
                + received(every=every, at=at)
            )
        for name, values in (("every", [] if every is None else [every]), ("at", at or ())):
            for value in values:
                check_positive(name, value, integer=True, minimum=1)
        super().__init__()
        self.every = every
        self.at = at
        self._epoch = 0
        self._is_current = True

    def is_due(self, epoch: int) -> bool:
        """Returns whether there is a refresh after this epoch, counted from 1."""
        if self.every is not None:
            return epoch % self.every == 0
        return self.at is not None and epoch in self.at

    def on_train_begin(self, logs: Any = None) -> None:
        if self.lmmvae.posterior == "amortized":
            raise ValueError(
                "The effects of an amortized posterior have no exact solution: use "
                "posterior='conjugate'. " + received(posterior=self.lmmvae.posterior)
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._is_current = epoch + 1, False

    def on_test_begin(self, logs: Any = None) -> None:
        self._refresh()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._refresh()

    def _refresh(self) -> None:
        if not self._is_current and self.is_due(self._epoch):
            self.lmmvae.effects_fit.refresh(self._epoch)
        self._is_current = True
