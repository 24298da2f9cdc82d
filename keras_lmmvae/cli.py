"""The command line: `keras-lmmvae COMMAND`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "benchmark", "demo", "export", "inspect", "main", "suites"]

app = typer.Typer(
    name="keras-lmmvae",
    help="Variational autoencoders for tables whose rows are correlated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

USAGE_ERROR, INTERRUPTED = 2, 130

Names = list[str] | None
Numbers = list[int] | None


# The rooms are imported by the commands: each loads only what it needs.
@app.command(epilog="Example: keras-lmmvae benchmark paper-small --jobs 2")
def benchmark(
    suite: Annotated[str, typer.Argument(help="Name of the suite; `suites` lists them.")],
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
) -> None:
    """Compares methods side by side; writes SUITE.csv, SUITE.md and figures.

    Every fit is saved when it is done. A run that was interrupted goes on where it stopped: fits
    that are in SUITE.csv with the same settings are not repeated.
    """
    from keras_lmmvae.benchmark import command

    parts = {"methods": method, "tables": table, "latent_dims": latent_dim, "seeds": seed}
    try:
        failures = command.benchmark(suite, output, parts, jobs=jobs, report_only=report_only)
    except KeyboardInterrupt:
        typer.echo("keras-lmmvae: interrupted; what was done is saved, run it again.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if failures:
        raise typer.Exit(1)


@app.command(epilog="Example: keras-lmmvae suites")
def suites() -> None:
    """Lists the suites of `benchmark`."""
    from keras_lmmvae.benchmark import command

    command.list_suites()


@app.command(epilog="Example: keras-lmmvae export runs/houses -o models/houses/1")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a .keras file.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="models/NAME/VERSION; without the version: the next one."
        ),
    ],
    warmup: Annotated[
        bool, typer.Option(help="Add warm-up requests; needs tensorflow-serving-api.")
    ] = True,
) -> None:
    """Publishes a model for TensorFlow Serving: written, checked, then moved into place.

    The exported model is loaded through TensorFlow's C API and must answer as the Python model.
    """
    from keras_lmmvae.export import command

    command.export(run, output, warmup=warmup)


@app.command(epilog="Example: keras-lmmvae inspect models/houses/1")
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Folder of a run or of a published model, or a .keras file.")
    ],
) -> None:
    """Prints the card of a model: terms, levels, variances, ICC, data fingerprint, versions."""
    from keras_lmmvae.export import command

    command.inspect(path)


@app.command(epilog="Example: keras-lmmvae demo --output demo_output")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path(
        "demo_output"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both autoencoders.")] = 25,
) -> None:
    """Fits a model to real data, shows the results, exports it and serves a request."""
    from keras_lmmvae.demo import run

    run(output, epochs=epochs)


def main() -> None:
    """Runs a command; bad input ends with one line and exit status 2."""
    try:
        app()
    except (ValueError, ImportError) as error:
        print(f"keras-lmmvae: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()
