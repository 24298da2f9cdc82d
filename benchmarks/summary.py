"""Summaries of results: means over seeds, the best of each table, ratios of regrets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.methods import METHODS

__all__ = ["Frame", "best_count", "ordered_methods", "pivot", "regret_ratios", "within_one_error"]

Frame = Any
"""A `pandas.DataFrame` or `Series`: their types know no tuples as labels."""

TABLE = ["dataset", "split", "d"]


def ordered_methods(frame: Frame) -> list[str]:
    """Methods of the results in the order of `METHODS`, others after them."""
    present = list(dict.fromkeys(frame["method"]))
    return [m for m in METHODS if m in present] + [m for m in present if m not in METHODS]


def pivot(frame: Frame, value: str) -> tuple[Frame, Frame]:
    """Means over seeds and their standard errors, tables x methods.

    Args:
        frame: Results.
        value: Column to summarise.

    Returns:
        mean: DataFrame, index (dataset, split, d), a column per method.
        error: DataFrame of the same shape; NaN with one seed.
    """
    cells = frame.groupby([*TABLE, "method"], sort=False)[value]
    methods = ordered_methods(frame)
    mean = cells.mean().unstack("method").reindex(columns=methods)
    error = cells.sem().unstack("method").reindex(columns=methods)
    order = pd.MultiIndex.from_frame(frame[TABLE].drop_duplicates())
    return mean.reindex(order), error.reindex(order)


def within_one_error(frame: Frame, value: str = "mse") -> Frame:
    """Which methods have the lowest mean of their table, or lie within a standard error of it.

    The error is that of the method's difference to the best, seed by seed: all methods of a seed
    see the same rows, so most of the variation between seeds is common to them.

    Args:
        frame: Results with some seeds.
        value: Column of errors, lower is better.

    Returns:
        Bool DataFrame, index (dataset, split, d), a column per method.
    """
    methods = ordered_methods(frame)
    rows = {}
    for table, group in frame.groupby(TABLE, sort=False):
        by_seed = group.pivot(index="seed", columns="method", values=value).reindex(columns=methods)
        best = by_seed.mean().idxmin()
        difference = by_seed.sub(by_seed[best], axis=0)
        rows[table] = difference.mean() <= difference.sem().fillna(0.0) + 1e-12
        rows[table] &= by_seed.notna().any()
    found = pd.DataFrame.from_dict(rows, orient="index")
    found.index = pd.MultiIndex.from_tuples(found.index, names=TABLE)
    return found


def best_count(frame: Frame, method: str) -> Frame:
    """In which data sets a method is best, or within one error of it, in every table."""
    return within_one_error(frame)[method].groupby("dataset", sort=False).all()


def regret_ratios(frame: Frame) -> Frame:
    """Regret of LMMVAE beside that of the amortized posterior, table by table.

    Args:
        frame: Results of a simulated suite.

    Returns:
        A DataFrame, index (dataset, split, d): `mse`, `oracle`, `of_oracle` (their ratio),
        `regret`, `amortized_regret` and `ratio` of the regrets.
    """
    mse, _ = pivot(frame, "mse")
    oracle = frame.groupby(TABLE, sort=False)["oracle"].mean().reindex(mse.index)
    regret = mse["lmmvae"] - oracle
    other = mse["lmmvae-amortized"] - oracle if "lmmvae-amortized" in mse else np.nan
    return pd.DataFrame(
        {
            "mse": mse["lmmvae"],
            "oracle": oracle,
            "of_oracle": mse["lmmvae"] / oracle,
            "regret": regret,
            "amortized_regret": other,
            "ratio": regret / other,
        }
    )
