"""`fit`, `evaluate`, `predict`: raw columns in, encoded rows to Keras' own loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.model.effects_fit import EffectsFit
from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.model.rows import Rows, is_encoded, num_rows, shuffled_batches, take_rows
from keras_lmmvae.validation import received

__all__ = ["EffectsSchedule", "Training"]


class EffectsSchedule(keras.callbacks.Callback):
    """Brings the effects' tables up to date at the end of every epoch, before validation."""

    def __init__(self, effects_fit: EffectsFit) -> None:
        super().__init__()
        self._fit = effects_fit
        self._epoch = 0
        self._is_current = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._is_current = epoch + 1, False

    def on_test_begin(self, logs: Any = None) -> None:
        self._update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._update()

    def _update(self) -> None:
        if not self._is_current:
            self._fit.end_epoch(self._epoch)
            self._is_current = True


class Training(ModelPart):
    """The part of `LMMVAE` that runs Keras' loops on encoded rows."""

    def compile(self, optimizer: Any = "adam", **kwargs: Any) -> None:
        """Configures training; the loss is the negative ELBO and cannot be given.

        Args:
            optimizer: Keras optimizer of the networks; effects and variances have closed forms.
            **kwargs: `jit_compile`, `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
            ValueError: If a loss or metrics are given.
        """
        given = [
            name
            for name in ("loss", "loss_weights", "metrics", "weighted_metrics")
            if kwargs.get(name) is not None
        ]
        if given:
            raise ValueError(
                "The loss is the negative ELBO and its parts are the metrics: compile with an "
                "optimizer only. " + received(given=given)
            )
        super().compile(optimizer=optimizer, **kwargs)

    def get_compile_config(self) -> dict[str, Any] | None:
        """The arguments of `compile`, for the saved file."""
        return self._compile_config.serialize() if self.compiled else None

    def compile_from_config(self, config: dict[str, Any] | None) -> None:
        """Compiles a loaded model as the saved one was, with its optimizer's state to come."""
        if config is None:
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x: Any,
        y: None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        sample_weight: Any = None,
        steps_per_epoch: int | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the networks by gradient steps and the effects in closed form.

        Before the first epoch the linear mixed model without the latent part is fitted (with
        `latent_epochs`: after so many epochs, to what the networks left); after the last, the
        effects are solved exactly given the networks.

        Args:
            x: Dict of arrays of `n` rows, or a batched `tf.data.Dataset` of such dicts, which
                is read several times and must give the same rows each time.
            y: Must be `None`: the features are their own target.
            batch_size: Rows a step, for arrays. Defaults to 32.
            epochs: Last epoch's number.
            verbose: As in Keras.
            callbacks: Keras callbacks.
            validation_split: Share of the last rows to hold out, for arrays.
            validation_data: Data of the same form, or a tuple `(data, None, sample_weight)`;
                its levels may be unseen.
            shuffle: Whether arrays are shuffled.
            sample_weight: Optional array `(n,)` of non-negative row weights: a row counts so
                many times, for the networks and for the effects.
            steps_per_epoch: Steps an epoch; needed for datasets without end.
            **kwargs: `initial_epoch`, `validation_steps`, `validation_batch_size`,
                `validation_freq`.

        Returns:
            The Keras history, with `loss` (the negative ELBO per row in nats), its parts
            `reconstruction_loss`, `latent_kl`, `effects_kl`, and `mse` in squared units.

        Raises:
            ValueError: If the model is not adapted, or on bad data.

        Warns:
            LMMVAEWarning: At the end, of what needs no further pass over the rows: a term most
                of whose levels have one row, a noise variance at its floor, a length scale at
                its bound. `keras_lmmvae.diagnose` looks for more.
        """
        self.require_adapted()
        self._check_fit(y)
        rows = self._training_rows(x, sample_weight, batch_size, steps_per_epoch)
        if validation_split and validation_data is None:
            rows, validation = _split(rows, validation_split)
        else:
            validation = self._encoded_validation(validation_data)
        self.effects_fit.begin(rows if steps_per_epoch is None else _limited(rows, steps_per_epoch))
        self.fitted.assign(1.0)
        # A fit that was interrupted may have left it anywhere.
        self.kl_annealing.assign(1.0)
        if shuffle and not isinstance(rows, tf.data.Dataset):
            # Keras' own shuffling cannot be seeded.
            kwargs.setdefault("validation_batch_size", batch_size)
            rows, batch_size = shuffled_batches(rows, batch_size or 32, self.seed), None
            rows = rows if steps_per_epoch is None else rows.repeat()
        history = super().fit(
            rows,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=[EffectsSchedule(self.effects_fit), *(callbacks or [])],
            validation_data=validation,
            shuffle=False,
            steps_per_epoch=steps_per_epoch,
            **kwargs,
        )
        self.effects_fit.end()
        # Here, not above: the checks know models, and models know no checks to be made.
        from keras_lmmvae.diagnostics.diagnose import warn_of_findings

        warn_of_findings(self, stacklevel=2)
        return history

    def evaluate(self, x: Any, y: None = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Loss, its parts and mean squared error on new rows; arguments as in Keras."""
        if not is_encoded(x) and not kwargs.get("_use_cached_eval_dataset"):
            self.require_fitted()
            _check_no_target(y)
            x = _with_weights(self.encode_data(x), sample_weight)
        return super().evaluate(x, **kwargs)

    def predict(self, x: Any, batch_size: int | None = None, **kwargs: Any) -> np.ndarray:
        """Reconstructions `f(E[u | x]) + Z B`, `(n, p)`, in the features' units.

        Args:
            x: Dict of arrays or a batched dataset of dicts.
            batch_size: Rows at once, for arrays. Defaults to 32.
            **kwargs: `verbose`, `steps`, `callbacks`.
        """
        self.require_fitted()
        return super().predict(self.encode_data(x), batch_size=batch_size, **kwargs)

    def _check_fit(self, y: Any) -> None:
        _check_no_target(y)
        replicas = self.distribute_strategy.num_replicas_in_sync if self.distribute_strategy else 1
        if replicas > 1:
            raise ValueError(
                "The closed-form step updates one copy of the effects: train on one device. "
                + received(num_replicas=replicas)
            )

    def _training_rows(
        self, x: Any, sample_weight: Any, batch_size: int | None, steps: int | None
    ) -> Any:
        rows = self.encode_data(x)
        if isinstance(rows, tf.data.Dataset):
            if sample_weight is not None:
                raise ValueError(
                    "`sample_weight` goes with arrays, not with a dataset. "
                    + received(sample_weight=type(sample_weight))
                )
            if steps is None and rows.cardinality() == tf.data.INFINITE_CARDINALITY:
                raise ValueError(
                    "A dataset without end needs `steps_per_epoch`. "
                    + received(steps_per_epoch=steps)
                )
            return rows
        if num_rows(rows) < (batch_size or 32):
            raise ValueError(
                "There are fewer rows than `batch_size`, so that not one batch is full. "
                + received(rows=num_rows(rows), batch_size=batch_size or 32)
            )
        return _with_weights(rows, sample_weight)

    def _encoded_validation(self, data: Any) -> Any:
        if data is None:
            return None
        data, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        _check_no_target(y)
        rows = self.encode_data(data)
        if isinstance(rows, tf.data.Dataset):
            return rows
        return (_with_weights(rows, sample_weight),)


def _check_no_target(y: Any) -> None:
    if y is not None:
        raise ValueError(
            "`y` must be None: the features are their own target. " + received(y=type(y))
        )


def _with_weights(rows: Rows, sample_weight: Any) -> Rows:
    if sample_weight is None:
        return rows
    weight = np.asarray(sample_weight, np.float32)
    if weight.shape != (num_rows(rows),) or not np.isfinite(weight).all() or weight.min() < 0:
        raise ValueError(
            f"`sample_weight` must be {num_rows(rows)} finite non-negative numbers, one a row. "
            + received(sample_weight=weight)
        )
    return {**rows, "weight": tf.constant(weight)}


def _split(rows: Any, share: float) -> tuple[Rows, tuple[Rows]]:
    """First and last rows, as Keras splits arrays."""
    if isinstance(rows, tf.data.Dataset) or not 0.0 < share < 1.0:
        raise ValueError(
            "`validation_split` must lie in (0, 1), and goes with arrays, not with a dataset. "
            + received(validation_split=share)
        )
    total = num_rows(rows)
    cut = int(total * (1.0 - share))
    return take_rows(rows, 0, cut), (take_rows(rows, cut, total),)


def _limited(rows: Any, steps: int) -> Any:
    return rows.take(steps) if isinstance(rows, tf.data.Dataset) else rows
