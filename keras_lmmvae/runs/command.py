"""The commands of `keras-lmmvae`.

A command checks what it is given before it imports TensorFlow, so a mistake is told at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from keras_lmmvae.errors import received
from keras_lmmvae.runs.folder import RunFolder, find_model, load_run
from keras_lmmvae.runs.start import start_tensorflow
from keras_lmmvae.runs.tables import check_suffix, check_table, read_table, write_table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["evaluate", "example_config", "export", "fit", "inspect", "transform"]

_EXTRA_ASSETS = "assets.extra"
_EXAMPLE = Path(__file__).with_name("example.yaml")


def example_config() -> str:
    """A configuration with comments, for a table of `keras-lmmvae simulate tiny`."""
    return _EXAMPLE.read_text(encoding="utf-8")


def fit(
    config_file: Path,
    data_file: Path,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> None:
    """Fits a model to a table and writes the folder of the run.

    The folder appears when all of it is there. Until then the run is in `OUTPUT.partial`, with a
    checkpoint after every epoch.
    """
    from keras_lmmvae.runs.config import read_config

    folder = RunFolder(output)
    folder.check(overwrite=overwrite, resume=resume)
    config = read_config(config_file)
    check_table(data_file)
    start_tensorflow()
    from keras_lmmvae.runs.running import run

    text = config_file.read_text(encoding="utf-8")
    run(config, text, data_file, folder, resume=resume, console=_console(console))


def evaluate(
    run: Path, data_file: Path, *, as_json: bool = False, console: Console | None = None
) -> None:
    """Prints how well a fitted model describes the rows of a table."""
    check_table(data_file)
    find_model(run)
    start_tensorflow()
    from keras_lmmvae import from_dataframe
    from keras_lmmvae.runs.scores import feature_table, score, score_table

    console = _console(console)
    frame = read_table(data_file)
    model = load_run(run)
    scores = score(model, from_dataframe(frame, model.feature_names, model.random_effects))
    if as_json:
        # The console would break lines.
        console.file.write(json.dumps(scores.mapping(), indent=2, ensure_ascii=False) + "\n")
        return
    console.print(score_table({data_file.name: scores}))
    console.print(feature_table(scores))


def transform(
    run: Path,
    data_file: Path,
    output: Path,
    *,
    reconstruct: bool = False,
    std: bool = False,
    console: Console | None = None,
) -> None:
    """Writes the latents of the rows of a table; see `transform_rows`."""
    check_suffix(output)
    if output.resolve() == data_file.resolve():
        raise ValueError("The output is the table itself. " + received(output=str(output)))
    check_table(data_file)
    find_model(run)
    start_tensorflow()
    from keras_lmmvae.runs.transform import transform_rows

    frame = read_table(data_file)
    table = transform_rows(load_run(run), frame, reconstruct=reconstruct, std=std)
    write_table(table, output)
    _console(console).print(
        f"{len(table):,} rows, {len(table.columns)} columns: {output}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def export(run: Path, output: Path, *, warmup: bool = True, console: Console | None = None) -> None:
    """Publishes the model of a run for TensorFlow Serving; see `publish`."""
    find_model(run)
    if output.name.isdecimal() and output.exists():
        raise ValueError(
            "This version is there already: choose another number, for a server may be reading "
            "it. " + received(output=str(output))
        )
    start_tensorflow()
    from keras_lmmvae.export import publish

    console = _console(console)
    published = publish(load_run(run), output, warmup=warmup)
    kind = "warm-up requests" if warmup else "requests (none was added for warm-up)"
    console.print(
        f"{published.requests} {kind} were answered by TensorFlow in a process without "
        "keras_lmmvae and Keras. The largest relative difference to the Python model is "
        f"{published.largest_difference:.1e}.",
        highlight=False,
    )
    console.print(f"published: {published.folder}", highlight=False, soft_wrap=True)


def inspect(path: Path, console: Console | None = None) -> None:
    """Prints the card of a run, a `.keras` file or a published model."""
    if not (path / _EXTRA_ASSETS).is_dir():  # A published model has its card there.
        find_model(path)
    start_tensorflow()
    from keras_lmmvae.export.model_card import model_card, render_card
    from keras_lmmvae.export.publishing import CARD_FILE, read_card

    is_published = (path / CARD_FILE).exists()
    card = read_card(path) if is_published else model_card(load_run(path))
    _console(console).print(render_card(card), highlight=False, markup=False, soft_wrap=True)


def _console(given: Console | None) -> Console:
    from rich.console import Console

    return given or Console()
