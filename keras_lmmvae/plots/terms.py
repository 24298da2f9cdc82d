"""Plots of a term: effects of its levels, shrinkage, trajectories and maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from keras_lmmvae.plots.drawing import (
    COLOURS,
    GREY,
    MOST_NAMED,
    feature_title,
    feature_values,
    half_width,
    level_codes,
    new_axes,
    point_area,
    pyplot,
    term_of_kind,
)
from keras_lmmvae.validation import check_positive, received

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_caterpillar", "plot_effects_map", "plot_shrinkage", "plot_trajectories"]

_LABEL_HEIGHT = 0.045  # share of the height of the axes
_CURVE_POINTS = 60
_PANELS_PER_ROW = 3
_MAP_HEIGHT = 0.95  # height of axes without a fixed aspect, divided by their width


def plot_caterpillar(
    model: LMMVAE,
    term: str,
    feature: int | str = 0,
    *,
    coefficient: str = "intercept",
    num_labels: int = 10,
    level: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """Plots the sorted effects of a term's levels on one feature, with posterior intervals.

    Levels with intervals that exclude 0 are coloured.

    Args:
        model: A fitted model with a conjugate posterior.
        term: Name of a term with intercepts or slopes.
        feature: Number or name of the feature.
        coefficient: Coefficient of a term with slopes, such as "t".
        num_labels: Non-negative int, number of the largest effects that are labelled. With at
            most 40 levels, all are labelled.
        level: Float in (0, 1), posterior probability of the intervals.
        ax: Axes to draw on. Defaults to new axes.

    Returns:
        The axes.

    Raises:
        ValueError: If the term is a surface, if the posterior is amortized, or if the feature or
            coefficient is unknown.

    Example:
        >>> ax = lmm.plots.plot_caterpillar(model, "patient", "price", coefficient="t")
        >>> ax.get_xlabel()
        'effect on price: t, 90% intervals'
    """
    found = term_of_kind(model, term, "intercepts or slopes")
    number = model.feature_number(feature)
    check_positive("num_labels", num_labels, integer=True)
    width = half_width(level)
    if coefficient not in found.coefficient_names():
        raise ValueError(
            f"The term '{term}' does not have this coefficient, expected one of "
            f"{found.coefficient_names()}. " + received(coefficient=coefficient)
        )
    columns = [
        _column(model.random_effects_table(term, std=std), number, coefficient)
        for std in (False, True)
    ]
    table = pd.concat(columns, axis=1, keys=["effect", "std"]).sort_values("effect")
    ax = new_axes(ax, (6.4, 6.0))
    _draw_intervals(ax, table["effect"].to_numpy(), width * table["std"].to_numpy())
    if len(table) > MOST_NAMED:
        _label(ax, table["effect"], num_labels)
    else:
        ax.set_yticks(range(len(table)), [str(key) for key in table.index])
    unit = feature_title(model, number)
    what = unit if len(found.coefficient_names()) == 1 else f"{unit}: {coefficient}"
    ax.set(xlabel=f"effect on {what}, {level:.0%} intervals", ylabel=f"{term}, in order")
    return ax


def _column(table: pd.DataFrame, number: int, coefficient: str) -> pd.Series:
    column = table.iloc[:, number]
    return column.xs(coefficient, level="coefficient") if table.index.nlevels > 1 else column


def _draw_intervals(ax: Axes, effects: np.ndarray, widths: np.ndarray) -> None:
    places = np.arange(len(effects))
    is_clear = np.abs(effects) > widths
    thickness = float(np.clip(200.0 / len(effects), 0.5, 3.0))
    for chosen, colour in ((~is_clear, GREY), (is_clear, COLOURS[0])):
        low, high = effects[chosen] - widths[chosen], effects[chosen] + widths[chosen]
        ax.hlines(places[chosen], low, high, color=colour, linewidth=thickness, alpha=0.6)
        ax.plot(effects[chosen], places[chosen], "o", color=colour, markersize=1 + thickness)
    ax.axvline(0.0, color="black", linewidth=1)
    ax.set(yticks=[], ylim=(-0.02 * len(effects) - 1, 1.02 * len(effects)))


def _label(ax: Axes, effects: pd.Series, num_labels: int) -> None:
    """Labels the largest effects in the corners without points."""
    largest = effects.abs().nlargest(num_labels).index
    places = np.flatnonzero(effects.index.isin(largest))
    values = effects.to_numpy()
    spacing = _LABEL_HEIGHT * len(values)
    for is_high in (True, False):
        own = [int(place) for place in places if (values[place] > 0.0) == is_high]
        height = len(values) - 1.0 if is_high else 0.0
        for place in own[::-1] if is_high else own:
            height = min(height, place) if is_high else max(height, place)
            ax.annotate(
                str(effects.index[place]),
                (values[place], place),
                (0.02 if is_high else 0.98, height),
                textcoords=ax.get_yaxis_transform(),
                ha="left" if is_high else "right",
                va="center",
                fontsize=9,
                arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6},
            )
            height += -spacing if is_high else spacing


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
    rows = pd.DataFrame({"residual": residual, "effect": own})[observed].groupby(codes[observed])
    levels = rows.agg(
        mean=("residual", "mean"), effect=("effect", "first"), size=("effect", "size")
    )
    ax = new_axes(ax)
    _draw_levels(ax, *levels.to_numpy().T)
    unit = feature_title(model, number)
    ax.set(xlabel=f"mean residual of the group, {unit}", ylabel=f"effect (BLUP), {unit}")
    ax.set_title(f"{term}: {len(levels):,} levels")
    return ax


def _draw_levels(ax: Axes, means: np.ndarray, effects: np.ndarray, sizes: np.ndarray) -> None:
    from matplotlib.colors import LogNorm

    limit = 1.05 * np.abs(means).max()
    ax.axline((0.0, 0.0), slope=1.0, color="black", linestyle="--", linewidth=1)
    ax.axhline(0.0, color="0.8", linewidth=1, zorder=0)
    # The scale covers at least a factor of 2, so that it is valid for equal sizes, too.
    norm = LogNorm(sizes.min(), max(sizes.max(), 2 * sizes.min()))
    style: dict[str, Any] = {"s": 2.0 * point_area(len(means)), "linewidths": 0}
    points = ax.scatter(means, effects, c=sizes, norm=norm, cmap="viridis_r", **style)
    bar = ax.figure.colorbar(points, ax=ax, label="rows of the group", shrink=0.85)
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.yaxis.set_minor_formatter("{x:,.0f}" if sizes.max() < 10 * sizes.min() else "")
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))


def plot_trajectories(
    model: LMMVAE,
    term: str,
    data: dict[str, Any],
    feature: int | str = 0,
    *,
    levels: Sequence[Any] | None = None,
    num_levels: int = 6,
    level: float = 0.9,
    axes: Any = None,
) -> np.ndarray:
    """Plots data of some subjects over time, with fitted curves and their intervals.

    The curve is the effect of the subject, `B_0 + B_1 t + ...`, plus a constant, the dashed line:
    the mean of `f(E[u | x])` over all rows plus the mean of the other terms over the rows of the
    subject. The band is the posterior interval of the effect. Rows deviate from the curve by the
    latent and the noise.

    Args:
        model: A fitted model.
        term: Name of a term with slopes over time.
        data: Dict of columns with the rows of all subjects.
        feature: Number or name of the feature.
        levels: Optional keys of the subjects. Defaults to the subjects with the most rows.
        num_levels: Positive int, number of subjects if `levels` is not given.
        level: Float in (0, 1), posterior probability of the band.
        axes: Optional sequence of axes, one for each subject. Defaults to the axes of a new figure.

    Returns:
        Array of the axes, one for each subject.

    Raises:
        ValueError: If the term has no slopes over time, if a feature or level is unknown, if a
            level has no rows, or if the number of axes is not the number of levels.

    Example:
        >>> axes = lmm.plots.plot_trajectories(model, "patient", data, "price", num_levels=3)
        >>> len(axes)
        3
    """
    found = term_of_kind(model, term, "slopes over time")
    time_column = str(found.curve_column)
    number = model.feature_number(feature)
    check_positive("num_levels", num_levels, integer=True, minimum=1)
    width = half_width(level)
    codes = level_codes(model, found, data)
    chosen = _most_frequent(codes, num_levels) if levels is None else _codes_of(found, levels)
    panels = _panels(axes, len(chosen))
    prediction = model.predictive(data)
    average = float(prediction.population[:, number].mean())
    own = prediction.contributions[term][:, number]
    others = (prediction.mean - prediction.population)[:, number] - own
    values, time = feature_values(data, number), np.asarray(data[time_column], np.float64)
    names = found.level_names()
    for panel, code in zip(panels, chosen, strict=True):
        rows = np.flatnonzero(codes == code)
        if not len(rows):
            raise ValueError(
                "`data` must have rows of every plotted level. " + received(level=names[code])
            )
        base = average + float(others[rows].mean())
        grid = np.linspace(time[rows].min(), time[rows].max(), _CURVE_POINTS)
        effect, deviation = _curve(model, term, data, rows[0], time_column, grid)
        curve, band = base + effect[:, number], width * deviation[:, number]
        panel.axhline(base, color="0.5", linestyle="--", linewidth=1, label="average subject")
        panel.fill_between(
            grid, curve - band, curve + band, color=COLOURS[0], alpha=0.2, linewidth=0,
            label=f"{level:.0%} of the curve",
        )  # fmt: skip
        panel.plot(grid, curve, color=COLOURS[0], label="fitted curve")
        panel.plot(time[rows], values[rows], ".", color="black", label="rows")
        panel.set_title(str(names[code]), fontsize=10)
    _finish(panels, feature_title(model, number), time_column)
    return panels


def _most_frequent(codes: np.ndarray, number: int) -> np.ndarray:
    counts = np.bincount(codes[codes >= 0])
    return np.argsort(-counts, kind="stable")[: min(number, int((counts > 0).sum()))]


def _codes_of(term: Any, levels: Sequence[Any]) -> list[int]:
    names = term.level_names()
    unknown = [key for key in levels if key not in names]
    if unknown or not len(levels):
        raise ValueError(
            f"`levels` must be at least one key of '{term.label}' that the model has seen. "
            + received(unknown=unknown, levels=list(levels))
        )
    return [names.index(key) for key in levels]


def _panels(axes: Any, number: int) -> np.ndarray:
    if axes is not None:
        panels = np.ravel(np.asarray(axes, object))
        if len(panels) != number:
            raise ValueError(
                f"`axes` must be {number} axes, one for each level. " + received(axes=len(panels))
            )
        return panels
    columns = min(number, _PANELS_PER_ROW)
    rows = -(-number // columns)
    figure, _ = pyplot().subplots(
        rows, columns, figsize=(0.8 + 2.6 * columns, 0.8 + 2.2 * rows), sharey=True, sharex=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    panels = np.array(figure.axes, object)
    for unused in panels[number:]:
        unused.remove()
    return panels[:number]


def _curve(
    model: LMMVAE, term: str, data: dict[str, Any], row: int, time: str, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns effects and standard deviations of a row's subject at given times, `(n, p)`."""
    columns = {"x", *(column for one in model.random_effects for column in one.columns)}
    rows = {name: np.repeat(np.asarray(data[name])[[row]], len(grid), axis=0) for name in columns}
    return model.term_effects(term, {**rows, time: grid})


def _finish(panels: np.ndarray, label: str, time: str) -> None:
    for panel in panels:
        place = panel.get_subplotspec()
        if place is None or place.is_first_col():
            panel.set_ylabel(label)
        if place is None or place.is_last_row():
            panel.set_xlabel(time)
    panels[0].legend(frameon=False, fontsize=8)


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
    shrink = 0.9 * float(np.clip(height / _MAP_HEIGHT, 0.4, 1.0))
    ax.figure.colorbar(points, ax=ax, label=label, shrink=shrink)
    unit = "" if scale == 1.0 else f" / {scale:g}"
    across, up = (column + unit for column in surface.columns)
    ax.set(xlabel=across, ylabel=up, aspect=shape)
    return ax
