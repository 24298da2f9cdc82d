"""A table to compare methods on: where its rows come from, how they are correlated and split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_lmmvae.metrics import oracle_mse
from keras_lmmvae.simulation import Simulation, split, take
from keras_lmmvae.simulation.splits import SplitKind

__all__ = ["Problem", "Source", "Table", "load_problem"]

Data = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Rows as loaded or simulated.

    Attributes:
        data: Dict with `x`, `(n, p)`, and the effect columns.
        simulation: The truth, if the rows are simulated.
        labels: What to classify, `(n,)`. A row without a label has `None`.
    """

    data: Data
    simulation: Simulation | None = None
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Table:
    """One data set with one split, as a suite declares it.

    Attributes:
        dataset: Name in the results.
        load: `load(latent_dim, seed)` gives the rows. Only simulations use the arguments.
        effects: Gives the random-effects terms that LMMVAE fits.
        split: "rows", "groups" or "future".
        split_on: Column of the split, where it needs one.
        groups: Columns with keys, for one-hot codes, embeddings and shrunken means.
        subject: Column of the subjects of repeated measures, if the rows are such.
        time: Their time.
        coordinates: Columns of coordinates, if the rows have places.
        standardise: Whether features are standardised by the training rows before all else.
        latent_dims: Latent dimensions for this table instead of the suite's.
        published: Key of the cell in the paper's tables: suite, split and variances.
    """

    dataset: str
    load: Callable[[int, int], Source]
    effects: Callable[[], Sequence[Any]]
    split: SplitKind = "rows"
    split_on: str | None = None
    groups: tuple[str, ...] = ()
    subject: str | None = None
    time: str | None = None
    coordinates: tuple[str, str] | None = None
    standardise: bool = False
    latent_dims: tuple[int, ...] = ()
    published: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Data set and split, the name by which a run picks tables."""
        return f"{self.dataset}/{self.split}"


@dataclass(frozen=True)
class Problem:
    """A table with its rows at hand, split.

    Attributes:
        table: The declaration.
        train: Training rows.
        test: Test rows.
        train_rows: Their numbers in the source, `(n_train,)`.
        test_rows: Those of the test rows.
        source: Where the rows come from.
        oracle: Test MSE of the oracle; `None` on real data.
    """

    table: Table
    train: Data
    test: Data
    train_rows: np.ndarray
    test_rows: np.ndarray
    source: Source
    oracle: float | None


# A suite fits all methods of a table one after another, so keeping one problem is enough. The key
# is the table's identity, because its functions and dicts cannot be hashed.
_LOADED: dict[tuple[int, int, int], Problem] = {}


def load_problem(table: Table, latent_dim: int, seed: int) -> Problem:
    """Loads, standardises and splits the rows of a table. The last problem is kept in memory.

    Args:
        table: The table.
        latent_dim: Latent variables of a simulation.
        seed: Of the simulation and of the split.
    """
    key = (id(table), latent_dim, seed)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = _load(table, latent_dim, seed)
    return _LOADED[key]


def _load(table: Table, latent_dim: int, seed: int) -> Problem:
    source = table.load(latent_dim, seed)
    train, test = split(source.data, table.split, on=table.split_on, seed=seed)
    data = dict(source.data)
    if table.standardise:
        x = np.asarray(data["x"], np.float64)
        scale = x[train].std(axis=0)
        data["x"] = ((x - x[train].mean(axis=0)) / np.where(scale > 0, scale, 1.0)).astype("f4")
    oracle = None if source.simulation is None else oracle_mse(source.simulation, train, test)
    return Problem(table, take(data, train), take(data, test), train, test, source, oracle)
