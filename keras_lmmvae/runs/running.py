"""From a job to the folder of its run: fit, measure, write, move into place."""

from __future__ import annotations

import json
from typing import Any

import yaml
from rich.console import Console

from keras_lmmvae.export.command import load_run
from keras_lmmvae.export.model_card import model_card
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.runs.checkpoints import Checkpoints
from keras_lmmvae.runs.fitting import fit_job
from keras_lmmvae.runs.folder import RunFolder
from keras_lmmvae.runs.job import Job
from keras_lmmvae.runs.pictures import draw_pictures
from keras_lmmvae.runs.progress import FitProgress
from keras_lmmvae.runs.results import write_effects, write_metrics, write_variances
from keras_lmmvae.runs.run_log import LOG, run_log
from keras_lmmvae.runs.scores import Scores, score

__all__ = ["DATA", "RESOLVED", "job_files", "run_job"]

RESOLVED, DATA = "resolved.yaml", "data.json"


def job_files(job: Job) -> dict[str, str]:
    """The files that say what a run was made of: a run is resumed only with the same ones.

    Args:
        job: The job.

    Returns:
        Name -> text: the configuration with all defaults, and a fingerprint of the data.
    """
    resolved = yaml.safe_dump(job.config.mapping(), sort_keys=False, allow_unicode=True)
    return {RESOLVED: resolved, DATA: json.dumps(job.source(), indent=2) + "\n"}


def run_job(job: Job, folder: RunFolder, suffix: str, console: Console) -> dict[str, Scores]:
    """Fits a job in the sibling of the folder, writes all files, and moves it into place.

    Args:
        job: The job.
        folder: The folder; its sibling is made.
        suffix: ".csv" or ".parquet", of the tables of effects.
        console: Where to show progress.

    Returns:
        "training" and "held out" -> scores.

    Raises:
        ValueError: On bad data; nothing is left of the run.
        KeyboardInterrupt: With a line that says how to go on.
    """
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        with run_log(folder.partial):
            scores = _run(job, folder, checkpoints, suffix, console)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted(job, folder, checkpoints)) from None
    finally:
        # Without a checkpoint there is nothing to go on from.
        if not folder.is_resumable:
            folder.discard()
    folder.finish()
    return scores


def _run(
    job: Job, folder: RunFolder, checkpoints: Checkpoints, suffix: str, console: Console
) -> dict[str, Scores]:
    LOG.info("%s", job.source())
    if folder.model.exists():  # interrupted while the results were written
        model = load_run(folder.model)
    else:
        with FitProgress(job.config.training.epochs, checkpoints.epoch, console) as progress:
            model = fit_job(job, checkpoints, [progress])
        model.save(folder.model)
    seconds = checkpoints.seconds
    LOG.info("fitted in %.1f s", seconds)
    with console.status("measuring ..."):
        scores = {"training": score(model, job.train)}
        if job.validation is not None:
            scores["held out"] = score(model, job.validation)
    _write(job, model, scores, folder, checkpoints, seconds, suffix, console)
    return scores


def _write(
    job: Job,
    model: LMMVAE,
    scores: dict[str, Scores],
    folder: RunFolder,
    checkpoints: Checkpoints,
    seconds: float,
    suffix: str,
    console: Console,
) -> None:
    held_out = scores.get("held out")
    metrics: dict[str, Any] = {
        "train": scores["training"].mapping(),
        "validation": None if held_out is None else held_out.mapping(),
        "epochs": checkpoints.epoch,
        "seconds": seconds,
        "data": job.source(),
        "versions": model_card(model)["versions"],
    }
    write_metrics(metrics, checkpoints.history, folder.partial)
    write_variances(model, job.train, folder.partial)
    write_effects(model, folder.partial, suffix)
    shown = job.train if job.validation is None else job.validation
    if not draw_pictures(model, checkpoints.history, job.train, shown, folder.partial):
        note = "no pictures: they need Matplotlib, `pip install keras-lmmvae[plots]`"
        LOG.info(note)
        console.print(note, highlight=False, markup=False)
    LOG.info("complete")


def _interrupted(job: Job, folder: RunFolder, checkpoints: Checkpoints) -> str:
    if not folder.is_resumable:
        return "interrupted before the first epoch was done; nothing was written."
    return (
        f"interrupted after epoch {checkpoints.epoch} of {job.config.training.epochs}; go on with "
        "the same command and --resume."
    )
