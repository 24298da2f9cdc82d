"""What a way of fitting the random effects offers to the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import UNKNOWN_CODE
from keras_lmmvae.model.rows import EFFECTS, Rows, cell_weights

if TYPE_CHECKING:
    from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = ["NOISE_MOMENTUM", "NOISE_VARIANCE_FLOOR", "EffectsFit", "TrainingEffects"]

NOISE_VARIANCE_FLOOR = 1e-5
"""Of the variance of a standardised feature: a feature that its groups explain fully would
otherwise drive the noise variance, and with it every posterior variance, to zero."""

NOISE_MOMENTUM = 0.95
"""Of the running mean of squared errors, a training step."""


@dataclass(frozen=True)
class TrainingEffects:
    """The random effects of a mini-batch as a training step sees them.

    Attributes:
        contribution: `sum_k Z_k B_k`, float tensor `(b, p)`.
        kl: Every row's share of the effects' KL, float tensor `(b,)`, nats.
    """

    contribution: tf.Tensor
    kl: tf.Tensor


class EffectsFit(ABC):
    """Base of the two ways of fitting: closed form (conjugate) and by an encoder (amortized).

    Args:
        model: The model; its terms hold the tables of effects.
    """

    encoder_sees_residual: bool
    """Whether the latent encoder reads `x - Z B` instead of `x`."""

    def __init__(self, model: LMMVAE) -> None:
        self.model = model
        self.terms: list[RandomEffect] = model.random_effects
        self.rows: Any = None

    @abstractmethod
    def training_effects(self, rows: Rows) -> TrainingEffects:
        """Effects of a mini-batch, inside the gradient tape."""

    @abstractmethod
    def after_gradient(self, rows: Rows, residual: tf.Tensor, error: tf.Tensor) -> None:
        """Ends a training step: `residual` is x - f(u), `error` what the effects left of it."""

    @abstractmethod
    def begin(self, rows: Any) -> None:
        """Takes the training rows before the first epoch."""

    @abstractmethod
    def end_epoch(self, epoch: int) -> None:
        """Brings the tables for new rows up to date after epoch `epoch`, counted from 1."""

    @abstractmethod
    def refresh(self, epoch: int) -> None:
        """Makes the effects exact after an epoch of one's own choice, counted from 1."""

    @abstractmethod
    def end(self) -> None:
        """Fixes the tables for new rows after the last epoch."""

    def contribution(self, rows: Rows) -> tf.Tensor:
        """`sum_k Z_k B_k` of new rows, `(b, p)`; levels never seen contribute nothing."""
        total = tf.zeros_like(rows["x"])
        for term in self.terms:
            total += self.term_contribution(term, rows)
        return total

    def term_contribution(self, term: RandomEffect, rows: Rows) -> tf.Tensor:
        """`Z_k B_k` of new rows for one term, `(b, p)`."""
        encoded = rows[EFFECTS][term.label]
        return design.product(term.table, encoded["codes"], term.basis_of(encoded))

    def contribution_variance(self, rows: Rows) -> tf.Tensor:
        """Posterior variance of `contribution`, `(b, p)`; that of the prior for unseen levels."""
        total = tf.zeros_like(rows["x"])
        for term in self.terms:
            total += self.row_variance(term, rows)
        return total

    def row_variance(self, term: RandomEffect, rows: Rows, *, marginal: bool = False) -> tf.Tensor:
        """Posterior variance of one term's contribution, `(b, p)`.

        Args:
            term: The term.
            rows: Encoded rows.
            marginal: Whether it is the term's own, the other terms not known either and all
                that its basis leaves out counted. Otherwise a share of the variance of all
                terms together, over that of the noise: terms that share rows cancel each
                other's errors.
        """
        encoded = rows[EFFECTS][term.label]
        basis, codes = term.basis_of(encoded), encoded["codes"]
        prior = term.posterior.prior_contribution_variance(basis, tf.shape(codes)[0])
        seen = self.term_variance(term, codes, basis, marginal=marginal)
        return tf.where((codes == UNKNOWN_CODE)[:, None], prior, seen)

    def term_variance(
        self, term: RandomEffect, codes: tf.Tensor, basis: tf.Tensor | None, *, marginal: bool
    ) -> tf.Tensor:
        """Posterior variance of a known level's contribution, `(b, p)`; see `row_variance`."""
        del term, basis, marginal
        return tf.zeros((tf.shape(codes)[0], self.model.num_features))

    def update_noise(self, rows: Rows, squares: tf.Tensor) -> None:
        """Moves the noise variance towards the batch's mean of `squares`, `(b, p)`."""
        if self.model.noise_variance_setting is not None:
            return
        weights = cell_weights(rows)
        noise = tf.convert_to_tensor(self.model.noise_variance)
        if weights is None:
            mean = tf.reduce_mean(squares, axis=0)
        else:
            weights = weights * tf.ones_like(squares)
            total = tf.reduce_sum(weights, axis=0)
            mean = tf.math.divide_no_nan(tf.reduce_sum(weights * squares, axis=0), total)
            mean = tf.where(total > 0.0, mean, noise)
        updated = NOISE_MOMENTUM * noise + (1.0 - NOISE_MOMENTUM) * mean
        self.model.noise_variance.assign(tf.maximum(updated, NOISE_VARIANCE_FLOOR))
