"""Helpers of all plots: axes, colours and checks of the term."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.rows import EFFECTS
from keras_lmmvae.validation import check_probability, received

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "COLOURS",
    "GREY",
    "MOST_NAMED",
    "axes_of_features",
    "feature_title",
    "feature_values",
    "half_width",
    "level_codes",
    "new_axes",
    "point_area",
    "pyplot",
    "term_of_kind",
]

# The palette of Okabe & Ito (2008), which the colour-blind can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
GREY = "#8C8C8C"
MOST_NAMED = 40
"""Maximum number of features or levels with a label on the axis."""

_KINDS: dict[str, Callable[[RandomEffect], bool]] = {
    "an intercept": lambda term: term.has_levels and term.basis_size == 1,
    "intercepts or slopes": lambda term: term.has_levels,
    "slopes over time": lambda term: term.curve_column is not None,
    "a surface over two coordinates": lambda term: term.map_columns is not None,
}


def pyplot() -> Any:
    """Returns Matplotlib's pyplot."""
    try:
        from matplotlib import pyplot as module
    except ImportError as error:
        raise ImportError(
            "Plots need Matplotlib: install it with `pip install keras-lmmvae[plots]`."
        ) from error
    return module


def new_axes(ax: Axes | None, size: tuple[float, float] = (6.4, 5.2)) -> Axes:
    """Returns `ax`, or the axes of a new figure with this size in inches."""
    return pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def axes_of_features(ax: Axes | None, names: Sequence[Any], what: str) -> Axes:
    """Returns axes with a line for each feature, from below. Up to 40 features are named."""
    is_named = len(names) <= MOST_NAMED
    ax = new_axes(ax, (6.4, max(2.4, 1.2 + 0.26 * len(names)) if is_named else 5.2))
    if is_named:
        ax.set_yticks(range(len(names)), [str(name) for name in names])
    else:
        ax.set(yticks=[], ylabel=f"{len(names):,} {what}")
    return ax


def term_of_kind(model: FittedModel, name: str, kind: str) -> RandomEffect:
    """Returns the term with this name, and raises a ValueError if it is of another kind."""
    model.require_fitted()
    term = model.find_term(name)
    if not _KINDS[kind](term):
        raise ValueError(
            f"The term '{name}' must be one with {kind}. " + received(term=type(term).__name__)
        )
    return term


def half_width(level: float) -> float:
    """Returns the half width of a normal interval, in standard deviations."""
    check_probability("level", level)
    return float(stats.norm.ppf(0.5 + level / 2.0))


def level_codes(model: FittedModel, term: RandomEffect, data: dict[str, Any]) -> np.ndarray:
    """Returns the codes of the rows' levels, `(n,)`, negative for unseen and null keys."""
    return np.asarray(model.encode_data(data)[EFFECTS][term.label]["codes"])


def feature_values(data: dict[str, Any], features: int | Sequence[int]) -> np.ndarray:
    """Returns one column of "x", `(n,)`, or several `(n, k)`. Missing cells are NaN."""
    return np.asarray(data["x"], np.float64)[:, features]


def feature_title(model: FittedModel, number: int) -> str:
    """Returns the axis label of a feature: its name, or "feature 3"."""
    name = model.feature_names[number]
    return name if isinstance(name, str) else f"feature {name}"


def point_area(num_points: int) -> float:
    """Returns the area of a scatter point in square points. It is smaller for many points."""
    return float(np.clip(20_000.0 / num_points, 3.0, 20.0))
