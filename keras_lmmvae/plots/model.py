"""Plots of the whole model: training, latents, explained variance and variance partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from keras_lmmvae.plots.drawing import (
    COLOURS,
    GREY,
    MOST_NAMED,
    axes_of_features,
    feature_values,
    new_axes,
    point_area,
)
from keras_lmmvae.validation import received

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_latent", "plot_reconstruction", "plot_training", "plot_variance_partition"]

_LOSSES = {
    "reconstruction_loss": "reconstruction",
    "latent_kl": "KL of the latent",
    "effects_kl": "KL of the effects",
}
_NOISE = "#D0D0D0"


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
    history: Mapping[str, Sequence[float]]
    if isinstance(model, Mapping):
        history = model
    else:
        history = getattr(getattr(model, "history", None), "history", {})
    if "loss" not in history:
        raise ValueError(
            "There is no history to show, expected a model that was trained in this session, or "
            "the `history` of the object that `fit` returned. " + received(history=sorted(history))
        )
    ax = new_axes(ax)
    epochs = np.arange(1, len(history["loss"]) + 1)
    ax.plot(epochs, history["loss"], color="black", linewidth=2, label="loss")
    for (name, title), colour in zip(_LOSSES.items(), COLOURS[:3], strict=True):
        ax.plot(epochs, history[name], color=colour, label=title)
    if "val_loss" in history:
        ax.plot(epochs, history["val_loss"], color="black", linestyle=":", label="loss, held out")
    ax.set(xlabel="epoch", ylabel="nats per row")
    ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False)
    return ax


def plot_latent(
    model: LMMVAE,
    data: dict[str, Any],
    colour: Any = None,
    *,
    label: str | None = None,
    dimensions: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
) -> Axes:
    """Plots two latent means of rows against each other.

    Args:
        model: A fitted model with at least two latent dimensions.
        data: Dict of columns of `n` rows.
        colour: Optional array `(n,)` of values for the colours of the points, or the name of a
            column of `data` or of a feature. Numbers have a colour scale from their 2 % to their
            98 % quantile. The eight most frequent strings, Booleans or categories have their own
            colours.
        label: Label of the colour bar or legend. Defaults to `colour` if that is a name.
        dimensions: Numbers of the two latents.
        ax: Axes to draw on. Defaults to new axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the model has only one latent dimension, if a dimension or name is unknown,
            or if the number of colours is not the number of rows.

    Example:
        >>> ax = lmm.plots.plot_latent(model, data, "price")
        >>> len(ax.collections[0].get_offsets())
        200
    """
    model.require_fitted()
    _check_dimensions(model, dimensions)
    if isinstance(colour, str):
        label = colour if label is None else label
        number = None if colour in data else model.feature_number(colour)
        colour = data[colour] if number is None else feature_values(data, number)
    latent = model.encode(data)[:, list(dimensions)]
    ax = new_axes(ax)
    points: dict[str, Any] = {"s": point_area(len(latent)), "linewidths": 0}
    if colour is None:
        ax.scatter(*latent.T, color=COLOURS[0], alpha=0.6, **points)
    else:
        values = pd.Series(np.asarray(colour) if not hasattr(colour, "dtype") else colour)
        if len(values) != len(latent):
            raise ValueError(
                f"`colour` must have one entry for each of the {len(latent)} rows. "
                + received(length=len(values))
            )
        is_scale = pd.api.types.is_numeric_dtype(values) and values.dtype != bool
        (_on_scale if is_scale else _by_category)(ax, latent, values, label or "", points)
    ax.set(xlabel=f"latent {dimensions[0] + 1}", ylabel=f"latent {dimensions[1] + 1}")
    return ax


def _check_dimensions(model: LMMVAE, dimensions: tuple[int, int]) -> None:
    if model.latent_dim < 2:
        raise ValueError(
            "The plot needs a model with at least two latent dimensions. "
            + received(latent_dim=model.latent_dim)
        )
    first, second = dimensions
    if first == second or not {first, second} <= set(range(model.latent_dim)):
        raise ValueError(
            f"`dimensions` must be two different numbers from 0 to {model.latent_dim - 1}. "
            + received(dimensions=dimensions)
        )


def _on_scale(
    ax: Axes, latent: np.ndarray, values: pd.Series, label: str, points: dict[str, Any]
) -> None:
    low, high = np.nanquantile(values.to_numpy(np.float64), [0.02, 0.98])
    colours: dict[str, Any] = {"c": values, "cmap": "viridis", "vmin": low, "vmax": high}
    scatter = ax.scatter(latent[:, 0], latent[:, 1], **colours, **points)
    ax.figure.colorbar(scatter, ax=ax, label=label, shrink=0.85, extend="both")


def _by_category(
    ax: Axes, latent: np.ndarray, values: pd.Series, label: str, points: dict[str, Any]
) -> None:
    """Draws the most frequent categories first, so that the rare ones are on top."""
    names = values.astype(str)
    shown = list(names.value_counts().index[: len(COLOURS)])
    rest = ~names.isin(shown)
    if rest.any():
        ax.scatter(*latent[rest].T, color=GREY, label="others", **points)
    for name, colour in zip(shown, COLOURS, strict=False):
        ax.scatter(*latent[names == name].T, color=colour, label=name, **points)
    ax.legend(title=label, frameon=False, markerscale=max(1.0, (30.0 / points["s"]) ** 0.5))


def plot_reconstruction(model: LMMVAE, data: dict[str, Any], *, ax: Axes | None = None) -> Axes:
    """Plots the explained share of every feature's variance, without and with the effects.

        1 - sum{ (x - reconstruction)**2 } / sum{ (x - mean(x))**2 }

    The reconstruction is the population part `f(E[u | x])`, or `f(E[u | x]) + Z B`. Use held-out
    rows. A share below 0 means a larger error than that of the mean of the feature. This happens
    for the population part of groups that are far from the average.

    Args:
        model: A fitted model.
        data: Dict of columns.
        ax: Axes to draw on. Defaults to new axes.

    Returns:
        The axes. Features are sorted by their share with effects. Up to 40 are named.

    Example:
        >>> ax = lmm.plots.plot_reconstruction(model, data)
        >>> sorted(label.get_text() for label in ax.get_yticklabels())
        ['age', 'price', 'size']
    """
    model.require_fitted()
    x = feature_values(data, range(model.num_features))
    population, whole = (
        _explained(x, model.reconstruct(data, include_effects=included))
        for included in (False, True)
    )
    order = np.argsort(whole)
    places = np.arange(len(order))
    names = [model.feature_names[number] for number in order]
    ax = axes_of_features(ax, names, "features, in order")
    ax.hlines(places, population[order], whole[order], color="0.8", linewidth=2, zorder=1)
    ax.plot(population[order], places, "o", color=GREY, fillstyle="none", label="population part")
    if model.random_effects:
        ax.plot(whole[order], places, "o", color=COLOURS[0], label="with random effects")
    ax.axvline(1.0, color="black", linewidth=1)
    ax.set(xlabel="share of variance explained")
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return ax


def _explained(x: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Returns the shares `(p,)` over the observed cells."""
    error, total = x - reconstruction, x - np.nanmean(x, axis=0)
    return np.asarray(1.0 - np.nansum(error**2, axis=0) / np.nansum(total**2, axis=0))


def plot_variance_partition(model: LMMVAE, data: Any = None, *, ax: Axes | None = None) -> Axes:
    """Plots `model.variance_partition(data)` as stacked bars, one for every feature.

    Args:
        model: A fitted model.
        data: Optional rows for the variances; see `variance_partition`.
        ax: Axes to draw on. Defaults to new axes.

    Returns:
        The axes. Up to 40 features are named.

    Raises:
        ValueError: In the cases of `variance_partition`.

    Example:
        >>> ax = lmm.plots.plot_variance_partition(model)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['latent, f(u)', 'store', 'patient', 'place', 'noise']
    """
    shares = model.variance_partition(data)
    size = shares.shape[1]
    ax = axes_of_features(ax, list(shares.columns[::-1]), "features")
    places, left = np.arange(size)[::-1], np.zeros(size)
    height = 0.8 if size <= MOST_NAMED else 1.0
    colours = dict(zip(shares.index[:-1], COLOURS * len(shares), strict=False)) | {"noise": _NOISE}
    for name, values in shares.iterrows():
        title = "latent, f(u)" if name == "latent" else str(name)
        ax.barh(places, values, height, left, color=colours[name], label=title)
        left += values.to_numpy()
    ax.set(xlim=(0.0, 1.0), ylim=(-0.6, size - 0.4), xlabel="share of the variance")
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
    return ax
