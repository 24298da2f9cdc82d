"""The command line: `keras-lmmvae COMMAND`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "app",
    "evaluate",
    "export",
    "fit",
    "inspect",
    "main",
    "simulate",
    "transform",
]

app = typer.Typer(
    name="keras-lmmvae",
    help="Variational autoencoders for tables whose rows are correlated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

USAGE_ERROR, INTERRUPTED = 2, 130

Table = Annotated[Path, typer.Argument(help="Table: a .csv or .parquet file.", metavar="DATA")]
Run = Annotated[Path, typer.Argument(help="Folder of a run, or a .keras file.")]


def _print_example(wanted: bool) -> None:
    if wanted:
        from keras_lmmvae.runs.command import example_config

        typer.echo(example_config(), nl=False)
        raise typer.Exit


# The rooms are imported by the commands: each loads only what it needs.
@app.command(epilog="Example: keras-lmmvae fit config.yaml patients.csv -o runs/patients")
def fit(
    config: Annotated[
        Path, typer.Argument(help="Features, random effects, model and training, in YAML.")
    ],
    data: Table,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is there, when done.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was interrupted.")
    ] = False,
    example: Annotated[
        bool,
        typer.Option(
            "--example",
            is_eager=True,
            callback=_print_example,
            help="Print a configuration with comments, and do nothing else.",
        ),
    ] = False,
) -> None:
    """Fits a model to a table; writes model, metrics, effects, variances and pictures.

    There is a checkpoint after every epoch: after Ctrl-C or a crash, the same command with
    --resume goes on.
    """
    del example  # its callback has done all there is to do
    from keras_lmmvae.runs import command

    try:
        command.fit(config, data, output, overwrite=overwrite, resume=resume)
    except KeyboardInterrupt as stop:
        typer.echo(f"keras-lmmvae: {str(stop) or 'interrupted.'}", err=True)
        raise typer.Exit(INTERRUPTED) from None


@app.command(epilog="Example: keras-lmmvae evaluate runs/patients patients.csv --json")
def evaluate(
    run: Run,
    data: Table,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measures a fitted model on a table: errors with and without effects, likelihood, levels."""
    from keras_lmmvae.runs import command

    command.evaluate(run, data, as_json=as_json)


@app.command(epilog="Example: keras-lmmvae transform runs/patients patients.csv -o latents.csv")
def transform(
    run: Run,
    data: Table,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .csv or .parquet file.")],
    reconstruct: Annotated[
        bool, typer.Option("--reconstruct", help="Add the reconstruction of every feature.")
    ] = False,
    std: Annotated[bool, typer.Option("--std", help="Add standard deviations.")] = False,
) -> None:
    """Writes the latent variables of the rows of a table, beside their keys."""
    from keras_lmmvae.runs import command

    command.transform(run, data, output, reconstruct=reconstruct, std=std)


@app.command(epilog="Example: keras-lmmvae simulate tiny --table longitudinal -o patients.csv")
def simulate(
    suite: Annotated[str, typer.Argument(help="Name of a simulated suite.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .csv or .parquet file.")],
    table: Annotated[str | None, typer.Option(help="Which table of the suite.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows, instead of the suite's.")] = None,
    latent_dim: Annotated[int, typer.Option(min=1, help="Latent variables.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulation.")] = 0,
) -> None:
    """Writes a simulated table; its truth goes to NAME_truth and NAME_variances."""
    from keras_lmmvae.runs.simulate import simulate as run_simulation

    run_simulation(suite, output, table=table, num_rows=rows, latent_dim=latent_dim, seed=seed)


@app.command(epilog="Example: keras-lmmvae export runs/houses -o models/houses/1")
def export(
    run: Run,
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

    TensorFlow loads the export in a process without this package. It must answer as the Python
    model does.
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


def main() -> None:
    """Runs a command; bad input ends with one line and exit status 2."""
    try:
        app()
    except (ValueError, ImportError, OSError) as error:
        print(f"keras-lmmvae: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    main()
