"""Tables of scores for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from keras_lmmvae.runs.scores import Scores

__all__ = ["feature_table", "score_table"]


def score_table(scores: Mapping[str, Scores]) -> Table:
    """Errors, likelihood and known levels, a column for each set of rows.

    Args:
        scores: Title of the column -> scores.

    Returns:
        A table of rich.
    """
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
    """Errors of every feature, beside its variance.

    Args:
        scores: The scores.

    Returns:
        A table of rich.
    """
    table = Table(title="Mean squared error by feature")
    table.add_column("feature")
    for title in ("with random effects", "population part", "variance"):
        table.add_column(title, justify="right")
    for name, row in scores.by_feature.iterrows():
        table.add_row(str(name), *(f"{row[x]:.4g}" for x in ("mse", "mse_population", "variance")))
    return table
