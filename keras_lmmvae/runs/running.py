"""A run: fit, measure, write, move into place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from keras_lmmvae.export.model_card import model_card
from keras_lmmvae.feature_names import listed
from keras_lmmvae.runs.checkpoints import Checkpoints
from keras_lmmvae.runs.config import Config
from keras_lmmvae.runs.fitting import early_stopping, fit_job
from keras_lmmvae.runs.folder import CONFIG, LOG, RunFolder, load_run, run_log
from keras_lmmvae.runs.job import Job, make_job
from keras_lmmvae.runs.pictures import draw_pictures
from keras_lmmvae.runs.results import write_effects, write_metrics, write_variances
from keras_lmmvae.runs.scores import Scores, score, score_table
from keras_lmmvae.runs.tables import check_suffix, read_table

if TYPE_CHECKING:
    from keras_lmmvae import LMMVAE

__all__ = ["run"]


def run(
    config: Config,
    config_text: str,
    data_file: Path,
    folder: RunFolder,
    *,
    resume: bool,
    console: Console,
) -> None:
    """Fits a model to a table and writes the folder of the run; see `command.fit`."""
    config.make_model()  # Its checks come before any data are read.
    job = make_job(config, read_table(data_file))
    is_there = resume and (folder.is_resumable or folder.is_complete)
    if is_there:
        folder.check_same(job.files())
    if is_there and not folder.is_resumable:
        console.print("The run is complete: there is nothing to resume.")
        return
    if not is_there:
        if resume:
            console.print("There is nothing to resume: starting at the first epoch.")
        folder.start({CONFIG: config_text, **job.files()})
    _print_job(job, console)
    scores = _run_job(job, folder, check_suffix(data_file), console)
    console.print(score_table(scores))
    console.print(f"written: {folder.given}", highlight=False, soft_wrap=True)


def _print_job(job: Job, console: Console) -> None:
    terms = ", ".join(term.label for term in job.config.terms()) or "none"
    source = job.source()
    console.print(
        f"{source['train_rows']:,} rows to learn from, {source['validation_rows']:,} held out; "
        f"{len(job.features)} features: {listed(job.features, most=8)}; random effects: {terms}",
        highlight=False,
        markup=False,
    )


def _run_job(job: Job, folder: RunFolder, suffix: str, console: Console) -> dict[str, Scores]:
    """Makes the run in the folder beside its place, and moves it into place when it is whole."""
    checkpoints = Checkpoints(folder.checkpoints, early_stopping(job.config.training))
    try:
        with run_log(folder.partial):
            LOG.info("%s", job.source())
            model = _fitted(job, folder, checkpoints, console)
            seconds = checkpoints.seconds
            scores = _scores(job, model, console)
            metrics = _metrics(job, model, scores, checkpoints.epoch, seconds)
            write_metrics(metrics, checkpoints.history, folder.partial)
            write_variances(model, job.train, folder.partial)
            write_effects(model, folder.partial, suffix)
            _draw(job, model, checkpoints.history, folder.partial, console)
            LOG.info("complete")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted(job, folder, checkpoints)) from None
    finally:
        # Without a checkpoint there is nothing to go on from.
        if not folder.is_resumable:
            folder.discard()
    folder.finish()
    return scores


def _fitted(job: Job, folder: RunFolder, checkpoints: Checkpoints, console: Console) -> LMMVAE:
    if folder.model.exists():  # The run was interrupted while its results were written.
        return load_run(folder.model)
    model = fit_job(job, checkpoints, console)
    model.save(folder.model)
    LOG.info("fitted in %.1f s", checkpoints.seconds)
    return model


def _scores(job: Job, model: LMMVAE, console: Console) -> dict[str, Scores]:
    with console.status("measuring ..."):
        scores = {"training": score(model, job.train)}
        if job.validation is not None:
            scores["held out"] = score(model, job.validation)
    return scores


def _metrics(
    job: Job, model: LMMVAE, scores: dict[str, Scores], epochs: int, seconds: float
) -> dict[str, Any]:
    held_out = scores.get("held out")
    return {
        "train": scores["training"].mapping(),
        "validation": None if held_out is None else held_out.mapping(),
        "epochs": epochs,
        "seconds": seconds,
        "data": job.source(),
        "versions": model_card(model)["versions"],
    }


def _draw(job: Job, model: LMMVAE, history: pd.DataFrame, folder: Path, console: Console) -> None:
    shown = job.train if job.validation is None else job.validation
    if not draw_pictures(model, history, job.train, shown, folder):
        note = "no pictures: they need Matplotlib, `pip install keras-lmmvae[plots]`"
        LOG.info(note)
        console.print(note, highlight=False, markup=False)


def _interrupted(job: Job, folder: RunFolder, checkpoints: Checkpoints) -> str:
    if not folder.is_resumable:
        return "interrupted before the first epoch was done; nothing was written."
    return (
        f"interrupted after epoch {checkpoints.epoch} of {job.config.training.epochs}; go on with "
        "the same command and --resume."
    )
