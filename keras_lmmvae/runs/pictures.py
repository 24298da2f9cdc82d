"""The pictures of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae import plots
from keras_lmmvae.effects import SpatialEffect
from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = ["draw_pictures"]

PLOTS = "plots"
_DPI = 120
# A picture with more points than this takes long and shows no more.
_MOST_ROWS = 20_000


def draw_pictures(
    model: LMMVAE, history: pd.DataFrame, data: dict[str, np.ndarray], folder: Path
) -> list[Path]:
    """Writes plots/*.png: training, latents, maps of spatial effects.

    Args:
        model: A fitted model.
        history: A row per epoch.
        data: Dict of columns of the rows to show.
        folder: Folder of the run.

    Returns:
        The files; none if Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    data = {name: values[:_MOST_ROWS] for name, values in data.items()}
    (folder / PLOTS).mkdir(exist_ok=True)
    files = []
    for name, draw in _drawings(model, history, data).items():
        # Without pyplot, which keeps its figures and looks for a screen.
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        draw(ax=figure.add_subplot())
        files.append(folder / PLOTS / f"{name}.png")
        figure.savefig(files[-1], dpi=_DPI)
    return files


def _drawings(
    model: LMMVAE, history: pd.DataFrame, data: dict[str, np.ndarray]
) -> dict[str, Callable[..., Any]]:
    """Name of the file -> what draws it on axes."""
    feature = str(model.feature_names[0])
    drawings: dict[str, Callable[..., Any]] = {}
    if not history.empty:
        logs = {str(name): history[name].tolist() for name in history}
        drawings["training"] = partial(plots.plot_training, logs)
    if model.latent_dim > 1:
        drawings["latent"] = partial(plots.plot_latent, model, data, data["x"][:, 0], label=feature)
    for term in model.random_effects:
        if isinstance(term, SpatialEffect) and len(term.columns) == 2:
            drawings[f"map_{term.name}"] = partial(
                plots.plot_effects_map, model, term.label, data, 0, label=f"effect on {feature}"
            )
    return drawings
