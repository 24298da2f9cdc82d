"""Picture of shrinkage: what a group's mean says, and what its effect makes of it."""

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
    """Raw group means against BLUPs, by group size.

    A point is a level. Across: the mean over its rows of `x - f(E[u | x])` less the other
    terms, all that an unpooled estimate has. Up: its effect. On the dashed line nothing is
    shrunken; small groups are drawn towards 0.

    Args:
        model: A fitted model.
        term: Name of a term with an intercept only.
        data: Dict of columns, the training rows.
        feature: Number or name of the feature.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If the term has slopes or is a surface, or on an unknown feature.

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
    kept = (codes >= 0) & np.isfinite(residual)
    levels, first, slots, sizes = np.unique(
        codes[kept], return_index=True, return_inverse=True, return_counts=True
    )
    means = np.bincount(slots, residual[kept]) / sizes
    ax = new_axes(ax)
    _draw(ax, means, own[kept][first], sizes)
    unit = feature_title(model, number)
    ax.set(xlabel=f"mean residual of the group, {unit}", ylabel=f"effect (BLUP), {unit}")
    ax.set_title(f"{term}: {len(levels):,} levels")
    return ax


def _draw(ax: Axes, means: np.ndarray, effects: np.ndarray, sizes: np.ndarray) -> None:
    from matplotlib.colors import LogNorm

    limit = 1.05 * np.abs(means).max()
    ax.axline((0.0, 0.0), slope=1.0, color="black", linestyle="--", linewidth=1)
    ax.axhline(0.0, color="0.8", linewidth=1, zorder=0)
    # A range of at least one factor of 2, so that equal sizes have a scale, too.
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
