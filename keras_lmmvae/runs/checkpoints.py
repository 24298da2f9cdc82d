"""Checkpoints of a fit: whole or not at all, with the history that belongs to them."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import keras
import pandas as pd

from keras_lmmvae.files import written_whole

__all__ = ["Checkpoints"]

_WEIGHTS, _BEST = "state.weights.h5", "best.weights.h5"
_STATE, _HISTORY = "state.json", "history.csv"
_STOPPING = ("best", "best_epoch", "wait")


class Checkpoints(keras.callbacks.Callback):
    """Saves weights, optimizer, history and early stopping after every epoch, and restores them.

    Keras' callbacks do less. `BackupAndRestore` writes in place, so a process that is killed
    meanwhile may leave a backup that cannot be read, or weights of another epoch than its number.
    It keeps no best weights. `CSVLogger` repeats an epoch that was logged but not backed up. Here
    a checkpoint is a folder with all of it. The one before is removed when the new one is whole.

    Pass `initial_epoch=checkpoints.initial_epoch(epochs)` to `fit`.

    Args:
        folder: Where the checkpoints are.
        stopping: Early stopping of the fit. It must stand before this callback in the list.

    Attributes:
        epoch: Number of epochs that are done.
        history: DataFrame, a row per epoch: "epoch" from 1, the logs, and "seconds" since the fit
            began. It begins with the epochs of earlier sessions up to their last checkpoint.
    """

    def __init__(self, folder: Path, stopping: keras.callbacks.EarlyStopping | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.stopping = stopping
        self.epoch = 0
        self.history = pd.DataFrame()
        self._restored = _newest(folder)
        self._state: dict[str, Any] = {}
        self._start = time.perf_counter()
        if self._restored is not None:
            self._state = json.loads((self._restored / _STATE).read_text(encoding="utf-8"))
            self.epoch = int(self._state["epoch"])
            self._start -= float(self._state["seconds"])
            self.history = pd.read_csv(self._restored / _HISTORY)

    @property
    def seconds(self) -> float:
        """Seconds since the fit began, earlier sessions included."""
        return time.perf_counter() - self._start

    def initial_epoch(self, epochs: int) -> int:
        """The epoch to go on with, counted from 0."""
        return epochs if self._state.get("is_stopped") else self.epoch

    def on_train_begin(self, logs: Any = None) -> None:
        if self._restored is None:
            return
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        if self.stopping is not None and self._state["stopping"] is not None:
            self.model.load_weights(self._restored / _BEST)
            self.stopping.best_weights = self.model.get_weights()
            for name in _STOPPING:
                setattr(self.stopping, name, self._state["stopping"][name])
        self.model.load_weights(self._restored / _WEIGHTS)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        row = {"epoch": epoch + 1, **(logs or {}), "seconds": self.seconds}
        self.history = pd.concat([self.history, pd.DataFrame([row])], ignore_index=True)
        self._save(epoch + 1)
        self.epoch = epoch + 1

    def _save(self, epoch: int) -> None:
        before = _newest(self.folder)
        with written_whole(self.folder / f"epoch-{epoch:06d}") as fresh:
            fresh.mkdir()
            self.model.save_weights(fresh / _WEIGHTS)
            self.history.to_csv(fresh / _HISTORY, index=False)
            state = {
                "epoch": epoch,
                "seconds": self.seconds,
                "stopping": self._save_stopping(fresh, before),
                "is_stopped": bool(self.model.stop_training),
            }
            (fresh / _STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        if before is not None:
            shutil.rmtree(before)

    def _save_stopping(self, fresh: Path, before: Path | None) -> dict[str, Any] | None:
        """Copies the file of the best weights: that of this epoch, or the one before."""
        if self.stopping is None or self.stopping.best_weights is None:
            return None
        if before is None or self.stopping.wait == 0:
            best = fresh / _WEIGHTS
        else:
            best = before / _BEST
        shutil.copyfile(best, fresh / _BEST)
        state = {name: getattr(self.stopping, name) for name in _STOPPING}
        return {**state, "best": float(state["best"])}


def _newest(folder: Path) -> Path | None:
    """The last checkpoint, if there is one."""
    return max(folder.glob("epoch-*"), default=None)
