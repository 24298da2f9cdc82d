"""Caterpillar plot: sorted effects of all levels with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from keras_lmmvae.plots.drawing import (
    COLOURS,
    GREY,
    MOST_NAMED,
    feature_title,
    half_width,
    new_axes,
    term_of_kind,
)
from keras_lmmvae.validation import check_positive, received

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_caterpillar"]

# Height of a label as a share of the height of the axes.
_LINE = 0.045


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
    _draw(ax, table["effect"].to_numpy(), width * table["std"].to_numpy())
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


def _draw(ax: Axes, effects: np.ndarray, widths: np.ndarray) -> None:
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
    spacing = _LINE * len(values)
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
