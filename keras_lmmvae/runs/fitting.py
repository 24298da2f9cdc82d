"""The fit of a job: model, optimizer, early stopping, checkpoints and a progress bar."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.runs.checkpoints import Checkpoints
from keras_lmmvae.runs.config import TrainingSettings
from keras_lmmvae.runs.folder import LOG
from keras_lmmvae.runs.job import Job

if TYPE_CHECKING:
    from keras_lmmvae import LMMVAE

__all__ = ["FitProgress", "early_stopping", "fit_job", "make_optimizer"]


def fit_job(job: Job, checkpoints: Checkpoints, console: Console) -> LMMVAE:
    """Fits the model of a job, from the last checkpoint if there is one."""
    training = job.config.training
    model = job.config.make_model()
    model.adapt(job.train, feature_names=job.features)
    model.compile(optimizer=make_optimizer(training, len(job.train["x"])))
    stopping = [] if checkpoints.stopping is None else [checkpoints.stopping]
    with FitProgress(training.epochs, checkpoints.epoch, console) as progress:
        model.fit(
            job.train,
            epochs=training.epochs,
            initial_epoch=checkpoints.initial_epoch(training.epochs),
            batch_size=training.batch_size,
            validation_data=job.validation,
            # The bar and the log come last, so that they tell of epochs that are saved.
            callbacks=[*stopping, checkpoints, progress],
            verbose=0,
        )
    return model


def make_optimizer(training: TrainingSettings, num_rows: int) -> keras.optimizers.Optimizer:
    """Adam with the schedule of the settings."""
    if training.schedule == "constant":
        return keras.optimizers.Adam(training.learning_rate)
    return cosine_adam(training.learning_rate, num_rows, training.batch_size, training.epochs)


def early_stopping(training: TrainingSettings) -> keras.callbacks.EarlyStopping | None:
    """The early stopping of the settings: it watches the rows held out, if there are any."""
    if training.patience is None:
        return None
    monitor = "loss" if training.validation is None else "val_loss"
    return keras.callbacks.EarlyStopping(
        monitor, patience=training.patience, restore_best_weights=True
    )


class FitProgress(keras.callbacks.Callback):
    """Shows epochs in a terminal, and writes a line each to the log; a context manager.

    Args:
        epochs: Number of epochs.
        done: How many of them were done before.
        console: Where to show the bar. Nothing is shown unless it is a terminal.
    """

    def __init__(self, epochs: int, done: int, console: Console) -> None:
        super().__init__()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        self.epochs = epochs
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("starting values", total=epochs, completed=done, loss="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._bar.update(self._task, description="epoch")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = logs or {}
        LOG.info(
            "epoch %d of %d: %s",
            epoch + 1,
            self.epochs,
            ", ".join(f"{name} {value:.5g}" for name, value in logs.items()),
        )
        loss = f"loss {logs['loss']:.4g}"
        if "val_loss" in logs:
            loss += f", held out {logs['val_loss']:.4g}"
        self._bar.update(self._task, completed=epoch + 1, loss=loss)

    def on_train_end(self, logs: Any = None) -> None:
        self._bar.update(self._task, description="effects")
