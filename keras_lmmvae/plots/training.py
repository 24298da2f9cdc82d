"""Plot of the training history: the loss and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_lmmvae.plots.drawing import COLOURS, new_axes
from keras_lmmvae.validation import received

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_training"]

_PARTS = {
    "reconstruction_loss": "reconstruction",
    "latent_kl": "KL of the latent",
    "effects_kl": "KL of the effects",
}


def plot_training(model: LMMVAE | Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> Axes:
    """Plots the loss and its parts by epoch, in nats per row.

    Args:
        model: A model after `fit`, or the attribute `history` of the object that `fit` returned.
        ax: Axes to draw on. Defaults to new axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the model has not been trained since it was created or loaded.

    Example:
        >>> ax = lmm.plots.plot_training(history.history)
        >>> ax.get_ylabel()
        'nats per row'
    """
    history = _history(model)
    ax = new_axes(ax)
    epochs = np.arange(1, len(history["loss"]) + 1)
    ax.plot(epochs, history["loss"], color="black", linewidth=2, label="loss")
    for (name, title), colour in zip(_PARTS.items(), COLOURS[:3], strict=True):
        ax.plot(epochs, history[name], color=colour, label=title)
    if "val_loss" in history:
        ax.plot(epochs, history["val_loss"], color="black", linestyle=":", label="loss, held out")
    ax.set(xlabel="epoch", ylabel="nats per row")
    ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False)
    return ax


def _history(model: LMMVAE | Mapping[str, Sequence[float]]) -> Mapping[str, Sequence[float]]:
    if isinstance(model, Mapping):
        history = model
    else:
        history = getattr(getattr(model, "history", None), "history", {})
    if "loss" not in history:
        raise ValueError(
            "There is no history to show, expected a model that was trained in this session, or "
            "the `history` of the object that `fit` returned. " + received(history=sorted(history))
        )
    return history
