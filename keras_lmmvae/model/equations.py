"""The mixed model equations of all training rows: designs, solutions, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.layers.fold_moments import sample_prior
from keras_lmmvae.model import solver
from keras_lmmvae.model.fold_variances import (
    SquaredErrors,
    calibrate_inflation,
    retained_moments,
    update_variances,
)
from keras_lmmvae.model.rows import EFFECTS, FOLD, Rows, batches_of, cell_weights, row_weights

if TYPE_CHECKING:
    from keras_lmmvae.model.lmmvae import LMMVAE

__all__ = ["MixedModelEquations", "cell_mean"]

_FOLD_ITERATIONS = 40
_FOLD_TOLERANCE = 1e-3
_FINAL_ITERATIONS = 300
_FINAL_TOLERANCE = 1e-5
# Design rows are merged to chunks of this many before the equations are solved.
_CHUNK = 65_536


class MixedModelEquations:
    """Henderson's equations of a model's terms over all its training rows.

    Args:
        model: The model; its terms hold designs, variances and tables.
        rows: Encoded rows, arrays or a dataset.
    """

    def __init__(self, model: LMMVAE, rows: Any) -> None:
        self.model = model
        self.terms = model.random_effects
        self.rows = rows
        # A pass over a chunk touches the whole tables: not more chunks than tables of their size.
        tables = sum(2 * term.num_levels * term.basis_size for term in self.terms)
        self.chunk_size = max(_CHUNK, tables)
        self.chunks = [self._design(group) for group in _groups(rows, self.chunk_size)]
        self._solvers = {folds: self._make_solver(folds) for folds in (True, False)}

    def _design(self, group: list[Rows]) -> solver.DesignRows:
        """Design rows of batches, with their bases: every iteration of the solver needs them."""
        rows = _merged(group)
        encoded = {t.label: t.with_basis(rows.encoded[t.label]) for t in self.terms}
        return replace(rows, encoded=encoded)

    def set_designs(self, history: solver.Effects | None = None) -> None:
        """Gives every term the Gram matrices and counts of its levels, by fold.

        Args:
            history: Optional Gram matrices of earlier rows by term, added to both folds.
        """
        for term in self.terms:
            levels = 2 * term.num_levels
            grams = tf.zeros((levels, term.basis_size, term.basis_size))
            counts = tf.zeros(levels)
            for rows in self.chunks:
                codes = rows.codes(term, folds=True)
                basis = term.basis_of(rows.encoded[term.label])
                grams += design.gram(codes, basis, levels, rows.row_weights)
                counts += design.count(codes, levels, rows.row_weights)
            if history is not None:
                grams += tf.concat([history[term.label]] * 2, axis=0)
            term.posterior.set_design(grams, counts)

    def set_common_designs(self, history: solver.Effects | None) -> None:
        """Corrects the common Gram matrices, in which `set_designs` counted history twice."""
        for term in self.terms:
            if history is not None:
                gram = tf.convert_to_tensor(term.posterior.gram) - history[term.label]
                term.posterior.gram.assign(gram)
            term.posterior.refresh()

    def solve(
        self,
        folds: bool,
        values_of: Callable[[Rows], tf.Tensor],
        history: solver.History | None = None,
    ) -> solver.Solution:
        """Solves for the effects of all terms jointly and assigns them.

        Args:
            folds: Whether to solve each fold's rows for its table, or all rows for `effects`.
            values_of: Function of encoded rows that gives what the effects are to explain.
            history: Optional equations of earlier rows, added.

        Returns:
            The solution, with the iterations that it took.
        """
        noise = self.model.effects_noise_variance()
        right_side: solver.Effects = {} if history is None else history.scores
        for group in _groups(self.rows, self.chunk_size):
            values = tf.concat([values_of(batch) / noise for batch in group], axis=0)
            part = solver.scores(values, self.terms, self._design(group), folds)
            right_side = _add(right_side, part)
        tables = {
            t.label: t.posterior.fold_effects if folds else t.posterior.effects for t in self.terms
        }
        start = {label: tf.convert_to_tensor(table) for label, table in tables.items()}
        solution = self._solution(folds, right_side, start, history)
        for label, table in tables.items():
            table.assign(solution.effects[label])
        return solution

    def _solution(
        self,
        folds: bool,
        right_side: solver.Effects,
        start: solver.Effects,
        history: solver.History | None = None,
    ) -> solver.Solution:
        return self._solvers[folds](right_side, self.model.effects_noise_variance(), start, history)

    def _make_solver(self, folds: bool) -> Callable[..., solver.Solution]:
        def run(
            right_side: solver.Effects,
            noise_variance: tf.Tensor,
            start: solver.Effects,
            history: solver.History | None,
        ) -> solver.Solution:
            return solver.solve(
                self.terms,
                self.chunks,
                right_side,
                noise_variance,
                start,
                folds=folds,
                history=history,
                max_iterations=_FOLD_ITERATIONS if folds else _FINAL_ITERATIONS,
                tolerance=_FOLD_TOLERANCE if folds else _FINAL_TOLERANCE,
            )

        return tf.function(run, autograph=False)

    def update_variances(self) -> None:
        """Re-estimates the terms' variances from the solved folds; see `fold_variances`."""
        update_variances(self.model)

    def calibrate(self, folds: bool, seed: int) -> None:
        """Measures how terms that share rows share what the rows say, on simulated data.

        The closed forms for a level take the other terms as known. With several terms they
        are too confident, and what one term explains leaks into another. So effects are drawn
        from the current variances, once for each term alone and once for all of them with
        noise; they are fitted with the same equations, and what comes back is compared with
        what the closed forms expect. One term alone needs none of this.

        Args:
            folds: Whether to calibrate the folds' tables or the common one.
            seed: Seed of the draws.
        """
        if len(self.terms) < 2:
            return
        truth, estimate = self._refit_simulated(self.terms, folds, seed, has_noise=True)
        calibrate_inflation(self.model, self._squared_errors(truth, estimate, folds), folds)
        if folds:
            matrix = [
                retained_moments(self.model, *self._refit_simulated([term], folds, seed + number))
                for number, term in enumerate(self.terms, start=1)
            ]
            # Not averaged with earlier ones: they belong to other variances, and lagging behind
            # lets a small variance slide to 0.
            self.model.moment_matrix.assign(np.stack(matrix, axis=-1))

    def _refit_simulated(
        self, sources: Sequence[RandomEffect], folds: bool, seed: int, has_noise: bool = False
    ) -> tuple[solver.Effects, solver.Effects]:
        """Draws effects of some terms from the prior and fits all terms to the data they make."""
        noise = self.model.effects_noise_variance()
        truth = {
            term.label: sample_prior(term.posterior, 1000 * seed + number) * float(term in sources)
            for number, term in enumerate(self.terms)
        }
        right_side: solver.Effects = {}
        for number, rows in enumerate(self.chunks):
            values = solver.fitted_values(truth, self.terms, rows, folds=False)
            if has_noise:
                draws = tf.random.stateless_normal(tf.shape(values), (seed, 7919 + number))
                values += draws * tf.sqrt(noise)
            right_side = _add(right_side, solver.scores(values / noise, self.terms, rows, folds))
        zeros = {name: tf.zeros_like(value) for name, value in right_side.items()}
        return truth, self._solution(folds, right_side, zeros).effects

    def _squared_errors(
        self, truth: solver.Effects, estimate: solver.Effects, folds: bool
    ) -> SquaredErrors:
        """Sums over rows, by feature: found and expected by term, and found of all together."""
        noise = self.model.effects_noise_variance()
        found = {term.label: tf.zeros(self.model.num_features) for term in self.terms}
        expected = dict(found)
        total = tf.zeros(self.model.num_features)
        for rows in self.chunks:
            together = tf.zeros(self.model.num_features)
            for term in self.terms:
                basis = term.basis_of(rows.encoded[term.label])
                codes = rows.codes(term, folds)
                error = design.product(estimate[term.label], codes, basis) - design.product(
                    truth[term.label], rows.codes(term, False), basis
                )
                variance = term.posterior.contribution_variance(codes, basis, noise, folds)
                found[term.label] += tf.reduce_sum(tf.square(error), axis=0)
                expected[term.label] += tf.reduce_sum(variance, axis=0)
                together += error
            total += tf.reduce_sum(tf.square(together), axis=0)
        return SquaredErrors(found, expected, total)


def cell_mean(rows: Any, values_of: Callable[[Rows], tf.Tensor], num_features: int) -> tf.Tensor:
    """Weighted mean over the observed cells of every feature, `(p,)`."""
    total, cells = tf.zeros(num_features), tf.zeros(num_features)
    for batch in batches_of(rows):
        values, weights = values_of(batch), cell_weights(batch)
        weights = tf.ones_like(values) if weights is None else weights * tf.ones_like(values)
        total += tf.reduce_sum(weights * values, axis=0)
        cells += tf.reduce_sum(weights, axis=0)
    return total / tf.maximum(cells, 1e-6)


def _add(total: solver.Effects, part: solver.Effects) -> solver.Effects:
    return {name: total[name] + part[name] for name in part} if total else part


def _groups(rows: Any, size: int) -> Iterator[list[Rows]]:
    """Batches put together to groups of at least `size` rows, but for the last."""
    group: list[Rows] = []
    total = 0
    for batch in batches_of(rows):
        group.append(batch)
        total += int(batch[FOLD].shape[0])
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def _merged(batches: list[Rows]) -> solver.DesignRows:
    """Design rows of batches, one below the other."""

    def stacked(values: list[Any]) -> Any:
        return None if values[0] is None else tf.concat(values, axis=0)

    effects = [batch[EFFECTS] for batch in batches]
    return solver.DesignRows(
        tf.nest.map_structure(lambda *values: tf.concat(values, axis=0), *effects),
        stacked([batch[FOLD] for batch in batches]),
        stacked([cell_weights(batch) for batch in batches]),
        stacked([row_weights(batch) for batch in batches]),
    )
