"""The paper's own numbers, beside ours cell by cell."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pandas as pd

from benchmarks.simulated import paper_full
from benchmarks.summary import TABLE, Frame

__all__ = ["PUBLISHED_NAMES", "load_published", "published_comparison"]

PUBLISHED_NAMES = {
    "pca": "pca-ignore",
    "pca-ohe": "pca-ohe",
    "vae": "vae-ignore",
    "vae-ohe": "vae-ohe",
    "vae-embed": "vae-embed",
    "vrae": "vrae",
    "svgpvae": "svgpvae",
    "lmmvae": "lmmvae",
    "lmmvae-amortized": "lmmvae",
}
"""Our methods and the published ones. Both posteriors are compared with the paper's LMMVAE."""


@lru_cache(maxsize=1)
def load_published() -> Frame:
    """Mean and standard error of every cell of the paper's tables.

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), tables of section 5 and of
          the appendix.
    """
    return pd.read_csv(Path(__file__).with_name("data") / "published.csv")


def published_comparison(frame: Frame) -> Frame:
    """Our excess over the noise floor and the published one, for the cells that both have.

    The simulations' noise variance is 1, with 100 features: the floor is 1 - d / 100.

    Args:
        frame: Results of `paper-full`.

    Returns:
        A DataFrame with `dataset`, `split`, `d`, `method`, `mse`, `published_mse`, `excess`,
        `published_excess` and their `ratio`.
    """
    keys = {(table.dataset, table.split): table.published for table in paper_full()}
    cells = frame.groupby([*TABLE, "method"], sort=False)["mse"].mean()
    rows = []
    for (dataset, split, d, method), error in cells.items():
        key = keys.get((dataset, split))
        published = None if key is None else _published_error(key, int(d), method)
        if published is None:
            continue
        floor = 1.0 - d / 100.0
        excess = (error - floor, published - floor)
        rows.append((dataset, split, d, method, error, published, *excess, excess[0] / excess[1]))
    columns = [*TABLE, "method", "mse", "published_mse", "excess", "published_excess", "ratio"]
    return pd.DataFrame(rows, columns=columns)


def _published_error(key: dict[str, object], d: int, method: str) -> float | None:
    """Published MSE of a cell, if there is one."""
    table = load_published()
    rows = (table["d"] == d) & (table["method"] == PUBLISHED_NAMES.get(method, ""))
    for column, value in key.items():
        rows &= table[column] == value
    return float(table.loc[rows, "mse"].iloc[0]) if rows.any() else None
