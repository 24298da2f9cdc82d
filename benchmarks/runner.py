"""Runs a suite: cell by cell, resumable, on one or more processes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
from joblib import Parallel, delayed

from benchmarks.classification import measure_classification
from benchmarks.measure import measure_reconstruction, versions
from benchmarks.methods import settings_of
from benchmarks.results import Results
from benchmarks.suites import Cell, Suite
from keras_lmmvae.validation import received

__all__ = ["Outcome", "pick_cells", "run_suite"]

Listener = Callable[[Cell, "Outcome | None"], None]


@dataclass(frozen=True)
class Outcome:
    """The result of a cell: rows of measurements, or the error that ended it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


_MEASURES = {"reconstruction": measure_reconstruction, "classification": measure_classification}


def pick_cells(
    suite: Suite,
    *,
    methods: Sequence[str] = (),
    tables: Sequence[str] = (),
    latent_dims: Sequence[int] = (),
    seeds: Sequence[int] = (),
) -> list[Cell]:
    """Returns the cells of a suite, all or those of the named parts.

    Args:
        suite: The suite.
        methods: Names of methods. If there are none, all are picked; so in every part.
        tables: Data sets ("nested-3") or data sets with split ("longitudinal-3/future").
        latent_dims: Latent dimensions of the suite.
        seeds: Seeds of the suite.

    Raises:
        ValueError: If a part named is not in the suite.
    """
    cells = suite.cells()
    names = {cell.table.dataset for cell in cells} | {cell.table.name for cell in cells}
    _check_known("methods", methods, {cell.method for cell in cells})
    _check_known("tables", tables, names)
    _check_known("latent_dims", latent_dims, {cell.latent_dim for cell in cells})
    _check_known("seeds", seeds, {cell.seed for cell in cells})
    return [
        cell
        for cell in cells
        if (not methods or cell.method in methods)
        and (not tables or cell.table.dataset in tables or cell.table.name in tables)
        and (not latent_dims or cell.latent_dim in latent_dims)
        and (not seeds or cell.seed in seeds)
    ]


def _check_known(argument: str, asked: Sequence[Any], known: Iterable[Any]) -> None:
    options = sorted(set(known))
    unknown = [one for one in asked if one not in options]
    if unknown:
        raise ValueError(
            f"The suite has no such `{argument}`, expected of {options}. "
            + received(**{argument: unknown})
        )


def run_suite(
    suite: Suite,
    folder: Path,
    cells: Sequence[Cell],
    *,
    jobs: int = 1,
    on_cell: Listener | None = None,
) -> Results:
    """Runs the cells that are not in the results yet; each is saved as soon as it is done.

    A cell that fails leaves no row and does not stop the others.

    Args:
        suite: The suite.
        folder: Where `SUITE.csv` lies or will lie.
        cells: Cells of the suite, from `pick_cells`.
        jobs: Processes. With more than one, each gets its share of the processors.
        on_cell: Called with each cell that is done, and its outcome. The outcome is `None` if the
            cell was in the results.

    Returns:
        The results, those of earlier runs included.
    """
    results = Results(folder / f"{suite.name}.csv")
    settings = {cell.method: settings_of(cell.method, suite.training) for cell in cells}
    todo = [cell for cell in cells if not results.has(cell, settings[cell.method])]
    for cell in cells:
        if on_cell is not None and cell not in todo:
            on_cell(cell, None)
    with warnings.catch_warnings(), closing(_outcomes(suite, todo, jobs)) as outcomes:
        # joblib warns when it stops processes early or replaces one that has grown. We want both.
        warnings.filterwarnings("ignore", module=r"joblib\.")
        for cell, outcome in outcomes:
            if outcome.rows:
                labels = {"suite": suite.name, "settings": settings[cell.method]}
                results.add(cell, [labels | row for row in outcome.rows])
            if on_cell is not None:
                on_cell(cell, outcome)
    return results


def _outcomes(
    suite: Suite, cells: Sequence[Cell], jobs: int
) -> Generator[tuple[Cell, Outcome], None, None]:
    """Runs the cells and yields each with its outcome as soon as it is done.

    When the generator is closed, the processes are stopped.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    run_all = Parallel(
        jobs,
        return_as="generator_unordered",
        batch_size=1,
        initializer=_limit_threads,
        initargs=(threads,),
    )
    tasks = (delayed(_run_numbered)(number, suite, cell) for number, cell in enumerate(cells))
    with closing(run_all(tasks)) as done:
        for number, outcome in done:
            yield cells[number], outcome


def _run_numbered(number: int, suite: Suite, cell: Cell) -> tuple[int, Outcome]:
    """Returns the cell's number with its outcome, because outcomes come in any order."""
    return number, _run(suite, cell)


def _limit_threads(threads: int) -> None:
    """Gives a process its share of the processors."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def _run(suite: Suite, cell: Cell) -> Outcome:
    """Measures a cell. An error is caught, because one cell must not end a long run."""
    keras.backend.clear_session(free_memory=True)
    measure = _MEASURES[suite.measure]
    try:
        rows = measure(cell.table, cell.latent_dim, cell.method, cell.seed, suite.training)
    except Exception as error:  # noqa: BLE001
        return Outcome(error=f"{type(error).__name__}: {error}")
    return Outcome([{**row, "versions": versions()} for row in rows])
