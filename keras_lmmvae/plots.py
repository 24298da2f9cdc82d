"""Pictures of a fitted model; each function draws on Matplotlib axes and returns them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_lmmvae.model.lmmvae import LMMVAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_effects_map", "plot_latent", "plot_training"]

_PARTS = {
    "reconstruction_loss": "reconstruction",
    "latent_kl": "KL of the latent",
    "effects_kl": "KL of the effects",
}


def _axes(ax: Axes | None) -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "Plots need Matplotlib: install it with `pip install keras-lmmvae[plots]`."
        ) from error
    return pyplot.subplots(figsize=(6.4, 5.2), layout="constrained")[1] if ax is None else ax


def plot_effects_map(
    model: LMMVAE,
    term: str,
    data: dict[str, Any],
    feature: int,
    *,
    label: str = "effect",
    std: bool = False,
    scale: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Map of a spatial effect on one feature, at the places of some rows.

    Args:
        model: A fitted model.
        term: Name of the spatial term, with two coordinate columns.
        data: Dict of columns; the effect is shown at its rows' coordinates.
        feature: Number of the feature.
        label: Label of the colour bar.
        std: Whether to show posterior standard deviations instead of means.
        scale: Coordinates are divided by this for the axes, as 1000 for kilometres.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    columns = model.find_term(term).columns
    mean, deviation = model.term_effects(term, data)
    values = (deviation if std else mean)[:, feature]
    easting, northing = (np.asarray(data[column]) / scale for column in columns[:2])
    limit = float(np.quantile(np.abs(values), 0.99))
    # Blue to red around 0 for effects, dark to light for deviations: safe for the colour-blind.
    colours: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    if std:
        colours = {"cmap": "cividis"}
    points = ax.scatter(easting, northing, c=values, s=3, linewidths=0, **colours)
    ax.figure.colorbar(points, ax=ax, label=label, shrink=0.85)
    ax.set(xlabel=columns[0], ylabel=columns[1], aspect="equal")
    return ax


def plot_latent(
    model: LMMVAE,
    data: dict[str, Any],
    colour: Any,
    *,
    label: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Scatter of the first two latent means of rows.

    Args:
        model: A fitted model with at least two latent dimensions.
        data: Dict of columns.
        colour: Array `(n,)` that colours the points.
        label: Label of the colour bar.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    latent = model.encode(data)
    low, high = np.nanquantile(colour, [0.02, 0.98])
    points = ax.scatter(
        latent[:, 0], latent[:, 1], c=colour, s=4, linewidths=0, cmap="viridis", vmin=low, vmax=high
    )
    ax.figure.colorbar(points, ax=ax, label=label, shrink=0.85)
    ax.set(xlabel="latent 1", ylabel="latent 2")
    return ax


def plot_training(history: dict[str, list[float]], *, ax: Axes | None = None) -> Axes:
    """Training curves: the loss and its parts, in nats per row, by epoch.

    Args:
        history: The `history` that `fit` returns has, with or without validation.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    epochs = np.arange(1, len(history["loss"]) + 1)
    ax.plot(epochs, history["loss"], color="black", linewidth=2, label="loss")
    for (name, title), colour in zip(_PARTS.items(), ("C0", "C1", "C2"), strict=True):
        ax.plot(epochs, history[name], color=colour, label=title)
    if "val_loss" in history:
        ax.plot(epochs, history["val_loss"], color="black", linestyle=":", label="loss, held out")
    ax.set(xlabel="epoch", ylabel="nats per row")
    ax.legend(frameon=False)
    return ax
