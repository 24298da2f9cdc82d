"""Plot of the explained variance of every feature, with and without the random effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_lmmvae.plots.drawing import COLOURS, GREY, MOST_NAMED, feature_values, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_reconstruction"]


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
    is_named = len(order) <= MOST_NAMED
    ax = new_axes(ax, (6.4, max(2.4, 1.2 + 0.26 * len(order)) if is_named else 5.2))
    ax.hlines(places, population[order], whole[order], color="0.8", linewidth=2, zorder=1)
    ax.plot(population[order], places, "o", color=GREY, fillstyle="none", label="population part")
    if model.random_effects:
        ax.plot(whole[order], places, "o", color=COLOURS[0], label="with random effects")
    ax.axvline(1.0, color="black", linewidth=1)
    if is_named:
        ax.set_yticks(places, [str(model.feature_names[number]) for number in order])
    else:
        ax.set(yticks=[], ylabel=f"{len(order):,} features, in order")
    ax.set(xlabel="share of variance explained")
    ax.grid(axis="x", color="0.92")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return ax


def _explained(x: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Returns the shares `(p,)` over the observed cells."""
    error = np.nansum(np.square(x - reconstruction), axis=0)
    return np.asarray(1.0 - error / np.nansum(np.square(x - np.nanmean(x, axis=0)), axis=0))
