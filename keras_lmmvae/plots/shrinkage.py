"""Shrinkage plot: BLUPs against group means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_lmmvae.plots.drawing import (
    feature_title,
    feature_values,
    level_codes,
    new_axes,
    point_area,
    term_of_kind,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_shrinkage"]


def plot_shrinkage(
    model: LMMVAE,
    term: str,
    data: dict[str, Any],
    feature: int | str = 0,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Plots the BLUPs of the levels against their raw means, coloured by group size.

    Each point is a level. The x-axis is the mean of `x - f(E[u | x])` minus the other terms over
    its rows, which is the estimate without pooling. The y-axis is its BLUP. There is no shrinkage
    on the dashed line. Small groups are shrunk towards 0.

    Args:
        model: A fitted model.
        term: Name of a term with an intercept only.
        data: Dict of columns, the training rows.
        feature: Number or name of the feature.
        ax: Axes to draw on. Defaults to new axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the term has slopes or is a surface, or if the feature is unknown.

    Example:
        >>> ax = lmm.plots.plot_shrinkage(model, "store", data, "price")
        >>> len(ax.collections[0].get_offsets())
        20
    """
    found = term_of_kind(model, term, "an intercept")
    number = model.feature_number(feature)
    prediction = model.predictive(data)
    own = prediction.contributions[term][:, number]
    residual = feature_values(data, number) - prediction.mean[:, number] + own
    codes = level_codes(model, found, data)
    observed = (codes >= 0) & np.isfinite(residual)
    levels, first, inverse, sizes = np.unique(
        codes[observed], return_index=True, return_inverse=True, return_counts=True
    )
    means = np.bincount(inverse, residual[observed]) / sizes
    ax = new_axes(ax)
    _draw(ax, means, own[observed][first], sizes)
    unit = feature_title(model, number)
    ax.set(xlabel=f"mean residual of the group, {unit}", ylabel=f"effect (BLUP), {unit}")
    ax.set_title(f"{term}: {len(levels):,} levels")
    return ax


def _draw(ax: Axes, means: np.ndarray, effects: np.ndarray, sizes: np.ndarray) -> None:
    from matplotlib.colors import LogNorm

    limit = 1.05 * np.abs(means).max()
    ax.axline((0.0, 0.0), slope=1.0, color="black", linestyle="--", linewidth=1)
    ax.axhline(0.0, color="0.8", linewidth=1, zorder=0)
    # The scale covers at least a factor of 2, so that it is valid for equal sizes, too.
    norm = LogNorm(sizes.min(), max(sizes.max(), 2 * sizes.min()))
    points = ax.scatter(
        means,
        effects,
        c=sizes,
        s=2.0 * point_area(len(means)),
        norm=norm,
        cmap="viridis_r",
        linewidths=0,
    )
    bar = ax.figure.colorbar(points, ax=ax, label="rows of the group", shrink=0.85)
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.yaxis.set_minor_formatter("{x:,.0f}" if sizes.max() < 10 * sizes.min() else "")
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
