"""Runs a suite: cell by cell, resumable, on one or more processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from keras_lmmvae.benchmark.classification import measure_classification
from keras_lmmvae.benchmark.measure import measure_reconstruction, versions
from keras_lmmvae.benchmark.methods import settings_of
from keras_lmmvae.benchmark.results import Results
from keras_lmmvae.benchmark.suites import Cell, Suite, find_suite
from keras_lmmvae.validation import received

__all__ = ["Outcome", "pick_cells", "run_suite"]

Listener = Callable[[Cell, "Outcome | None"], None]


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: rows of results, or the error that ended it."""

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
    """The cells of a suite, or a part of them.

    Args:
        suite: The suite.
        methods: Names of methods; none: all.
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
        on_cell: Called with each cell that is done, and its outcome; `None`: it was there.

    Returns:
        The results, those of earlier runs included.
    """
    results = Results(folder / f"{suite.name}.csv")
    settings = {cell.method: settings_of(cell.method, suite.training) for cell in cells}
    todo = [cell for cell in cells if not results.has(cell, settings[cell.method])]
    for cell in cells:
        if on_cell is not None and cell not in todo:
            on_cell(cell, None)
    for cell, outcome in _outcomes(suite, todo, jobs):
        if outcome.rows:
            labels = {"suite": suite.name, "settings": settings[cell.method]}
            results.add(cell, [labels | row for row in outcome.rows])
        if on_cell is not None:
            on_cell(cell, outcome)
    return results


def _outcomes(suite: Suite, cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, Outcome]]:
    if jobs == 1:
        for cell in cells:
            yield cell, _run(suite, cell)
        return
    # Fresh processes: TensorFlow does not survive a fork. Tables hold functions that cannot be
    # sent, so a process is told the cell's names.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, context, _limit_threads, (threads,))
    try:
        futures: dict[Future[Outcome], Cell] = {
            pool.submit(_run_named, suite.name, _key(cell)): cell for cell in cells
        }
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        # An interrupted run must not wait for the cells that are left.
        pool.shutdown(wait=False, cancel_futures=True)


def _key(cell: Cell) -> tuple[str, int, int, str]:
    return cell.table.name, cell.latent_dim, cell.seed, cell.method


def _run_named(suite_name: str, key: tuple[str, int, int, str]) -> Outcome:
    suite = find_suite(suite_name)
    (cell,) = [cell for cell in suite.cells() if _key(cell) == key]
    return _run(suite, cell)


def _limit_threads(threads: int) -> None:
    """Gives a process its share of the processors."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def _run(suite: Suite, cell: Cell) -> Outcome:
    """Measures a cell; an error is caught here, for a long run must not end with one cell."""
    keras.backend.clear_session(free_memory=True)
    measure = _MEASURES[suite.measure]
    try:
        rows = measure(cell.table, cell.latent_dim, cell.method, cell.seed, suite.training)
    except Exception as error:  # noqa: BLE001
        return Outcome(error=f"{type(error).__name__}: {error}")
    return Outcome([{**row, "versions": versions()} for row in rows])
