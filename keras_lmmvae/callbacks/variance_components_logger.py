"""Variance components epoch by epoch, as a CSV file and for TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_lmmvae.callbacks.model_callback import ModelCallback
from keras_lmmvae.validation import received

__all__ = ["VarianceComponentsLogger"]

_COLUMNS = ("epoch", "component", "feature", "variance")
# What `tf.summary.scalar` writes; that one needs TensorBoard to be installed where models train.
_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class="DATA_CLASS_SCALAR",
)
# In place of a feature: the average over all of them.
_MEAN = "mean"


class VarianceComponentsLogger(ModelCallback):
    """Writes `model.variance_components()` after every epoch.

    The CSV file has a line per epoch (as Keras' `CSVLogger` from 0), component and feature, and
    one with feature "mean" for the average over the features:

        epoch,component,feature,variance
        0,store,mean,0.71
        0,store,0,0.93

    An epoch is on the disk when its `on_epoch_end` returns, so an interrupt loses nothing. A run
    that starts at a later epoch, as `BackupAndRestore` resumes one, replaces the lines from that
    epoch on and keeps those before; one that starts at epoch 0 replaces them all, unless
    `append`. Put this callback before `BackupAndRestore`: it must not forget an epoch that the
    backup counts as done.

    Args:
        filename: Optional path of the CSV file to write.
        log_dir: Optional folder for TensorBoard, where the scalars are called
            "variance_components/store/mean" and "variance_components/store/0".
        append: Whether lines of earlier runs stay as they are, whatever their epochs.
        per_feature: Whether single features are written too, or their average only.

    Raises:
        ValueError: If neither `filename` nor `log_dir` is given; in `fit`, if the file is
            not one that this callback has written.

    Example:
        >>> import keras_lmmvae as lmm
        >>> logger = lmm.callbacks.VarianceComponentsLogger("run/variances.csv")
        >>> logger.append
        False
    """

    def __init__(
        self,
        filename: str | Path | None = None,
        log_dir: str | Path | None = None,
        append: bool = False,
        per_feature: bool = True,
    ) -> None:
        if filename is None and log_dir is None:
            raise ValueError(
                "Say where to write: `filename` for a CSV file, `log_dir` for TensorBoard. "
                + received(filename=filename, log_dir=log_dir)
            )
        super().__init__()
        self.filename = filename
        self.log_dir = log_dir
        self.append = append
        self.per_feature = per_feature
        self._is_first = True
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._is_first = True
        if self.filename is not None:
            _read(Path(self.filename))  # an unusable file is told before the training, not after
        if self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = self._values()
        if self.filename is not None:
            self._write_csv(Path(self.filename), epoch, values)
        if self._writer is not None:
            self._write_scalars(epoch, values)
        self._is_first = False

    def on_train_end(self, logs: Any = None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _values(self) -> list[tuple[str, str, float]]:
        """Component, feature and variance: the average over the features, then each of them."""
        table = self.lmmvae.variance_components()
        values = []
        for component, row in table.iterrows():
            values.append((str(component), _MEAN, float(row.mean())))
            if self.per_feature:
                values += [(str(component), str(name), float(value)) for name, value in row.items()]
        return values

    def _write_csv(self, path: Path, epoch: int, values: list[tuple[str, str, float]]) -> None:
        lines = [[str(epoch), name, feature, repr(value)] for name, feature, value in values]
        if not self._is_first:
            with path.open("a", newline="", encoding="utf-8") as file:
                file.write(_text(lines))
            return
        kept = [line for line in _read(path) if self.append or int(line[0]) < epoch]
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place and renamed: an interrupt here leaves the file as it was.
        fresh = path.with_name(f".{path.name}.tmp")
        fresh.write_text(_text([list(_COLUMNS), *kept, *lines]), encoding="utf-8", newline="")
        os.replace(fresh, path)

    def _write_scalars(self, epoch: int, values: list[tuple[str, str, float]]) -> None:
        with self._writer.as_default():
            for name, feature, value in values:
                tag = f"variance_components/{name}/{feature}"
                tf.summary.write(tag, tf.constant(value, tf.float32), epoch, _SCALAR)
        self._writer.flush()


def _text(lines: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _read(path: Path) -> list[list[str]]:
    """Lines of an earlier run, without a last one that was cut off; none if there is no file.

    Raises:
        ValueError: If the file has other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if text and (not lines or tuple(lines[0]) != _COLUMNS):
        raise ValueError(
            f"The file '{path}' has no variance components in it, expected the columns "
            f"{list(_COLUMNS)}: choose another `filename`. " + received(columns=text[:60])
        )
    return lines[1:]
