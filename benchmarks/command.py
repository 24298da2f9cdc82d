"""What `python -m benchmarks` does: runs a suite with progress, then writes tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from benchmarks.figures import draw_figures
from benchmarks.report import write_report
from benchmarks.results import Results
from benchmarks.runner import Outcome, pick_cells, run_suite
from benchmarks.suites import SUITES, Cell, Suite, find_suite
from keras_lmmvae.validation import received

__all__ = ["benchmark", "list_suites"]


def benchmark(
    name: str,
    folder: Path,
    parts: Mapping[str, Sequence[Any] | None],
    *,
    jobs: int = 1,
    report_only: bool = False,
    console: Console | None = None,
) -> int:
    """Runs a suite, or only reports the results that it has.

    Args:
        name: Name of the suite.
        folder: Folder of the results.
        parts: Arguments of `pick_cells`.
        jobs: Processes.
        report_only: Whether to fit nothing.
        console: Where to print; standard output by default.

    Returns:
        The number of fits that failed.

    Raises:
        ValueError: If the suite or a part of it is unknown, or there is nothing to report.
    """
    console = console or Console()
    suite = find_suite(name)
    cells = pick_cells(suite, **{key: value or () for key, value in parts.items()})
    failures = [] if report_only else _run(suite, folder, cells, jobs, console)
    results = Results(folder / f"{name}.csv")
    if results.frame.empty:
        raise ValueError("There are no results to report. " + received(file=str(results.path)))
    report = folder / f"{name}.md"
    write_report(suite, results.frame, report)
    for file in (results.path, report, *draw_figures(name, results.frame, folder)):
        console.print(f"  {file}", highlight=False, soft_wrap=True)
    for line in failures:
        console.print(f"failed: {line}", style="red", highlight=False, markup=False)
    return len(failures)


def _run(
    suite: Suite, folder: Path, cells: Sequence[Cell], jobs: int, console: Console
) -> list[str]:
    """Runs the cells with a progress bar and a line for each; returns the failures."""
    failures: list[str] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(suite.name, total=len(cells))

        def on_cell(cell: Cell, outcome: Outcome | None) -> None:
            progress.advance(task)
            if outcome is None:
                return
            label = f"{cell.table.name}, d = {cell.latent_dim}, seed {cell.seed}, {cell.method}"
            if outcome.error:
                failures.append(f"{label}: {outcome.error}")
            progress.console.print(
                f"{label}: {outcome.error or _found(outcome)}", highlight=False, markup=False
            )

        run_suite(suite, folder, cells, jobs=jobs, on_cell=on_cell)
    return failures


def _found(outcome: Outcome) -> str:
    """The first number of the cell, with its time."""
    row = outcome.rows[0]
    measure = "mse" if "mse" in row else "accuracy"
    return f"{measure} {row[measure]:.3f}  ({row['seconds']:.0f} s)"


def list_suites(console: Console | None = None) -> None:
    """Prints the suites with their sizes."""
    table = RichTable(title="Suites of python -m benchmarks")
    for column in ("suite", "fits", "what it shows"):
        table.add_column(column, justify="right" if column == "fits" else "left")
    for suite in SUITES.values():
        table.add_row(suite.name, str(len(suite.cells())), suite.title)
    (console or Console()).print(table)
