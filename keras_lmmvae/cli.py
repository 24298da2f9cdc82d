"""The command line: `keras-lmmvae COMMAND`.

TensorFlow is imported by the commands, when their arguments have been checked.
"""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import keras_lmmvae
from keras_lmmvae.runs import command
from keras_lmmvae.runs.tables import check_suffix

__all__ = [
    "app",
    "evaluate",
    "export",
    "fit",
    "inspect",
    "main",
    "options",
    "simulate",
    "transform",
]

app = typer.Typer(
    name="keras-lmmvae",
    add_completion=False,
    rich_markup_mode=None,  # Rich takes longer to import than all the rest of `--help`.
    pretty_exceptions_enable=False,
)

USAGE_ERROR, INTERRUPTED = 2, 130

Table = Annotated[Path, typer.Argument(help="Table: a .csv or .parquet file.", metavar="DATA")]
Run = Annotated[Path, typer.Argument(help="Folder of a run, or a .keras file.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keras-lmmvae {keras_lmmvae.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Variational autoencoders for tables whose rows are correlated."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _print_example(wanted: bool) -> None:
    if wanted:
        typer.echo(command.example_config(), nl=False)
        raise typer.Exit


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
    del example  # Its callback has printed it.
    try:
        command.fit(config, data, output, overwrite=overwrite, resume=resume)
    except KeyboardInterrupt as stop:  # Its text says how to go on.
        _fail(str(stop) or "interrupted.", INTERRUPTED)


@app.command(epilog="Example: keras-lmmvae evaluate runs/patients patients.csv --json")
def evaluate(
    run: Run,
    data: Table,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measures a fitted model on a table: errors with and without effects, likelihood, levels."""
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
    check_suffix(output)
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
    command.export(run, output, warmup=warmup)


@app.command(epilog="Example: keras-lmmvae inspect models/houses/1")
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Folder of a run or of a published model, or a .keras file.")
    ],
) -> None:
    """Prints the card of a model: terms, levels, variances, ICC, data fingerprint, versions."""
    command.inspect(path)


def main() -> None:
    """Runs a command; bad input ends with one line and exit status 2, Ctrl-C with 130."""
    try:
        status = app(prog_name=app.info.name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except (ValueError, ImportError, OSError) as error:
        _fail(str(error), USAGE_ERROR)
    except Exception as error:
        # Typer's errors of usage have no public class of their own.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        stop = "" if message.endswith((".", "?")) else "."
        context = getattr(error, "ctx", None)
        hint = "" if context is None else f" Try '{context.command_path} --help'."
        _fail(message + stop + hint, USAGE_ERROR)
    if status == INTERRUPTED:
        _fail("interrupted.", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    print(f"keras-lmmvae: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
