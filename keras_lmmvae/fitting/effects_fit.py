"""What a way of fitting the random effects offers to the training loop."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from keras_lmmvae.likelihood import GaussianLikelihood
from keras_lmmvae.mixed_model.mixed_model import FoldRows, MixedModel, Parts
from keras_lmmvae.networks import LatentNetworks
from keras_lmmvae.rows import Pass, Rows

__all__ = ["EffectsFit", "EffectsSchedule", "TrainingEffects"]


@dataclass(frozen=True)
class TrainingEffects:
    """The random effects of a mini-batch as a training step sees them.

    Attributes:
        parts: Term name -> its contribution `Z_k B_k`, float tensor `(b, p)`.
        kl: Every row's share of the effects' KL, float tensor `(b,)`, nats.
        own: The rows in the tables of their own folds; empty where there are no folds.
        variance: Variance of what is not known of them, float tensor `(b, p)`: that of the prior
            for rows whose effects are hidden, 0 for all others.
        is_hidden: Bool tensor `(b,)`, the rows whose effects are hidden; `None`: none is.
    """

    parts: Parts
    kl: tf.Tensor
    own: FoldRows = field(default_factory=dict)
    variance: tf.Tensor | float = 0.0
    is_hidden: tf.Tensor | None = None


class EffectsFit(ABC):
    """Base of the two ways of fitting: closed form (conjugate) and by an encoder (amortized).

    Args:
        mixed_model: The mixed model, whose effects are fitted.
        networks: Encoder and decoder.
        likelihood: The likelihood, whose noise variance is fitted along.

    Attributes:
        rows: The training rows, from `begin` on. They may carry their bases.
    """

    rows: Pass

    def __init__(
        self, mixed_model: MixedModel, networks: LatentNetworks, likelihood: GaussianLikelihood
    ) -> None:
        self.mixed_model = mixed_model
        self.networks = networks
        self.likelihood = likelihood

    @abstractmethod
    def training_effects(self, rows: Rows) -> TrainingEffects:
        """Effects of a mini-batch, inside the gradient tape."""

    @abstractmethod
    def after_gradient(
        self, rows: Rows, effects: TrainingEffects, residual: tf.Tensor, error: tf.Tensor
    ) -> None:
        """Ends a training step: `residual` is x - f(u), `error` what `effects` left of it."""

    @abstractmethod
    def begin(self, rows: Pass, is_fitted: bool) -> None:
        """Takes the training rows before the first epoch."""

    @abstractmethod
    def end_epoch(self, epoch: int) -> None:
        """Brings the tables for new rows up to date after epoch `epoch`, counted from 1."""

    @abstractmethod
    def refresh(self, epoch: int) -> None:
        """Makes the effects exact after an epoch of one's own choice, counted from 1."""

    @abstractmethod
    def end(self) -> None:
        """Makes the tables for new rows final after the last epoch."""

    @abstractmethod
    def take_rows(self, rows: Pass) -> None:
        """Takes these rows in place of the training rows, networks and variances as they are."""


class EffectsSchedule(keras.callbacks.Callback):
    """Brings the tables of effects up to date at the end of every epoch, before validation."""

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
