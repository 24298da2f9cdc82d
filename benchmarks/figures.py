"""Pictures of a suite's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import METHODS
from benchmarks.summary import TABLE, Frame, ordered_methods, pivot

__all__ = ["draw_figures"]

_MARKERS = "osD^vP*XpdH<>"


def draw_figures(name: str, frame: Frame, folder: Path) -> list[Path]:
    """Draws the results of a suite.

    Args:
        name: Of the suite, the beginning of the files' names.
        frame: Its results.
        folder: Where to write.

    Returns:
        The files: `NAME.png`, and on simulations `NAME-cost.png`.
    """
    import matplotlib

    matplotlib.use("Agg")
    if "accuracy" in frame.columns:
        best = frame[frame["classifier"] == frame["classifier"].iloc[0]]
        mean, _ = pivot(best, "accuracy")
        label = f"accuracy on held-out groups, {best['classifier'].iloc[0]}"
        return [_dots(mean, label, folder / f"{name}.png", log=False)]
    mse, _ = pivot(frame, "mse")
    if frame["oracle"].notna().any():
        oracle = frame.groupby(TABLE, sort=False)["oracle"].mean().reindex(mse.index)
        regret = mse.sub(oracle, axis=0).clip(lower=1e-3)
        label = "regret: test MSE less the oracle's (noise variance 1)"
        files = [_dots(regret, label, folder / f"{name}.png", log=True)]
        return [*files, _cost(frame, regret, folder / f"{name}-cost.png")]
    relative = mse.div(mse.min(axis=1), axis=0)
    label = "test MSE, relative to the best method of the table"
    return [_dots(relative, label, folder / f"{name}.png", log=True)]


def _dots(values: Frame, label: str, path: Path, log: bool) -> Path:
    """A line of dots for every table, a colour and marker for every method."""
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(9.5, 1.6 + 0.34 * len(values)), layout="constrained")
    places = np.arange(len(values))[::-1]
    for method in values.columns:
        ax.plot(values[method], places, linestyle="", label=method, **_style(method))
    ax.set_yticks(places, [_title(table) for table in values.index])
    ax.set(xlabel=label, xscale="log" if log else "linear")
    ax.grid(axis="y", color="0.9")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _cost(frame: Frame, regret: Frame, path: Path) -> Path:
    """Median regret of the methods against the median time of a fit."""
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(7.0, 4.6), layout="constrained")
    seconds = frame.groupby("method")["cpu_seconds"].median()
    for method in ordered_methods(frame):
        point = (max(seconds[method], 1e-2), regret[method].median())
        ax.plot(*point, **_style(method))
        ax.annotate(method, point, xytext=(6, 4), textcoords="offset points", fontsize=9)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="processor seconds of a fit, median over tables",
        ylabel="regret, median over tables",
    )
    ax.margins(0.25)  # room for the names
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _style(method: str) -> dict[str, Any]:
    """Marker and colour of a method, the same in all pictures."""
    number = list(METHODS).index(method) if method in METHODS else len(METHODS)
    is_ours = method == "lmmvae"
    return {
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 9 if is_ours else 6,
        "color": "black" if is_ours else f"C{number % 10}",
        "zorder": 3 if is_ours else 2,
    }


def _title(table: tuple[object, ...]) -> str:
    dataset, split, d = table
    return f"{dataset}, {split}, d = {d}"
