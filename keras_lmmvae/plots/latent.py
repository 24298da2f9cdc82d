"""Scatter plot of the latents of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from keras_lmmvae.plots.drawing import COLOURS, GREY, feature_values, new_axes, point_area
from keras_lmmvae.validation import received

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_latent"]


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
