"""How well a fitted model describes rows: errors, likelihood, known levels, and their tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.metrics import mse
from keras_lmmvae.rows import EFFECTS, num_rows

__all__ = ["Scores", "feature_table", "score", "score_table"]


@dataclass(frozen=True)
class Scores:
    """Errors, likelihood and known levels of a set of rows.

    Attributes:
        rows: Number of rows.
        mse: Mean squared error of the reconstruction with random effects.
        mse_population: Mean squared error of the reconstruction without random effects.
        log_likelihood: Lower bound of the log density, mean over rows, nats.
        known: Term name -> share of the rows whose level the model knows.
        by_feature: DataFrame, features x "mse", "mse_population" and "variance" of the feature.
    """

    rows: int
    mse: float
    mse_population: float
    log_likelihood: float
    known: dict[str, float]
    by_feature: pd.DataFrame

    def mapping(self) -> dict[str, Any]:
        """The scores as plain values, ready for JSON; `None` where a feature is not observed."""
        table = self.by_feature.astype(object).where(self.by_feature.notna(), None)
        return {
            "rows": self.rows,
            "mse": self.mse,
            "mse_population": self.mse_population,
            "log_likelihood": self.log_likelihood,
            "known": self.known,
            "features": table.to_dict(orient="index"),
        }


def score(model: LMMVAE, data: dict[str, np.ndarray]) -> Scores:
    """Measures a fitted model on rows."""
    conditional, population = model.reconstruct(data), model.reconstruct(data, False)
    x = np.asarray(data["x"], np.float64)
    table = pd.DataFrame(
        {
            "mse": _means(np.square(x - conditional)),
            "mse_population": _means(np.square(x - population)),
            "variance": _means(np.square(x - _means(x))),
        },
        index=pd.Index(model.feature_names, name="feature"),
    )
    return Scores(
        rows=len(x),
        mse=mse(x, conditional),
        mse_population=mse(x, population),
        log_likelihood=float(model.log_likelihood(data).mean()),
        known=_known(model, data),
        by_feature=table,
    )


def _means(values: np.ndarray) -> np.ndarray:
    """Means of the observed cells of each column. A column without any has NaN."""
    return pd.DataFrame(values).mean().to_numpy()


def _known(model: LMMVAE, data: dict[str, np.ndarray]) -> dict[str, float]:
    counts = dict.fromkeys([term.label for term in model.random_effects], 0)
    total = 0
    for rows in model.pass_over(data):
        total += num_rows(rows)
        for label in counts:
            counts[label] += int(np.sum(rows[EFFECTS][label]["codes"].numpy() >= 0))
    return {label: count / total for label, count in counts.items()}


def score_table(scores: Mapping[str, Scores]) -> Table:
    """A table of errors, likelihood and known levels. Each set of rows is a column."""
    table = Table(title="How well the rows are described")
    table.add_column("")
    for title in scores:
        table.add_column(title, justify="right")
    every = list(scores.values())
    table.add_row("rows", *(f"{one.rows:,}" for one in every))
    table.add_row("MSE with random effects", *(f"{one.mse:.4g}" for one in every))
    table.add_row("MSE of the population part", *(f"{one.mse_population:.4g}" for one in every))
    table.add_row("log-likelihood bound, nats a row", *(f"{x.log_likelihood:.4g}" for x in every))
    for label in every[0].known:
        table.add_row(
            f"rows with a known level: {label}", *(f"{x.known[label]:.1%}" for x in every)
        )
    return table


def feature_table(scores: Scores) -> Table:
    """A table of the errors of every feature, beside its variance."""
    table = Table(title="Mean squared error by feature")
    table.add_column("feature")
    for title in ("with random effects", "population part", "variance"):
        table.add_column(title, justify="right")
    for name, row in scores.by_feature.iterrows():
        table.add_row(str(name), *(f"{row[x]:.4g}" for x in ("mse", "mse_population", "variance")))
    return table
