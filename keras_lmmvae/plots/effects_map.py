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

# Height of axes without a fixed aspect, divided by their width.
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
    """Plots a map of a spatial effect on one feature, at the coordinates of rows.

    Args:
        model: A fitted model.
        term: Name of a spatial term with two coordinate columns.
        data: Dict of columns. The effect is shown at the coordinates of its rows.
        feature: Number or name of the feature.
        std: Whether to show posterior standard deviations instead of means.
        inducing_points: Whether to mark the inducing points.
        label: Label of the colour bar. Defaults to the quantity and the feature.
        scale: Positive float. The coordinates on the axes are divided by it, for example by 1000
            for kilometres.
        ax: Axes to draw on. Defaults to new axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the term is not a surface over two coordinates, or if the feature is
            unknown.

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
    # Both colour maps are readable for the colour-blind. That of effects is symmetric around 0.
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
    # The colour bar is as high as the map, and the map of a wide region is low.
    height = shape * np.ptp(north[np.isfinite(north)]) / max(np.ptp(east[np.isfinite(east)]), 1e-9)
    shrink = 0.9 * float(np.clip(height / _AXES_HEIGHT, 0.4, 1.0))
    ax.figure.colorbar(points, ax=ax, label=label, shrink=shrink)
    unit = "" if scale == 1.0 else f" / {scale:g}"
    across, up = (column + unit for column in surface.columns)
    ax.set(xlabel=across, ylabel=up, aspect=shape)
    return ax
