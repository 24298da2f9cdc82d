"""The command line of the benchmark: `python -m benchmarks SUITE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "main", "run"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

USAGE_ERROR, INTERRUPTED = 2, 130

Names = list[str] | None
Numbers = list[int] | None


def _list_suites(wanted: bool) -> None:
    if wanted:
        from benchmarks.command import list_suites

        list_suites()
        raise typer.Exit


@app.command(epilog="Example: python -m benchmarks paper-small --jobs 2", no_args_is_help=True)
def run(
    suite: Annotated[str, typer.Argument(help="Name of the suite; --list shows them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path(
        "benchmarks/results"
    ),
    method: Annotated[Names, typer.Option(help="Only this method; may be repeated.")] = None,
    table: Annotated[
        Names,
        typer.Option(help='Only this data set, or with its split: "longitudinal-3/future".'),
    ] = None,
    latent_dim: Annotated[Numbers, typer.Option(help="Only this number of latents.")] = None,
    seed: Annotated[Numbers, typer.Option(help="Only this seed.")] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes, each with its share of the processors.")
    ] = 1,
    report_only: Annotated[
        bool,
        typer.Option("--report-only", help="Fit nothing; report what is there."),
    ] = False,
    list_suites: Annotated[
        bool,
        typer.Option("--list", is_eager=True, callback=_list_suites, help="List the suites."),
    ] = False,
) -> None:
    """Compares methods side by side; writes SUITE.csv, SUITE.md and figures.

    Every fit is saved when it is done. A run that was interrupted goes on where it stopped: fits
    that are in SUITE.csv with the same settings are not repeated.
    """
    del list_suites  # Its callback has listed them.
    from benchmarks import command

    parts = {"methods": method, "tables": table, "latent_dims": latent_dim, "seeds": seed}
    try:
        failures = command.benchmark(suite, output, parts, jobs=jobs, report_only=report_only)
    except KeyboardInterrupt:
        typer.echo("benchmarks: interrupted; what was done is saved, run it again.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if failures:
        raise typer.Exit(1)


def main() -> None:
    """Runs the command; bad input ends with one line and exit status 2."""
    try:
        app(prog_name="python -m benchmarks")
    except (ValueError, ImportError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()
