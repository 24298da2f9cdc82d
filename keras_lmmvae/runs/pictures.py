"""The pictures of a run."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae import plots
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.lmmvae import LMMVAE

__all__ = ["draw_pictures"]

PLOTS = "plots"
_DPI = 120
# A picture with more points than this takes long and shows no more.
_MOST_ROWS = 20_000

Drawing = Callable[[], Any]


def draw_pictures(
    model: LMMVAE,
    history: pd.DataFrame,
    train: dict[str, np.ndarray],
    shown: dict[str, np.ndarray],
    folder: Path,
) -> list[Path]:
    """Writes plots/*.png; those of terms show the first feature."""
    if find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("Agg")  # nothing looks for a screen
    from matplotlib import pyplot

    (folder / PLOTS).mkdir(exist_ok=True)
    files = []
    for name, draw in _drawings(model, history, _some(train), _some(shown)).items():
        figure = np.ravel(draw())[0].figure
        files.append(folder / PLOTS / f"{name}.png")
        figure.savefig(files[-1], dpi=_DPI)
        pyplot.close(figure)
    return files


def _some(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows, or as many of them as a picture shows, evenly spaced."""
    step = -(-len(data["x"]) // _MOST_ROWS)
    return {name: values[::step] for name, values in data.items()}


def _drawings(
    model: LMMVAE,
    history: pd.DataFrame,
    train: dict[str, np.ndarray],
    shown: dict[str, np.ndarray],
) -> dict[str, Drawing]:
    """Name of the file -> what draws it and returns its axes."""
    logs = {str(name): history[name].tolist() for name in history}
    drawings: dict[str, Drawing] = {
        "training": partial(plots.plot_training, logs),
        "reconstruction": partial(plots.plot_reconstruction, model, shown),
    }
    if model.posterior == "conjugate":
        drawings["variance_partition"] = partial(plots.plot_variance_partition, model, train)
    if model.latent_dim > 1:
        drawings["latent"] = partial(plots.plot_latent, model, shown, str(model.feature_names[0]))
    for term in model.random_effects:
        drawings |= _drawings_of(term, model, train)
    return drawings


def _drawings_of(
    term: RandomEffect, model: LMMVAE, train: dict[str, np.ndarray]
) -> dict[str, Drawing]:
    drawings: dict[str, Drawing] = {}
    if term.map_columns is not None:
        drawings[f"map_{term.name}"] = partial(plots.plot_effects_map, model, term.label, train)
    if model.posterior == "conjugate" and term.has_levels:
        first = term.coefficient_names()[0]
        drawings[f"effects_{term.name}"] = partial(
            plots.plot_caterpillar, model, term.label, coefficient=first
        )
        if term.curve_column is not None:
            trajectories = partial(plots.plot_trajectories, model, term.label, train)
            drawings[f"trajectories_{term.name}"] = trajectories
    return drawings
