"""Checkpoints of a fit: whole or not at all, with the history that belongs to them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import pandas as pd

__all__ = ["Checkpoints"]

_WEIGHTS, _STATE, _HISTORY = "state.weights.h5", "state.json", "history.csv"


class Checkpoints(keras.callbacks.Callback):
    """Saves weights, optimizer and history after every epoch; restores them as a fit begins.

    Keras' `BackupAndRestore` writes in place: an interruption while it writes leaves a file that
    cannot be read, and its history is lost. Here a checkpoint is a folder that is renamed when all
    of it is there, and the one before goes after that.

    Pass `initial_epoch=checkpoints.epoch` to `fit`.

    Args:
        folder: Where the checkpoints are.

    Attributes:
        epoch: Number of epochs that are done.
        history: DataFrame, a row per epoch: "epoch" from 1, the logs, and "seconds" since the fit
            began, those of earlier sessions up to their last checkpoint included.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.epoch = 0
        self.history = pd.DataFrame()
        self._restored = _newest(folder)
        self._start = time.perf_counter()
        if self._restored is not None:
            state = json.loads((self._restored / _STATE).read_text(encoding="utf-8"))
            self.epoch = int(state["epoch"])
            self._start -= float(state["seconds"])
            self.history = pd.read_csv(self._restored / _HISTORY)

    @property
    def seconds(self) -> float:
        """Seconds since the fit began, earlier sessions included."""
        return time.perf_counter() - self._start

    def on_train_begin(self, logs: Any = None) -> None:
        if self._restored is None:
            return
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self.model.load_weights(self._restored / _WEIGHTS)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        row = {"epoch": epoch + 1, **(logs or {}), "seconds": self.seconds}
        self.history = pd.concat([self.history, pd.DataFrame([row])], ignore_index=True)
        self._save(epoch + 1)
        self.epoch = epoch + 1

    def _save(self, epoch: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        before = _newest(self.folder)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".writing-") as scratch:
            fresh = Path(scratch) / f"epoch-{epoch:06d}"
            fresh.mkdir()
            self.model.save_weights(fresh / _WEIGHTS)
            self.history.to_csv(fresh / _HISTORY, index=False)
            state = {"epoch": epoch, "seconds": self.seconds}
            (fresh / _STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
            os.rename(fresh, self.folder / fresh.name)
        if before is not None:
            shutil.rmtree(before)


def _newest(folder: Path) -> Path | None:
    """The last checkpoint, if there is one."""
    return max(folder.glob("epoch-*"), default=None)
