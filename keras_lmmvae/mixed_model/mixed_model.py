"""The linear mixed model of all terms, as one Keras layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE
from keras_lmmvae.layers.state_layer import StateLayer
from keras_lmmvae.linalg import LevelPosterior
from keras_lmmvae.mixed_model.condition import condition, known_level
from keras_lmmvae.mixed_model.effective_parameters import Probes
from keras_lmmvae.mixed_model.equations import EarlierRows, Equations, Solution
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.mixed_model.reml import REML
from keras_lmmvae.mixed_model.residuals import Targets
from keras_lmmvae.mixed_model.table_rows import TableRows
from keras_lmmvae.rows import EFFECTS, FEATURES, FOLD, Pass, Rows, cell_weights, row_weights

# Steps towards the REML estimates between epochs.
_STEPS = 3

__all__ = ["FoldRows", "MixedModel", "Parts", "total_of"]

Parts = dict[str, tf.Tensor]
"""Term name -> its contribution `Z_k B_k` to some rows, `(b, p)`."""

FoldRows = dict[str, TableRows]
"""Term name -> training rows in the table of their own folds."""


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class MixedModel(StateLayer):
    """The linear mixed model of all terms.

        r[i] = sum{ Z_k[i] @ B_k : k=1...K } + e[i],    e[i] ~ Normal(0, diag(noise_variance))
        B_k[l, :, f] ~ Normal(0, effect_variance_k[f] * Psi_k)

    Everything is in standardised units of the features. The layer knows no network: methods are
    given encoded rows, what the effects are to explain, `(b, p)`, and the noise variance, `(p,)`.
    `by_fold` says whether they are about the folds' tables or that of all rows, and `earlier` are
    the equations of rows seen before, which are added.

    Args:
        terms: The terms, adapted.
        is_amortized: Whether effects are means of codes, without folds and learned variances.
        has_missing_cells: Whether training rows lacked cells. Then the tables keep which share
            of a level's cells each feature has.

    Attributes:
        terms: The terms.
        effects: The `LevelEffects` of each.
        information: Weight `(p, K, K)`, REML's information of the logarithms of the terms'
            variances; see `Probes.information`.
        variance_ratio: Weight `(p,)`: posterior variance of all contributions together, over
            the sum of those with the other terms known.
        started: Scalar weight, 1 once the effects take part.

    References:
        - Henderson, C. R. (1975), Best linear unbiased estimation and prediction.
        - Robinson, G. K. (1991), That BLUP is a good thing.
    """

    def __init__(
        self,
        terms: Sequence[RandomEffect],
        is_amortized: bool = False,
        has_missing_cells: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.terms = list(terms)
        self.is_amortized = is_amortized
        self.has_missing_cells = has_missing_cells and not is_amortized
        self.num_features = 0
        self.effects: list[LevelEffects] = []

    def build(self, input_shape: Any) -> None:
        """Makes the tables for rows of shape `(None, p)`."""
        self.num_features = int(input_shape[-1])
        count = len(self.terms)
        for term in self.terms:
            term.build_basis(self.is_amortized)
            term.built = True
            sizes = (self.num_features, self.is_amortized, self.has_missing_cells)
            self.effects.append(LevelEffects.of(term, *sizes))
        self.information = self.state("information", (self.num_features, count, count))
        self.variance_ratio = self.state("variance_ratio", (self.num_features,), "ones")
        self.started = self.state("started", ())

    def pairs(self) -> Iterator[tuple[RandomEffect, LevelEffects]]:
        """Every term with its effects."""
        return zip(self.terms, self.effects, strict=True)

    def of(self, label: str) -> LevelEffects:
        """The effects of the term of that name."""
        return next(effects for term, effects in self.pairs() if term.label == label)

    # Rows read their effects ----------------------------------------------------------------

    def parts(self, rows: Rows, terms: Sequence[RandomEffect] | None = None) -> Parts:
        """Contributions to new rows; levels never seen contribute nothing."""
        found = {}
        for term in self.terms if terms is None else terms:
            encoded = rows[EFFECTS][term.label]
            effects = self.of(term.label).table.effects.value
            found[term.label] = design.product(effects, encoded["codes"], term.basis_of(encoded))
        return found

    def own_fold(self, rows: Rows) -> FoldRows:
        """Training rows in the tables of their own folds; it holds until the effects change."""
        return {term.label: _own_fold(term, effects, rows) for term, effects in self.pairs()}

    def out_of_fold_parts(self, own: FoldRows) -> Parts:
        """Contributions to training rows, from the effects of the fold that they are not in."""
        return {label: part.of_other_fold().product() for label, part in own.items()}

    def own_fold_parts(self, own: FoldRows) -> Parts:
        """Contributions to training rows, from the effects of their own fold."""
        return {label: part.product() for label, part in own.items()}

    def contribution(self, rows: Rows) -> tf.Tensor:
        """`sum_k Z_k B_k` of new rows, `(b, p)`."""
        return total_of(self.parts(rows), rows)

    def variance(self, rows: Rows) -> tf.Tensor:
        """Posterior variance of `contribution`, `(b, p)`, the latent of training rows unknown.

        Levels never seen have the variance of the prior. Terms that share rows cancel each
        other's errors, so the variance of a term is its share of that of all together.
        """
        total = tf.zeros_like(rows[FEATURES])
        for term, effects in self.pairs():
            total += self._row_variance(term, effects, rows, is_marginal=False)
        return total

    def prior_variance(self, rows: Rows) -> tf.Tensor:
        """Prior variance of `contribution`, `(b, p)`: of rows whose levels are not known."""
        total = tf.zeros_like(rows[FEATURES])
        for term, effects in self.pairs():
            encoded = rows[EFFECTS][term.label]
            codes, basis = encoded["codes"], term.basis_of(encoded)
            prior = effects.prior.row_variance(basis, tf.shape(codes)[0])
            total += tf.where((codes == NULL_CODE)[:, None], tf.zeros_like(prior), prior)
        return total

    def term_variance(self, label: str, rows: Rows) -> tf.Tensor:
        """Posterior variance of one term's contribution by itself, `(b, p)`.

        The other terms are not known either, and all that the basis leaves out counts.
        """
        term, effects = next(pair for pair in self.pairs() if pair[0].label == label)
        return self._row_variance(term, effects, rows, is_marginal=True)

    def _row_variance(
        self,
        term: RandomEffect,
        effects: LevelEffects,
        rows: Rows,
        is_marginal: bool,
    ) -> tf.Tensor:
        encoded = rows[EFFECTS][term.label]
        basis, codes = term.basis_of(encoded), encoded["codes"]
        prior = effects.prior.row_variance(basis, tf.shape(codes)[0])
        if self.is_amortized:
            seen = tf.zeros_like(prior)
        else:
            seen = TableRows(effects.table, effects.prior, codes, basis)
            seen = seen.variance(effects.information)
            ratio = effects.variance_ratio.value if is_marginal else self.variance_ratio.value
            seen = seen * ratio
            share = 1.0 if is_marginal else _mean_share(effects, basis)
            missing = term.missing_share(basis, share)
            if missing is not None:
                missing = tf.where(codes >= 0, missing, tf.zeros_like(missing))
                seen += missing[:, None] * effects.effect_variance
        return tf.where((codes == UNKNOWN_CODE)[:, None], prior, seen)

    def kl(self, rows: Rows, own: FoldRows, noise_variance: tf.Tensor) -> tf.Tensor:
        """The rows' shares of KL(q(B) || p(B)) in their own folds, `(b,)`, nats."""
        total = tf.zeros(tf.shape(rows[FEATURES])[0])
        for part in own.values():
            total += part.kl_share(noise_variance)
        return total

    def own_variance(self, rows: Rows, own: FoldRows, noise_variance: tf.Tensor) -> tf.Tensor:
        """Posterior variance of `own_fold_parts` together given the latent, `(b, p)`.

        That of a surface is its mean over the training rows.
        """
        total = tf.zeros_like(rows[FEATURES])
        for part in own.values():
            total += part.mean_variance(Information.given_latent(part.prior, noise_variance))
        return total * self.variance_ratio.value

    # Rows teach the effects -----------------------------------------------------------------

    def step(
        self, rows: Rows, own: FoldRows, residual: tf.Tensor, noise_variance: tf.Tensor
    ) -> tf.Tensor:
        """Moves the effects of a mini-batch's levels towards their posterior means.

        One term after the other, each with the others' newest effects (Gauss-Seidel): this
        converges also where a batch holds all rows of its levels.

        Returns:
            The rows' squared errors, posterior variance included, `(b, p)`. A step overweights the
            rows that it has just seen and underweights those that it is about to see: the product
            of the errors before and after has the weight of the solved equations.
        """
        cells, weights = cell_weights(rows), row_weights(rows)
        parts = self.own_fold_parts(own)
        before = error = residual - total_of(parts, rows)
        for term, effects in self.pairs():
            weighted = error if cells is None else error * cells
            increment = own[term.label].increment(weighted, noise_variance, weights)
            effects.folds.add(increment)
            error += parts[term.label] - _own_fold(term, effects, rows).product()
        return before * error + self.own_variance(rows, own, noise_variance)

    def equations(
        self, rows: Pass, earlier: EarlierRows | None = None, has_intercept: bool = False
    ) -> Equations:
        """Henderson's equations of these rows; their designs become those of the terms.

        Tables that kept no shares of cells are made anew if a cell is missing.
        """
        equations = Equations(self.terms, self.effects, rows, has_intercept)
        if equations.has_missing_cells and not self.has_missing_cells:
            self.has_missing_cells = True
            for number, effects in enumerate(self.effects):
                self._replace(number, effects.grown(effects.num_levels, has_missing_cells=True))
            equations.effects = list(self.effects)
        equations.set_designs(earlier)
        return equations

    def _replace(self, number: int, effects: LevelEffects) -> None:
        """Puts effects in the place of others: a weight cannot change its shape."""
        self._tracker.unlock()
        self.effects.remove(self.effects[number])
        self.effects.insert(number, effects)
        self._tracker.lock()

    def solve(
        self,
        equations: Equations,
        targets_of: Callable[[Rows], Targets],
        noise_variance: tf.Tensor,
        by_fold: bool,
        earlier: EarlierRows | None = None,
    ) -> Solution:
        """Makes the effects exact; see `Equations.solve`."""
        return equations.solve(by_fold, targets_of, noise_variance, earlier)

    def pool(self) -> None:
        """Brings the tables for new rows up to date with the folds."""
        for effects in self.effects:
            effects.pool()

    def fit_variances(
        self,
        equations: Equations,
        values_of: Callable[[Rows], tf.Tensor],
        noise_variance: np.ndarray,
        noise_floor: float | None,
        seed: int,
    ) -> np.ndarray:
        """REML estimates of all variances for rows without a latent; see `REML`.

        Returns:
            The noise variance, float array `(p,)`.
        """
        sums = equations.row_sums(values_of)
        reml = REML(equations, seed)
        noise = reml.fit(sums, noise_variance, noise_floor)
        self._take_parameters(reml.probes)
        return noise

    def move_variances(
        self,
        equations: Equations,
        targets_of: Callable[[Rows], Targets],
        noise_variance: tf.Tensor,
        seed: int,
    ) -> None:
        """Some steps towards the REML estimates of the effects' variances, given the rest."""
        right_side = equations.right_side(False, targets_of, noise_variance)
        reml = REML(equations, seed)
        reml.steps(right_side, _STEPS)
        self._take_parameters(reml.probes)

    def _take_parameters(self, probes: Probes) -> None:
        """Takes how terms share what the rows say; see `EffectiveParameters`."""
        parameters = probes.effective_parameters()
        together = sum(part.count for part in parameters)
        alone = sum(part.alone for part in parameters)
        self.variance_ratio.assign(together / np.maximum(alone, 1e-30))
        for effects, part in zip(self.effects, parameters, strict=True):
            effects.variance_ratio.assign(part.variance_ratio)
            effects.effective_parameters.assign(part.count)

    def measure_information(self, equations: Equations, seed: int) -> None:
        """Measures what the rows tell of the variances, for their intervals."""
        probes = Probes(equations, seed)
        probes.solve()
        self._take_parameters(probes)
        self.information.assign(probes.information())

    # Levels -----------------------------------------------------------------------------------

    def condition(
        self,
        label: str,
        basis: tf.Tensor,
        cells: tf.Tensor,
        values_of: Callable[[tf.Tensor], tf.Tensor],
        code: int = UNKNOWN_CODE,
    ) -> LevelPosterior:
        """Posterior of the effects of a level given some of its rows; see `condition`."""
        effects = self.of(label)
        known = known_level(effects, code, basis.dtype)
        return condition(effects, known, basis, cells, values_of)

    def earlier_rows(self) -> EarlierRows:
        """Sufficient statistics of the rows seen so far, every term by itself."""
        grams, traces, scores, information = {}, {}, {}, {}
        for term, part in self.pairs():
            effects = tf.convert_to_tensor(part.table.effects)
            grams[term.label] = tf.identity(part.table.gram)
            traces[term.label] = part.table.traces()
            known = part.information
            axes = None if known.axes is None else tf.identity(known.axes)
            known = Information(tf.identity(known.effect_variance), tf.identity(known.signal), axes)
            information[term.label] = known
            scores[term.label] = part.table.precision_product(effects, part.prior, known)
        return EarlierRows(grams, traces, scores, information)

    def add_levels(self, columns: dict[str, np.ndarray]) -> bool:
        """Grows the tables for keys never seen before; returns whether there were any."""
        has_grown = False
        for number, term in enumerate(self.terms):
            if term.add_levels(columns):
                has_grown = True
                self._replace(number, self.effects[number].grown(term.num_levels))
        return has_grown

    def of_new_levels(self) -> MixedModel:
        """The mixed model of the levels that the terms know and their tables do not yet.

        It has the same variances, and no term without such levels. Its effects are 0.
        """
        new = [pair for pair in self.pairs() if pair[0].num_levels > pair[1].num_levels]
        mixed_model = MixedModel([term for term, _ in new], name="new_levels")
        mixed_model.num_features = self.num_features
        mixed_model.effects = [
            effects.of_other_levels(term.num_levels - effects.num_levels) for term, effects in new
        ]
        mixed_model.variance_ratio = self.variance_ratio
        mixed_model.built = True
        return mixed_model

    def append(self, other: MixedModel) -> None:
        """Puts the levels of `of_new_levels` behind the present ones, which stay as they are."""
        self.has_missing_cells |= other.has_missing_cells
        for number, (term, effects) in enumerate(list(self.pairs())):
            added = next((part for own, part in other.pairs() if own is term), None)
            if added is not None:
                self._replace(number, effects.followed_by(added))
            elif effects.has_missing_cells != self.has_missing_cells:
                self._replace(number, effects.grown(effects.num_levels, self.has_missing_cells))

    def served_variables(self) -> list[keras.Variable]:
        """Weights that an answer to a request reads."""
        variables = [] if self.is_amortized or not self.terms else [self.variance_ratio]
        for term, effects in self.pairs():
            variables += [*effects.served_variables(), *term.basis_variables()]
        return variables


def total_of(parts: Parts, rows: Rows) -> tf.Tensor:
    """The sum of the terms' contributions, `(b, p)`; 0 without terms."""
    return tf.add_n(list(parts.values())) if parts else tf.zeros_like(rows[FEATURES])


def _own_fold(term: RandomEffect, effects: LevelEffects, rows: Rows) -> TableRows:
    encoded = rows[EFFECTS][term.label]
    basis = term.basis_of(encoded)
    return TableRows(effects.folds, effects.prior, encoded["codes"], basis, rows[FOLD])


def _mean_share(effects: LevelEffects, basis: tf.Tensor | None) -> tf.Tensor | float:
    """Share of the prior variance that the basis reaches at the average training row.

    The noise variance, learned from the training rows, holds the rest already.
    """
    if basis is None or effects.num_levels > 1:
        return 1.0
    # A constant identity: OpenVINO has neither `trace` nor `eye`.
    total = tf.reduce_sum(effects.table.gram * np.eye(effects.basis_size, dtype=np.float32))
    rows = tf.reduce_sum(effects.table.count.value)
    return tf.where(rows > 0.0, tf.math.divide_no_nan(total, rows), 1.0)
