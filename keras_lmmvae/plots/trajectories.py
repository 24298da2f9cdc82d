"""Plot of single subjects over time with their fitted curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_lmmvae.plots.drawing import (
    COLOURS,
    feature_title,
    feature_values,
    half_width,
    level_codes,
    pyplot,
    term_of_kind,
)
from keras_lmmvae.validation import check_positive, received

if TYPE_CHECKING:
    from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["plot_trajectories"]

_GRID = 60
_COLUMNS = 3


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
    number = model.feature_number(feature)
    check_positive("num_levels", num_levels, integer=True, minimum=1)
    width = half_width(level)
    codes, column = level_codes(model, found, data), str(found.curve_column)
    chosen = _most_frequent(codes, num_levels) if levels is None else _codes_of(found, levels)
    panels = _panels(axes, len(chosen))
    prediction = model.predictive(data)
    average = float(prediction.population[:, number].mean())
    own = prediction.contributions[term][:, number]
    others = (prediction.mean - prediction.population)[:, number] - own
    values, time = feature_values(data, number), np.asarray(data[column], np.float64)
    names = found.level_names()
    for panel, code in zip(panels, chosen, strict=True):
        rows = np.flatnonzero(codes == code)
        if not len(rows):
            raise ValueError(
                "`data` must have rows of every plotted level. " + received(level=names[code])
            )
        base = average + float(others[rows].mean())
        grid = np.linspace(time[rows].min(), time[rows].max(), _GRID)
        effect, deviation = _curve(model, term, data, rows[0], column, grid)
        curve, band = base + effect[:, number], width * deviation[:, number]
        panel.axhline(base, color="0.5", linestyle="--", linewidth=1, label="average subject")
        panel.fill_between(
            grid, curve - band, curve + band, color=COLOURS[0], alpha=0.2, linewidth=0,
            label=f"{level:.0%} of the curve",
        )  # fmt: skip
        panel.plot(grid, curve, color=COLOURS[0], label="fitted curve")
        panel.plot(time[rows], values[rows], ".", color="black", label="rows")
        panel.set_title(str(names[code]), fontsize=10)
    _finish(panels, feature_title(model, number), column)
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
    columns = min(number, _COLUMNS)
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
