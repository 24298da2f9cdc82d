"""Fitting of the random effects in closed form, around and inside the gradient steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.layers.conjugate_posterior import EFFECT_VARIANCE_FLOOR
from keras_lmmvae.model.effects_fit import NOISE_VARIANCE_FLOOR, EffectsFit, TrainingEffects
from keras_lmmvae.model.equations import MixedModelEquations, cell_mean
from keras_lmmvae.model.rows import (
    EFFECTS,
    FEATURES,
    FOLD,
    Rows,
    batches_of,
    cell_weights,
    row_weights,
)

if TYPE_CHECKING:
    from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = ["ConjugateFit"]

# Rounds of (solve, re-estimate the variances) that start the effects.
_INITIAL_ROUNDS = 5
# Rounds of (residuals, solve) that end it; residuals depend on the effects through the encoder.
_FINAL_ROUNDS = 2
# Steps track the solution; it is made exact, and the variances anew, after these epochs with
# effects.
_REFRESH_EPOCHS = frozenset(4**power for power in range(12))
# The search for a length scale looks at this many rows at most.
_PRIOR_ROWS = 20_000


class ConjugateFit(EffectsFit):
    """Keeps the effects of a model at their closed-form posterior given its networks.

    A row reads the effects that the other fold's rows gave (cross-fitting): with its own
    effects it would see, in training only, a part of itself taken out.
    """

    encoder_sees_residual = True

    def __init__(self, model: LMMVAE) -> None:
        super().__init__(model)
        self.equations: MixedModelEquations

    # In a training step -----------------------------------------------------------------------

    def training_effects(self, rows: Rows) -> TrainingEffects:
        noise = self.model.effects_noise_variance()
        kl = tf.zeros(tf.shape(rows[FEATURES])[0])
        for term in self.terms:
            codes = term.posterior.own_codes(rows[EFFECTS][term.label]["codes"], rows[FOLD])
            kl += term.posterior.kl_share(codes, noise)
        return TrainingEffects(self._fold_contribution(rows, is_own=False), kl)

    def _fold_contribution(self, rows: Rows, is_own: bool) -> tf.Tensor:
        """`sum_k Z_k B_k` from the tables of the rows' own folds, or of the other ones."""
        total = tf.zeros_like(rows[FEATURES])
        for term in self.terms:
            total += self._fold_part(term, rows, is_own)
        return total

    @staticmethod
    def _fold_part(term: RandomEffect, rows: Rows, is_own: bool) -> tf.Tensor:
        encoded = rows[EFFECTS][term.label]
        fold = rows[FOLD] if is_own else 1 - rows[FOLD]
        codes = term.posterior.own_codes(encoded["codes"], fold)
        return design.product(term.posterior.fold_effects.value, codes, term.basis_of(encoded))

    def after_gradient(self, rows: Rows, residual: tf.Tensor, error: tf.Tensor) -> None:
        """Updates the effects of the batch's levels, one term after the other.

        Each term sees the others' newest effects (Gauss-Seidel): this converges also where a
        batch holds all rows of its levels.
        """
        if not self.terms:
            self.update_noise(rows, tf.square(error))
            return
        cells, weights = cell_weights(rows), row_weights(rows)
        noise = self.model.effects_noise_variance()
        parts = [self._fold_part(term, rows, is_own=True) for term in self.terms]
        before = error = residual - tf.add_n(parts)
        for term, part in zip(self.terms, parts, strict=True):
            encoded = rows[EFFECTS][term.label]
            weighted = error if cells is None else error * cells
            codes = term.posterior.own_codes(encoded["codes"], rows[FOLD])
            term.posterior.step(weighted, codes, term.basis_of(encoded), noise, weights)
            error += part - self._fold_part(term, rows, is_own=True)
        # A step overweights the rows it has just seen and underweights those it is about to see:
        # the product of the errors before and after has the weight of the solved equations.
        self.update_noise(rows, before * error + self._own_variance(rows))

    def _own_variance(self, rows: Rows) -> tf.Tensor:
        """Posterior variance of the rows' effects in the tables of their own folds."""
        noise = self.model.effects_noise_variance()
        total = tf.zeros_like(rows[FEATURES])
        for term in self.terms:
            encoded = rows[EFFECTS][term.label]
            codes = term.posterior.own_codes(encoded["codes"], rows[FOLD])
            total += term.posterior.contribution_variance(
                codes, term.basis_of(encoded), noise, folds=True
            )
        return total * self.model.inflation.value[0]

    def term_variance(
        self, term: RandomEffect, codes: tf.Tensor, basis: tf.Tensor | None, *, marginal: bool
    ) -> tf.Tensor:
        noise = self.model.effects_noise_variance()
        variance = term.posterior.contribution_variance(codes, basis, noise, folds=False)
        if marginal:
            own = term.posterior.variance_inflation.value
            return variance * own + term.unmodelled_variance(codes, basis)
        return variance * self.model.inflation.value[1] + term.excess_variance(codes, basis)

    # Around the steps -------------------------------------------------------------------------

    def begin(self, rows: Any) -> None:
        """Takes the training rows; starts a model never fitted at the linear mixed model."""
        self.rows = rows
        if not self.terms:
            if not self.model.is_fitted:
                self.model.reset_noise_variance(np.ones(self.model.num_features))
            return
        self.equations = MixedModelEquations(self.model, rows)
        self.equations.set_designs()
        if self.model.is_fitted:
            self.equations.solve(True, self.model.training_residual)
        elif self.model.latent_epochs:
            self._hold_effects_back()
        else:
            # The linear mixed model without the latent part: x = mean + Z B + e.
            self._start_effects(_values)
            self._scale_networks()

    def end_epoch(self, epoch: int) -> None:
        """Refreshes the table for new rows, and after epochs 1, 4, 16, 64, ... solves anew.

        Args:
            epoch: Number of the epoch that ends, from 1.
        """
        if not self.terms:
            return
        if not self._has_effects:
            if epoch < self.model.latent_epochs:
                return
            self._start_effects(self.model.training_residual)
        elif epoch - self.model.latent_epochs in _REFRESH_EPOCHS:
            self._refresh(epoch)
        self._pool()

    def refresh(self, epoch: int) -> None:
        """Solves anew after an epoch of one's own choice; of no effect while there are none."""
        if self.terms and self._has_effects:
            self._refresh(epoch)
            self._pool()

    def end(self) -> None:
        """Makes the effects exact given the networks: solves for all rows and terms jointly."""
        if not self.terms:
            return
        if not self._has_effects:
            self._start_effects(self.model.training_residual)
        self._refresh(seed=1000)
        for _ in range(_FINAL_ROUNDS):
            self.equations.solve(True, self.model.training_residual)
        self.equations.solve(False, self.model.training_residual)
        self.equations.calibrate(False, seed=2000)

    def _refresh(self, seed: int) -> None:
        """Solves the folds' equations given the networks and re-estimates the variances."""
        self.equations.solve(True, self.model.training_residual)
        self.equations.calibrate(True, seed)
        self.equations.update_variances()

    def _pool(self) -> None:
        noise = self.model.effects_noise_variance()
        for term in self.terms:
            term.posterior.pool(noise)

    @property
    def _has_effects(self) -> bool:
        """Whether the effects take part: not before `latent_epochs` are over."""
        started = keras.ops.convert_to_numpy(self.model.effects_started)
        return not self.model.latent_epochs or bool(started)

    def _hold_effects_back(self) -> None:
        """Lets the networks alone for some epochs: with variances at their floor, B is 0."""
        self.model.reset_noise_variance(np.ones(self.model.num_features))
        for term in self.terms:
            variance = tf.fill((self.model.num_features,), EFFECT_VARIANCE_FLOOR)
            term.posterior.effect_variance.assign(variance)

    def _start_effects(self, values_of: Callable[[Rows], tf.Tensor]) -> None:
        """Fits variances and effects to `values = Z B + e`, from equal shares on.

        Args:
            values_of: Function of encoded rows that gives what there is to explain: the rows
                themselves, or what the networks left of them.
        """
        total = cell_mean(self.rows, _squares_of(values_of), self.model.num_features)
        share = total / (len(self.terms) + 1.0)
        self.model.reset_noise_variance(share.numpy())
        for term in self.terms:
            term.posterior.effect_variance.assign(tf.maximum(share, EFFECT_VARIANCE_FLOOR))
        for number in range(_INITIAL_ROUNDS):
            if number in (0, 2):
                self._fit_priors(values_of)
            self.equations.solve(True, values_of)
            self.equations.calibrate(True, seed=number)
            self._noise_from_all_rows(values_of)
            self.equations.update_variances()
        self.equations.solve(True, values_of)
        self._pool()
        self.model.effects_started.assign(1.0)

    def _fit_priors(self, values_of: Callable[[Rows], tf.Tensor]) -> None:
        """Length scales, each on the values less the other terms."""
        for term in self.terms:
            if not term.has_learned_basis:
                continue
            inputs, residual, seen = [], [], 0
            for batch in batches_of(self.rows):
                encoded = batch[EFFECTS][term.label]
                others = self._fold_contribution(batch, True) - self._fold_part(term, batch, True)
                known = encoded["codes"] >= 0
                inputs.append(tf.boolean_mask(encoded["inputs"], known))
                residual.append(tf.boolean_mask(values_of(batch) - others, known))
                seen += int(inputs[-1].shape[0])
                if seen >= _PRIOR_ROWS:
                    break
            term.fit_basis(tf.concat(inputs, 0).numpy(), tf.concat(residual, 0).numpy())
            term.posterior.fold_effects.assign(tf.zeros_like(term.posterior.fold_effects))
            self.equations = MixedModelEquations(self.model, self.rows)
            self.equations.set_designs()

    def _noise_from_all_rows(self, values_of: Callable[[Rows], tf.Tensor]) -> None:
        def squares(batch: Rows) -> tf.Tensor:
            error = values_of(batch) - self._fold_contribution(batch, is_own=True)
            return tf.square(error) + self._own_variance(batch)

        mean = cell_mean(self.rows, squares, self.model.num_features)
        self.model.reset_noise_variance(mean.numpy())

    def _scale_networks(self) -> None:
        """Lets the networks work on residuals of unit variance, however large the effects are."""

        def squares(batch: Rows) -> tf.Tensor:
            return tf.square(batch[FEATURES] - self._fold_contribution(batch, is_own=False))

        variance = cell_mean(self.rows, squares, self.model.num_features)
        variance = tf.maximum(variance, NOISE_VARIANCE_FLOOR)
        self.model.residual_scale.assign(tf.sqrt(variance))


def _values(rows: Rows) -> tf.Tensor:
    return rows[FEATURES]


def _squares_of(values_of: Callable[[Rows], tf.Tensor]) -> Callable[[Rows], tf.Tensor]:
    return lambda rows: tf.square(values_of(rows))
