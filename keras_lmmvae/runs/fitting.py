"""The fit of a job: model, optimizer, early stopping and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.runs.checkpoints import Checkpoints
from keras_lmmvae.runs.config import TrainingSettings
from keras_lmmvae.runs.job import Job

__all__ = ["fit_job", "make_optimizer"]


def fit_job(
    job: Job, checkpoints: Checkpoints, callbacks: Sequence[keras.callbacks.Callback] = ()
) -> LMMVAE:
    """Fits the model of a job, from the last checkpoint if there is one.

    Early stopping counts its patience from the epoch it starts at.

    Args:
        job: The job.
        checkpoints: The checkpoints.
        callbacks: Further Keras callbacks.

    Returns:
        The fitted model.

    Raises:
        ValueError: On bad data.
    """
    training = job.config.training
    model = job.config.make_model()
    model.adapt(job.train, feature_names=job.features)
    model.compile(optimizer=make_optimizer(training, len(job.train["x"])))
    model.fit(
        job.train,
        epochs=training.epochs,
        initial_epoch=checkpoints.epoch,
        batch_size=training.batch_size,
        validation_data=job.validation,
        # The bar and the log come last: what they tell is saved.
        callbacks=[*_early_stopping(training), checkpoints, *callbacks],
        verbose=0,
    )
    return model


def make_optimizer(training: TrainingSettings, num_rows: int) -> keras.optimizers.Optimizer:
    """Adam with the schedule of the settings.

    Args:
        training: The settings.
        num_rows: Positive int, training rows.
    """
    if training.schedule == "constant":
        return keras.optimizers.Adam(training.learning_rate)
    return cosine_adam(training.learning_rate, num_rows, training.batch_size, training.epochs)


def _early_stopping(training: TrainingSettings) -> list[keras.callbacks.Callback]:
    if training.patience is None:
        return []
    monitor = "loss" if training.validation is None else "val_loss"
    stopping = keras.callbacks.EarlyStopping(
        monitor, patience=training.patience, restore_best_weights=True
    )
    return [stopping]
