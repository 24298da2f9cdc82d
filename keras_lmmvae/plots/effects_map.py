"""Map of a spatial effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_lmmvae.plots.drawing import feature_title, new_axes, point_area, term_of_kind
from keras_lmmvae.validation import check_positive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_effects_map"]

# Of axes that nothing else bounds, over their width.
_AXES_HEIGHT = 0.95


def plot_effects_map(
    model: LMMVAE,
    term: str,
    data: dict[str, Any],
    feature: int | str = 0,
    *,
    std: bool = False,
    inducing_points: bool = False,
    label: str | None = None,
    scale: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Map of a spatial effect on one feature, at the places of some rows.

    Args:
        model: A fitted model.
        term: Name of the spatial term, with two coordinate columns.
        data: Dict of columns; the effect is shown at its rows' coordinates.
        feature: Number or name of the feature.
        std: Whether to show posterior standard deviations instead of means.
        inducing_points: Whether to mark the points that carry the surface.
        label: Label of the colour bar. Defaults to what is shown, of which feature.
        scale: Coordinates are divided by this for the axes, as 1000 for kilometres.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If the term is no surface over two coordinates, or on an unknown feature.

    Example:
        >>> ax = lmm.plots.plot_effects_map(model, "place", data, "price", inducing_points=True)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('lon', 'lat')
    """
    surface = term_of_kind(model, term, "a surface over two coordinates")
    number = model.feature_number(feature)
    check_positive("scale", scale)
    ax = new_axes(ax)
    mean, deviation = model.term_effects(term, data)
    values = (deviation if std else mean)[:, number]
    east, north = (np.asarray(data[c], np.float64) / scale for c in surface.columns)
    # Blue to red around 0 for effects, dark to light for deviations: safe for the colour-blind.
    colours: dict[str, Any] = {"cmap": "cividis"}
    if not std:
        limit = float(np.quantile(np.abs(values), 0.99))
        colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    points = ax.scatter(east, north, c=values, s=point_area(len(values)), linewidths=0, **colours)
    if inducing_points:
        places = np.array(surface.level_names()) / scale
        ax.plot(*places.T, "+", color="black", markersize=4, alpha=0.7, label="inducing points")
        ax.legend(frameon=False)
    name = feature_title(model, number)
    label = label or (f"standard deviation, {name}" if std else f"effect on {name}")
    # A degree of longitude is shorter than one of latitude.
    shape = 1.0 / np.cos(np.deg2rad(np.nanmean(north))) if surface.map_aspect_is_geographic else 1.0
    # A bar as high as the map, which is low where the region is wide.
    height = shape * np.ptp(north[np.isfinite(north)]) / max(np.ptp(east[np.isfinite(east)]), 1e-9)
    shrink = 0.9 * float(np.clip(height / _AXES_HEIGHT, 0.4, 1.0))
    ax.figure.colorbar(points, ax=ax, label=label, shrink=shrink)
    unit = "" if scale == 1.0 else f" / {scale:g}"
    across, up = (column + unit for column in surface.columns)
    ax.set(xlabel=across, ylabel=up, aspect=shape)
    return ax
