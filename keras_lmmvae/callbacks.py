"""Keras callbacks for `LMMVAE.fit`: KL annealing, exact effects and a log of variances."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_lmmvae.files import written_whole
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.validation import check_not_negative, check_positive, received

__all__ = ["KLAnnealing", "RefreshEffects", "VarianceComponentsLogger"]

_COLUMNS = ["epoch", "component", "feature", "variance"]
_MEAN = "mean"
# The metadata that `tf.summary.scalar` writes. That function needs an installed TensorBoard.
_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class="DATA_CLASS_SCALAR",
)


class _ModelCallback(keras.callbacks.Callback):
    """Callback of the fit of an `LMMVAE`."""

    @property
    def _lmmvae(self) -> LMMVAE:
        """The model that is trained."""
        if not isinstance(self.model, LMMVAE):
            raise ValueError(
                f"`{type(self).__name__}` is a callback of `LMMVAE.fit`, expected an LMMVAE. "
                + received(model=type(self.model).__name__)
            )
        return self.model


class KLAnnealing(_ModelCallback):
    """Raises the weight of KL(q(u) || p(u)) over the first epochs to the model's `kl_weight`.

        weight = kl_weight * (start + (1 - start) * min(1, part_of_cycle / ramp))

    At the start of a fit the decoder does not use the latent yet. With the full weight the latent
    dimensions may then collapse to the prior (posterior collapse). From epoch `epochs` on the
    weight is `kl_weight`, so fit for more epochs than that.

    The weight depends only on the number of the epoch. A fit that is resumed by
    `BackupAndRestore` or with `initial_epoch` therefore continues correctly. `loss` uses the
    weight of its epoch, which the history lists as `kl_weight`. `val_loss` and saved models use
    the full weight.

    Args:
        epochs: Positive int, number of epochs of all cycles together.
        start: Float in [0, 1), share of `kl_weight` at the start of a cycle.
        cycles: Positive int, number of cycles, at most `epochs`. 1 gives linear annealing. With
            more, the weight falls back to its start at every new cycle, so that collapsed
            dimensions can be used again.
        ramp: Float in (0, 1], part of a cycle in which the weight rises. Afterwards it is full.

    Raises:
        ValueError: If an argument is out of its range; in `fit`, if `kl_weight` is 0.

    Example:
        >>> import keras_lmmvae as lmm
        >>> warm_up = lmm.callbacks.KLAnnealing(epochs=4)
        >>> [warm_up.share(epoch) for epoch in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
        >>> cycles = lmm.callbacks.KLAnnealing(epochs=8, cycles=2, ramp=0.5)
        >>> [cycles.share(epoch) for epoch in range(9)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]

    References:
        - Bowman et al. (2016), Generating sentences from a continuous space, section 3.1.
        - Fu et al. (2019), Cyclical annealing schedule, eq. (6); there `ramp` is 0.5.
    """

    def __init__(self, epochs: int, start: float = 0.0, cycles: int = 1, ramp: float = 1.0) -> None:
        check_positive("epochs", epochs, integer=True, minimum=1)
        check_positive("cycles", cycles, integer=True, minimum=1)
        if cycles > epochs:
            raise ValueError(
                "A cycle has at least one epoch: `cycles` must not be above `epochs`. "
                + received(cycles=cycles, epochs=epochs)
            )
        check_not_negative("start", start)
        check_positive("ramp", ramp)
        if start >= 1 or ramp > 1:
            raise ValueError(
                "`start` must lie in [0, 1) and `ramp` in (0, 1]. "
                + received(start=start, ramp=ramp)
            )
        super().__init__()
        self.epochs = epochs
        self.start = start
        self.cycles = cycles
        self.ramp = ramp

    def share(self, epoch: int) -> float:
        """Returns the share of `kl_weight` in an epoch, counted from 0."""
        if epoch >= self.epochs:
            return 1.0
        part_of_cycle = (epoch * self.cycles % self.epochs) / self.epochs
        risen = min(1.0, part_of_cycle / self.ramp)
        return float(self.start + (1.0 - self.start) * risen)

    def on_train_begin(self, logs: Any = None) -> None:
        if self._lmmvae.kl_weight == 0:
            raise ValueError(
                "KL annealing needs a model with a positive `kl_weight`. "
                + received(kl_weight=self._lmmvae.kl_weight)
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._lmmvae.kl_annealing.assign(self.share(epoch))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs["kl_weight"] = self.share(epoch) * self._lmmvae.kl_weight

    def on_train_end(self, logs: Any = None) -> None:
        self._lmmvae.kl_annealing.assign(1.0)


class RefreshEffects(_ModelCallback):
    """Solves the effects exactly and estimates their variances again after chosen epochs.

    Training steps only approximate the BLUPs given the networks. `fit` computes them exactly after
    epochs 1, 4, 16, 64, ... (counted from the model's `latent_epochs`) and at the end. Between
    these epochs effects and variance components lag behind if the networks still change much. A
    refresh costs a few passes over the training rows.

    Epochs are counted from 1. The refresh comes before the validation of the epoch and before
    later callbacks in the list. There is none during `latent_epochs`.

    Args:
        every: Optional positive int, number of epochs between refreshes.
        at: Optional collection of positive ints, the epochs with a refresh.

    Raises:
        ValueError: If both or neither of `every` and `at` are given, or if a number is below 1;
            in `fit`, if the posterior is amortized, because its effects have no exact solution.

    Example:
        >>> import keras_lmmvae as lmm
        >>> refresh = lmm.callbacks.RefreshEffects(every=5)
        >>> [epoch for epoch in range(1, 12) if refresh.is_due(epoch)]
        [5, 10]
    """

    def __init__(self, every: int | None = None, at: Collection[int] | None = None) -> None:
        if (every is None) == (at is None):
            raise ValueError(
                "Give either `every`, a number of epochs, or `at`, the epochs with a refresh. "
                + received(every=every, at=at)
            )
        for name, values in (("every", [] if every is None else [every]), ("at", at or ())):
            for value in values:
                check_positive(name, value, integer=True, minimum=1)
        super().__init__()
        self.every = every
        self.at = at
        self._epoch = 0
        self._is_current = True

    def is_due(self, epoch: int) -> bool:
        """Returns whether there is a refresh after this epoch, counted from 1."""
        if self.every is not None:
            return epoch % self.every == 0
        return self.at is not None and epoch in self.at

    def on_train_begin(self, logs: Any = None) -> None:
        if self._lmmvae.posterior == "amortized":
            raise ValueError(
                "The effects of an amortized posterior have no exact solution: use "
                "posterior='conjugate'. " + received(posterior=self._lmmvae.posterior)
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._is_current = epoch + 1, False

    def on_test_begin(self, logs: Any = None) -> None:
        self._refresh()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._refresh()

    def _refresh(self) -> None:
        if not self._is_current and self.is_due(self._epoch):
            self._lmmvae.effects_fit.refresh(self._epoch)
        self._is_current = True


class VarianceComponentsLogger(_ModelCallback):
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
        table = self._lmmvae.variance_components()
        values = []
        for component, row in table.iterrows():
            values.append((str(component), _MEAN, float(row.mean())))
            if self.per_feature:
                values += [(str(component), str(name), float(value)) for name, value in row.items()]
        return values

    def _write_csv(self, path: Path, epoch: int, values: list[tuple[str, str, float]]) -> None:
        lines = [[str(epoch), name, feature, repr(value)] for name, feature, value in values]
        if self._is_first:
            earlier = [line for line in _read(path) if self.append or int(line[0]) < epoch]
            with written_whole(path) as fresh:
                _write(fresh, "w", [_COLUMNS, *earlier, *lines])
        else:
            _write(path, "a", lines)

    def _write_scalars(self, epoch: int, values: list[tuple[str, str, float]]) -> None:
        with self._writer.as_default():
            for name, feature, value in values:
                tag = f"variance_components/{name}/{feature}"
                tf.summary.write(tag, tf.constant(value, tf.float32), epoch, _SCALAR)
        self._writer.flush()


def _write(path: Path, mode: str, lines: Iterable[Sequence[str]]) -> None:
    with path.open(mode, newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _read(path: Path) -> list[list[str]]:
    """Returns the lines of an earlier fit, without an incomplete last line."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if text and (not lines or lines[0] != _COLUMNS):
        raise ValueError(
            f"The file '{path}' is not a log of variance components, expected the columns "
            f"{_COLUMNS}: choose another `filename`. " + received(columns=text[:60])
        )
    return lines[1:]
