"""What `keras-lmmvae fit`, `evaluate` and `transform` do."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from keras_lmmvae.data_frame import from_dataframe
from keras_lmmvae.export.command import load_run
from keras_lmmvae.feature_names import listed
from keras_lmmvae.runs.config import read_config
from keras_lmmvae.runs.folder import CONFIG, RunFolder
from keras_lmmvae.runs.job import Job, make_job
from keras_lmmvae.runs.running import job_files, run_job
from keras_lmmvae.runs.scores import score
from keras_lmmvae.runs.summary import feature_table, score_table
from keras_lmmvae.runs.tables import check_suffix, read_table, write_table
from keras_lmmvae.runs.transform import transform_rows
from keras_lmmvae.validation import received

__all__ = ["evaluate", "example_config", "fit", "transform"]

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

    Args:
        config_file: The configuration.
        data_file: The table.
        output: Folder of the run.
        overwrite: Whether to replace a run that is there.
        resume: Whether to go on with a run that was interrupted; it starts if there is none.
        console: Where to print; standard output by default.

    Raises:
        ValueError: On a bad configuration or bad data, or if something would be lost.
        KeyboardInterrupt: With a line that says how to go on.
    """
    console = console or Console()
    folder = RunFolder(output)
    folder.check(overwrite=overwrite, resume=resume)
    config = read_config(config_file)
    suffix = check_suffix(data_file)
    job = make_job(config, read_table(data_file))
    files = job_files(job)
    is_there = resume and (folder.is_resumable or folder.is_complete)
    if is_there:
        folder.check_same(files)
    if is_there and not folder.is_resumable:
        console.print("The run is complete: there is nothing to resume.")
        return
    if not is_there:
        if resume:
            console.print("There is nothing to resume: starting at the first epoch.")
        given = {CONFIG: config_file.read_text(encoding="utf-8")}
        folder.start(given | files)
    _print_job(job, console)
    scores = run_job(job, folder, suffix, console)
    console.print(score_table(scores))
    console.print(f"written: {output}", highlight=False, soft_wrap=True)


def _print_job(job: Job, console: Console) -> None:
    terms = ", ".join(term.label for term in job.config.random_effects) or "none"
    held_out = 0 if job.validation is None else len(job.validation["x"])
    console.print(
        f"{len(job.train['x']):,} rows to learn from, {held_out:,} held out; "
        f"{len(job.features)} features: {listed(job.features, most=8)}; random effects: {terms}",
        highlight=False,
        markup=False,
    )


def evaluate(
    run: Path, data_file: Path, *, as_json: bool = False, console: Console | None = None
) -> None:
    """Prints how well a fitted model describes the rows of a table.

    Args:
        run: Folder of a run, or a `.keras` file.
        data_file: The table.
        as_json: Whether to print JSON instead of tables.
        console: Where to print; standard output by default.

    Raises:
        ValueError: If there is no model, or on bad data.
    """
    console = console or Console()
    frame = read_table(data_file)
    model = load_run(run)
    scores = score(model, from_dataframe(frame, model.feature_names, model.random_effects))
    if as_json:
        # Not through the console, which would break lines.
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
    """Writes the latents of the rows of a table; see `transform_rows`.

    Args:
        run: Folder of a run, or a `.keras` file.
        data_file: The table.
        output: ".csv" or ".parquet" file.
        reconstruct: Whether to add reconstructions.
        std: Whether to add standard deviations.
        console: Where to print; standard output by default.

    Raises:
        ValueError: If there is no model, on bad data, or if the output is the table itself.
    """
    check_suffix(output)
    if output.resolve() == data_file.resolve():
        raise ValueError("The output is the table itself. " + received(output=str(output)))
    frame = read_table(data_file)
    table = transform_rows(load_run(run), frame, reconstruct=reconstruct, std=std)
    write_table(table, output)
    (console or Console()).print(
        f"{len(table):,} rows, {len(table.columns)} columns: {output}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
