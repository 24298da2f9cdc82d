"""Log of the variance components by epoch, as a CSV file and for TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_lmmvae.callbacks.model_callback import ModelCallback
from keras_lmmvae.files import written_whole
from keras_lmmvae.validation import received

__all__ = ["VarianceComponentsLogger"]

_COLUMNS = ("epoch", "component", "feature", "variance")
# The metadata that `tf.summary.scalar` writes. That function needs an installed TensorBoard.
_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class="DATA_CLASS_SCALAR",
)
_MEAN = "mean"


class VarianceComponentsLogger(ModelCallback):
    """Writes `model.variance_components()` after every epoch.

    The CSV file has one line per epoch, component and feature. Epochs are counted from 0, as in
    Keras' `CSVLogger`. The feature "mean" is the average over the features:

        epoch,component,feature,variance
        0,store,mean,0.71
        0,store,0,0.93

    The lines of an epoch are in the file when its `on_epoch_end` returns, so an interrupt loses
    nothing. A fit that starts at a later epoch, for example one resumed by `BackupAndRestore`,
    replaces the lines from that epoch on. A fit that starts at epoch 0 replaces all lines. With
    `append`, no line is replaced. Put this callback before `BackupAndRestore` in the list, so that
    every epoch in the backup is also in the file.

    Args:
        filename: Optional path of the CSV file.
        log_dir: Optional folder for TensorBoard. The scalars are called
            "variance_components/store/mean" and "variance_components/store/0".
        append: Whether all lines of earlier fits stay in the file.
        per_feature: Whether to write the variances of single features besides their average.

    Raises:
        ValueError: If neither `filename` nor `log_dir` is given; in `fit`, if the file exists and
            was not written by this callback.

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
                "Give `filename` for a CSV file, `log_dir` for TensorBoard, or both. "
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
            _read(Path(self.filename))  # Raises the error for a wrong file before the training.
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
        """Returns (component, feature, variance): the average over features, then each feature."""
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
        earlier = [line for line in _read(path) if self.append or int(line[0]) < epoch]
        text = _text([list(_COLUMNS), *earlier, *lines])
        with written_whole(path) as fresh:
            fresh.write_text(text, encoding="utf-8", newline="")

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
    """Returns the lines of an earlier fit, without an incomplete last line.

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
            f"The file '{path}' is not a log of variance components, expected the columns "
            f"{list(_COLUMNS)}: choose another `filename`. " + received(columns=text[:60])
        )
    return lines[1:]
