"""The results of a suite: a CSV file that grows cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.suites import Cell
from keras_lmmvae.files import written_whole
from keras_lmmvae.validation import received

__all__ = ["KEY", "Results"]

KEY = ("dataset", "split", "d", "method", "seed")
_FIRST = ("suite", *KEY)
# Every file has these columns. They are empty where a suite does not measure them.
_MEASURES = ("mse", "oracle", "loglik", "seconds", "peak_mb")
_LAST = ("settings", "versions")


class Results:
    """Rows of `SUITE.csv`; a cell that is there with the same settings is not run again.

    Args:
        path: The file; it need not exist.

    Raises:
        ValueError: If the file is not a table of results.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frame = pd.DataFrame(columns=list(_FIRST))
        if path.exists():
            # "null" and "NA" are names like others; only empty fields are missing numbers.
            self.frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
            missing = [name for name in _FIRST if name not in self.frame]
            if missing:
                raise ValueError(
                    f"'{path.name}' is not a table of results, the columns {missing} are missing. "
                    + received(columns=list(self.frame.columns))
                )

    def has(self, cell: Cell, settings: str) -> bool:
        """Whether the cell was run with these settings."""
        rows = self._rows_of(cell)
        return bool((self.frame.loc[rows, "settings"] == settings).any()) if rows.any() else False

    def add(self, cell: Cell, rows: list[dict[str, Any]]) -> None:
        """Replaces the rows of a cell and writes the file, in one step.

        Args:
            cell: The cell.
            rows: Its measurements, with `suite`, `settings` and `versions`.
        """
        labels = {
            "dataset": cell.table.dataset,
            "split": cell.table.split,
            "d": cell.latent_dim,
            "method": cell.method,
            "seed": cell.seed,
        }
        new = pd.DataFrame([labels | row for row in rows])
        # A cell may bring several methods, which are representations of one fit.
        kept = self.frame[~self._rows_of(cell, *new["method"].unique())]
        frame = pd.concat([kept, new], ignore_index=True) if len(kept) else new
        others = [name for name in frame if name not in _FIRST + _MEASURES + _LAST]
        self.frame = frame.reindex(columns=[*_FIRST, *_MEASURES, *others, *_LAST])
        ordered = self.frame.sort_values(list(KEY), kind="stable")
        with written_whole(self.path) as fresh:
            ordered.to_csv(fresh, index=False, float_format="%.6g")

    def _rows_of(self, cell: Cell, *methods: str) -> pd.Series:
        frame = self.frame
        return (
            (frame["dataset"] == cell.table.dataset)
            & (frame["split"] == cell.table.split)
            & (frame["d"] == cell.latent_dim)
            & frame["method"].isin([cell.method, *methods])
            & (frame["seed"] == cell.seed)
        )
