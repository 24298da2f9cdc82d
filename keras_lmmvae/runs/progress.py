"""A progress bar for `fit`: epochs, loss and the time that is left."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from keras_lmmvae.runs.run_log import LOG

__all__ = ["FitProgress"]


class FitProgress(keras.callbacks.Callback):
    """Shows epochs in a terminal, and writes a line each to the log; a context manager.

    Args:
        epochs: Number of epochs.
        done: How many of them were done before.
        console: Where to show the bar; nothing is shown unless it is a terminal.
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
