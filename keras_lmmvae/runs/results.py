"""The tables of a run: metrics, history, variances and effects."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.runs.tables import write_table

__all__ = ["METRICS", "write_effects", "write_metrics", "write_variances"]

METRICS = "metrics.json"
HISTORY, EFFECTS = "history.csv", "random_effects"
VARIANCES, PARTITION = "variance_components.csv", "variance_partition.csv"


def write_metrics(metrics: dict[str, Any], history: pd.DataFrame, folder: Path) -> None:
    """Writes metrics.json and history.csv."""
    text = json.dumps(metrics, indent=2, ensure_ascii=False)
    (folder / METRICS).write_text(text + "\n", encoding="utf-8")
    write_table(history, folder / HISTORY)


def write_variances(model: LMMVAE, data: dict[str, np.ndarray], folder: Path) -> None:
    """Writes variance_components.csv in squared units, and variance_partition.csv in shares.

    The amortized posterior learns no variances of effects. It has no shares.
    """
    components = model.variance_components().rename_axis("component")
    write_table(components, folder / VARIANCES, index=True)
    if model.posterior == "amortized":
        return
    partition = model.variance_partition(data).rename_axis("part")
    write_table(partition, folder / PARTITION, index=True)


def write_effects(model: LMMVAE, folder: Path, suffix: str) -> None:
    """Writes the posterior means of a term's effects to random_effects/TERM: levels x features.

    Their standard deviations go to TERM_std. The amortized posterior has none.
    """
    for term in model.random_effects:
        kinds = {"": False} if model.posterior == "amortized" else {"": False, "_std": True}
        for ending, is_std in kinds.items():
            table = model.random_effects_table(term.label, std=is_std)
            file = folder / EFFECTS / f"{term.name}{ending}{suffix}"
            write_table(table, file, index=True)
