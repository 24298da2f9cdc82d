"""The random effects in closed form, around and inside the gradient steps."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.row_sample import RowSample
from keras_lmmvae.fitting.effects_fit import EffectsFit, TrainingEffects
from keras_lmmvae.inference import Inference
from keras_lmmvae.latent_prior import LatentPrior
from keras_lmmvae.likelihood import NOISE_VARIANCE_FLOOR, GaussianLikelihood
from keras_lmmvae.linalg import least_squares
from keras_lmmvae.mixed_model.equations import INTERCEPT, EarlierRows, Equations, Solution
from keras_lmmvae.mixed_model.mixed_model import MixedModel, total_of
from keras_lmmvae.mixed_model.prior import EFFECT_VARIANCE_FLOOR
from keras_lmmvae.mixed_model.residuals import Targets
from keras_lmmvae.networks import LatentNetworks
from keras_lmmvae.rows import EFFECTS, FEATURES, Pass, Rows, cell_weights, num_rows, with_bases

__all__ = ["ConjugateFit"]

# Rounds of (bases, variances, effects) that start the effects where a basis is to be learned of
# what other terms leave.
_BASIS_ROUNDS = 2
# Rounds of (residuals, solve) that end it: residuals depend on the effects through the encoder.
_FINAL_ROUNDS = 2
_UPDATE_ROUNDS = 3
# Steps track the solution. After these epochs with effects it is made exact, and the variances are
# estimated anew.
_REFRESH_EPOCHS = frozenset(4**power for power in range(12))
# The search for a length scale looks at this many rows at most, chosen at random.
_BASIS_ROWS = 20_000
# Bases of so many numbers in all are kept: 256 MiB.
_LARGEST_BASES = 2**26

Values = Callable[[Rows], tf.Tensor]


class ConjugateFit(EffectsFit):
    """Keeps the effects at their closed-form posterior given the networks.

    A row reads the effects that the other fold's rows gave (out-of-fold). With its own effects it
    would see a part of itself taken out, in training only.

    Args:
        mixed_model: The mixed model.
        networks: Encoder and decoder.
        likelihood: The likelihood.
        latent_prior: Where the latents of the training rows lie.
        kl_weight: Positive float, weight of KL(q(B) || p(B)). The effects are shrunken as if the
            noise variance were so many times larger.
        latent_epochs: Epochs in which the networks train alone.
        dropout: Share of the rows of a step whose effects are hidden from the networks.
        seed_generator: Source of the draws of these rows.
    """

    def __init__(
        self,
        mixed_model: MixedModel,
        networks: LatentNetworks,
        likelihood: GaussianLikelihood,
        latent_prior: LatentPrior,
        kl_weight: float = 1.0,
        latent_epochs: int = 0,
        dropout: float = 0.0,
        seed_generator: keras.random.SeedGenerator | None = None,
    ) -> None:
        super().__init__(mixed_model, networks, likelihood)
        self.latent_prior = latent_prior
        self.kl_weight = kl_weight
        self.latent_epochs = latent_epochs
        self.dropout = dropout
        self.seed_generator = seed_generator
        self.rows_without_bases: Pass
        self.equations: Equations

    @property
    def noise_variance(self) -> tf.Tensor:
        """The noise variance that the effects' posterior sees, `(p,)`."""
        return self.kl_weight * tf.convert_to_tensor(self.likelihood.noise_variance)

    def infer(self, rows: Rows) -> Inference:
        """What the networks say of training rows, each with the effects of the other fold."""
        own = self.mixed_model.own_fold(rows)
        return Inference(self.networks, rows, self.mixed_model.out_of_fold_parts(own))

    def training_targets(self, rows: Rows) -> Targets:
        """What the effects are to explain of training rows, the latent integrated out."""
        values, loadings = self.infer(rows).targets(self.latent_prior)
        return Targets(values, loadings * self.kl_weight**0.5)

    # In a training step -----------------------------------------------------------------------

    def training_effects(self, rows: Rows) -> TrainingEffects:
        own = self.mixed_model.own_fold(rows)
        kl = self.mixed_model.kl(rows, own, self.noise_variance)
        parts = self.mixed_model.out_of_fold_parts(own)
        if not self.dropout:
            return TrainingEffects(parts, kl, own)
        uniform = keras.random.uniform(tf.shape(kl), seed=self.seed_generator)
        is_hidden = uniform < self.dropout
        parts = {
            label: tf.where(is_hidden[:, None], tf.zeros_like(part), part)
            for label, part in parts.items()
        }
        prior = self.mixed_model.prior_variance(rows)
        variance = tf.where(is_hidden[:, None], prior, tf.zeros_like(prior))
        return TrainingEffects(parts, kl, own, variance, is_hidden)

    def after_gradient(
        self, rows: Rows, effects: TrainingEffects, residual: tf.Tensor, error: tf.Tensor
    ) -> None:
        squares = tf.square(error)
        if effects.is_hidden is not None:
            # What the networks say of these rows holds their effects: nothing to learn them from.
            weight = rows.get("weight", tf.ones_like(error[:, 0]))
            rows = {**rows, "weight": tf.where(effects.is_hidden, tf.zeros_like(weight), weight)}
        if self.mixed_model.terms:
            noise = self.noise_variance
            squares = self.mixed_model.step(rows, effects.own, residual, noise)
        self.likelihood.update(squares, cell_weights(rows))

    # Around the steps -------------------------------------------------------------------------

    def begin(self, rows: Pass, is_fitted: bool) -> None:
        """Takes the training rows. A model never fitted starts at the linear mixed model."""
        self.rows = self.rows_without_bases = rows
        if not self.mixed_model.terms:
            if not is_fitted:
                self.likelihood.assign(np.ones(self.mixed_model.num_features))
            return
        if is_fitted:
            self._take_bases()
            self._solve(by_fold=True)
        elif self.latent_epochs:
            self._fit_bases(_values)
            self._take_bases()
            self._hold_effects_back()
        else:
            # The linear mixed model without the latent part: x = mean + Z B + e.
            self._start_effects(_values)
            self._scale_networks()

    def end_epoch(self, epoch: int) -> None:
        """Refreshes the table for new rows, and after epochs 1, 4, 16, 64, ... solves anew."""
        if not self.mixed_model.terms:
            return
        if not self._has_effects:
            if epoch < self.latent_epochs:
                return
            self._start_effects(lambda rows: self.infer(rows).residual, learn_bases=False)
        elif epoch - self.latent_epochs in _REFRESH_EPOCHS:
            self._solve_and_estimate(epoch)
        self.mixed_model.pool()

    def refresh(self, epoch: int) -> None:
        """Solves anew after an epoch of one's own choice; of no effect while there are none."""
        if self.mixed_model.terms and self._has_effects:
            self._solve_and_estimate(epoch)
            self.mixed_model.pool()

    def end(self) -> None:
        """Makes the effects exact given the networks: solves for all rows and terms jointly."""
        if not self.mixed_model.terms:
            if not self._has_networks:
                self._fit_intercept()
            return
        if not self._has_effects:
            self._start_effects(lambda rows: self.infer(rows).residual, learn_bases=False)
        if self._has_bases and self._has_networks:
            self._learn_bases_again()
        self._solve_and_estimate(seed=1000)
        self._make_final()

    def take_rows(self, rows: Pass) -> None:
        self.rows = self.rows_without_bases = rows
        if self.mixed_model.terms:
            self._take_bases()
            self._make_final()

    def _make_final(self) -> None:
        """Solves for all rows and terms jointly, and measures what they tell of the variances."""
        for _ in range(_FINAL_ROUNDS):
            self._solve(by_fold=True)
        self._solve(by_fold=False)
        self.mixed_model.measure_information(self.equations, seed=2000)

    def update(self, rows: Pass, earlier: EarlierRows | None) -> None:
        """Solves for the effects given further rows, networks, variances and prior frozen."""
        self.equations = self.mixed_model.equations(rows, earlier)
        for effects in self.mixed_model.effects:
            table = tf.convert_to_tensor(effects.table.effects)
            start = tf.zeros_like(table) if earlier is None else table
            effects.folds.effects.assign(tf.stack([start, start]))
        for by_fold in (*[True] * _UPDATE_ROUNDS, False):
            self._solve(by_fold, earlier)

    def _take_bases(self) -> None:
        """Takes the bases of now: they are computed once for all rows, unless these are many."""
        self.rows = self.rows_without_bases
        if not isinstance(self.rows.rows, tf.data.Dataset):
            size = sum(term.basis_size for term in self.mixed_model.terms if term.basis_size > 1)
            if 0 < size * num_rows(self.rows.rows) <= _LARGEST_BASES:
                parts = [with_bases(batch, self.mixed_model.terms) for batch in self.rows]
                rows = tf.nest.map_structure(lambda *values: tf.concat(values, axis=0), *parts)
                self.rows = Pass(rows)
        self.equations = self.mixed_model.equations(self.rows, has_intercept=True)

    def _solve(self, by_fold: bool, earlier: EarlierRows | None = None) -> None:
        solution = self.mixed_model.solve(
            self.equations, self.training_targets, self.noise_variance, by_fold, earlier
        )
        self._take_intercept(solution)

    def _take_intercept(self, solution: Solution) -> None:
        """Adds the intercept to the networks' output, so that the next one is 0."""
        if INTERCEPT in solution.effects:
            intercept = tf.reshape(solution.effects[INTERCEPT], (-1, self.networks.offset.shape[0]))
            self.networks.offset.assign_add(tf.reduce_mean(intercept, axis=0))

    def _solve_and_estimate(self, seed: int) -> None:
        """Solves the folds' equations given the networks and estimates the variances anew."""
        self.latent_prior.fit(self.rows, lambda rows: self.infer(rows).latent)
        self.mixed_model.move_variances(
            self.equations, self.training_targets, self.noise_variance, seed
        )
        self._solve(by_fold=True)

    def _learn_bases_again(self) -> None:
        """Length scales of what the networks leave, the latent a part of the noise."""
        self.latent_prior.fit(self.rows, lambda rows: self.infer(rows).latent)
        self._fit_bases(lambda rows: self.infer(rows).targets(self.latent_prior).values)
        self._take_bases()
        self._solve(by_fold=True)

    @property
    def _has_bases(self) -> bool:
        """Whether a term has a length scale, or the like, to learn."""
        return any(term.has_learned_basis for term in self.mixed_model.terms)

    @property
    def _has_effects(self) -> bool:
        """Whether the effects take part: not before `latent_epochs` are over."""
        started = keras.ops.convert_to_numpy(self.mixed_model.started)
        return not self.latent_epochs or bool(started)

    @property
    def _has_networks(self) -> bool:
        """Whether the networks are in use: otherwise the model is a linear mixed model."""
        return bool(keras.ops.convert_to_numpy(self.networks.in_use)[0])

    def _fit_intercept(self) -> None:
        """Mean and variance of every feature: all there is without terms and networks."""
        intercept = self.rows.cell_mean(_values)
        self.networks.offset.assign(intercept)
        squares, cells = self.rows.cell_sums(lambda rows: tf.square(_values(rows) - intercept))
        self.likelihood.assign((squares / tf.maximum(cells - 1.0, 1.0)).numpy())

    def _hold_effects_back(self) -> None:
        """Lets the networks alone for some epochs: with variances at their floor, B is 0."""
        size = self.mixed_model.num_features
        self.likelihood.assign(np.ones(size))
        for effects in self.mixed_model.effects:
            effects.prior.assign(np.full(size, EFFECT_VARIANCE_FLOOR))

    def _start_effects(self, values_of: Values, learn_bases: bool = True) -> None:
        """Fits variances and effects to `values = intercept + Z B + e`, from equal shares on."""
        total = self.rows.cell_mean(lambda rows: tf.square(values_of(rows)))
        share = total / (len(self.mixed_model.terms) + 1.0)
        self.likelihood.assign(share.numpy())
        for effects in self.mixed_model.effects:
            effects.prior.assign(share.numpy())
        # The basis of a term is found on the values less the other terms.
        has_others = self._has_bases and learn_bases and len(self.mixed_model.terms) > 1
        for number in range(_BASIS_ROUNDS if has_others else 1):
            if learn_bases:
                self._fit_bases(values_of)
                self._take_bases()
            noise = self.mixed_model.fit_variances(
                self.equations,
                values_of,
                np.asarray(self.likelihood.noise_variance),
                NOISE_VARIANCE_FLOOR if self.likelihood.is_learned else None,
                number,
            )
            self.likelihood.assign(noise)
            solution = self.mixed_model.solve(
                self.equations,
                lambda rows: Targets(values_of(rows)),
                self.noise_variance,
                by_fold=True,
            )
        self._take_intercept(solution)
        self.mixed_model.pool()
        self.mixed_model.started.assign(1.0)

    def _fit_bases(self, values_of: Values) -> None:
        """Length scales, each on the values less the other terms."""
        for term, effects in self.mixed_model.pairs():
            if not term.has_learned_basis:
                continue
            sample = RowSample(_BASIS_ROWS, seed=0)
            for batch in self.rows_without_bases:
                encoded = batch[EFFECTS][term.label]
                parts = self.mixed_model.own_fold_parts(self.mixed_model.own_fold(batch))
                others = total_of(parts, batch) - parts[term.label]
                known = encoded["codes"].numpy() >= 0
                values = values_of(batch) - others
                sample.update(encoded["inputs"].numpy()[known], values.numpy()[known])
            table, before = effects.folds.effects, term.user_basis()
            term.fit_basis(*sample.rows())
            if tf.reduce_any(table.value != 0.0):
                # The same effects in terms of the new basis, as near as can be.
                moved = least_squares(term.user_basis(), before)
                table.assign(tf.einsum("ij,aljf->alif", tf.cast(moved, tf.float32), table.value))

    def _scale_networks(self) -> None:
        """Lets the networks work on residuals of unit variance, however large the effects are."""

        def squares(batch: Rows) -> tf.Tensor:
            own = self.mixed_model.own_fold(batch)
            fitted = total_of(self.mixed_model.out_of_fold_parts(own), batch)
            return tf.square(batch[FEATURES] - fitted - self.networks.offset)

        variance = tf.maximum(self.rows.cell_mean(squares), NOISE_VARIANCE_FLOOR)
        self.networks.scale.assign(tf.sqrt(variance))


def _values(rows: Rows) -> tf.Tensor:
    return rows[FEATURES]
