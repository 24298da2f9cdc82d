"""Henderson's mixed model equations of all rows and terms, solved by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.random_effect import Encoded, RandomEffect
from keras_lmmvae.mixed_model.effects_table import EffectsTable
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.mixed_model.residuals import Residuals, Targets
from keras_lmmvae.rows import EFFECTS, FOLD, Pass, Rows, cell_weights, row_weights

__all__ = ["DesignRows", "EarlierRows", "Equations", "Solution", "Tables", "add_tables"]

Tables = dict[str, tf.Tensor]
"""Term name -> table of effects `(levels, m, p)`, or `(folds, levels, m, p)`."""

# Iterations and tolerance of the folds' equations while the networks still move, and of the last
# solution.
_FOLD_ITERATIONS, _FOLD_TOLERANCE = 40, 1e-3
_FINAL_ITERATIONS, _FINAL_TOLERANCE = 300, 2e-6
# Design rows are merged to chunks of this many before the equations are solved.
_CHUNK = 65_536


@dataclass(frozen=True)
class DesignRows:
    """What the equations need of some rows: everything but their values.

    Attributes:
        encoded: Term name -> codes and basis.
        fold: Int tensor `(b,)`.
        cell_weights: Float tensor `(b, p)`: row weight, 0 for missing cells; or `(b, 1)` if no
            cell is missing; or `None`.
        row_weights: Float tensor `(b,)`: row weight times its share of observed cells; or `None`.
    """

    encoded: dict[str, Encoded]
    fold: tf.Tensor
    cell_weights: tf.Tensor | None
    row_weights: tf.Tensor | None

    @classmethod
    def of(cls, batches: Sequence[Rows], terms: Sequence[RandomEffect]) -> DesignRows:
        """Design rows of batches, one below the other, with the bases of the terms."""

        def stacked(values: list[tf.Tensor | None]) -> tf.Tensor | None:
            return None if values[0] is None else tf.concat(values, axis=0)

        effects = [batch[EFFECTS] for batch in batches]
        encoded = tf.nest.map_structure(lambda *values: tf.concat(values, axis=0), *effects)
        cells = stacked([cell_weights(batch) for batch in batches])
        if cells is not None and not bool(tf.reduce_any(cells != cells[:, :1])):
            cells = cells[:, :1]
        return cls(
            {term.label: term.with_basis(encoded[term.label]) for term in terms},
            tf.concat([batch[FOLD] for batch in batches], axis=0),
            cells,
            stacked([row_weights(batch) for batch in batches]),
        )


class EarlierRows(NamedTuple):
    """Equations of rows seen before, of which only sufficient statistics are left.

    Attributes:
        grams: Term name -> Gram matrices `(levels, m, m)`.
        traces: Term name -> traces of the features' Gram matrices, `(levels, p or 1)`.
        scores: Term name -> right sides `(levels, m, p)`, over the noise variance.
        information: Term name -> what a row told of the effects.
    """

    grams: Tables
    traces: Tables
    scores: Tables
    information: dict[str, Information]

    def product(self, effects: Tables) -> Tables:
        """`G (x) M @ B` of every term; see `Information`."""
        found = {}
        for name, gram in self.grams.items():
            share = tf.math.divide_no_nan(self.traces[name], tf.linalg.trace(gram)[..., None])
            found[name] = self.information[name].gram_product(gram, effects[name], share)
        return found


class Solution(NamedTuple):
    """Effects, the iterations that were made and the largest remaining relative residual."""

    effects: Tables
    iterations: tf.Tensor
    residual: tf.Tensor


def add_tables(total: Tables, part: Tables) -> Tables:
    """The sum of two sets of tables; an empty one counts as 0."""
    return {name: total[name] + part[name] for name in part} if total else part


class Equations:
    """Henderson's equations of some terms over some rows.

        (Z' inv(Omega) Z + inv(prior covariance)) B = Z' inv(Omega) values

    with Z all terms side by side, and Omega the covariance of what the effects leave over: the
    latent and the noise (see `Residuals`). With `by_fold` there are two such systems, of the rows
    of each fold by themselves.

    Args:
        terms: The terms.
        effects: Their effects, which hold designs, variances and tables.
        rows: The rows.
    """

    def __init__(
        self, terms: Sequence[RandomEffect], effects: Sequence[LevelEffects], rows: Pass
    ) -> None:
        self.terms = list(terms)
        self.effects = list(effects)
        self.rows = rows
        # A pass over a chunk touches whole tables: chunks are not smaller than these.
        tables = sum(design.NUM_FOLDS * part.num_levels * part.basis_size for part in effects)
        self.chunk_size = max(_CHUNK, tables)
        self.chunks = [DesignRows.of(group, terms) for group in rows.groups(self.chunk_size)]
        weights = [rows.cell_weights for rows in self.chunks if rows.cell_weights is not None]
        self.has_missing_cells = any(cells.shape[1] > 1 for cells in weights)
        self.residuals: list[Residuals] = []
        self._solvers = {by_fold: self._solver(by_fold) for by_fold in (True, False)}

    def set_designs(self, earlier: EarlierRows | None = None) -> None:
        """Gives every term the Gram matrices and counts of its levels, by fold."""
        for term, effects in zip(self.terms, self.effects, strict=True):
            gram = tf.zeros_like(effects.folds.gram)
            count = tf.zeros_like(effects.folds.count)
            traces = None
            if effects.has_missing_cells:
                traces = tf.zeros((*count.shape, effects.num_features))
            for rows in self.chunks:
                encoded = rows.encoded[term.label]
                codes, weights = encoded["codes"], rows.row_weights
                basis, levels = term.basis_of(encoded), effects.num_levels
                gram += design.gram(codes, basis, levels, weights, rows.fold)
                count += design.count(codes, levels, weights, rows.fold)
                if traces is not None:
                    traces += self._traces(rows, codes, basis, levels)
            known: tuple[Any, ...] = ()
            if earlier is not None:
                known = (earlier.grams[term.label], earlier.traces[term.label])
            effects.set_design(gram, count, traces, *known)

    def _traces(
        self, rows: DesignRows, codes: tf.Tensor, basis: tf.Tensor | None, num_levels: int
    ) -> tf.Tensor:
        """Traces of the features' Gram matrices by fold and level, `(folds, levels, p)`."""
        values = tf.ones((tf.shape(codes)[0], self.effects[0].num_features))
        if rows.cell_weights is not None:
            values *= rows.cell_weights
        if basis is not None:
            values *= tf.reduce_sum(tf.square(basis), axis=1, keepdims=True)
        return design.transpose_product(values, codes, None, num_levels, rows.fold)[..., 0, :]

    def solve(
        self,
        by_fold: bool,
        targets_of: Callable[[Rows], Targets],
        noise_variance: tf.Tensor,
        earlier: EarlierRows | None = None,
    ) -> Solution:
        """Solves for the effects of all terms jointly and assigns them.

        Returns:
            The solution.
        """
        right_side: Tables = {} if earlier is None else dict(earlier.scores)
        self.residuals = []
        for rows, group in zip(self.chunks, self.rows.groups(self.chunk_size), strict=True):
            parts = [targets_of(batch) for batch in group]
            values = tf.concat([part.values for part in parts], axis=0)
            loadings = None
            if parts[0].loadings is not None:
                loadings = tf.concat([part.loadings for part in parts], axis=1)
            residuals = Residuals.of(loadings, noise_variance, rows.cell_weights)
            self.residuals.append(residuals)
            scores = self.scores(residuals.precision_product(values), rows, by_fold)
            right_side = add_tables(right_side, scores)
        precision = self._mean_precision()
        for effects in self.effects:
            effects.set_information(precision)
        tables = {
            term.label: _table(effects, by_fold).effects
            for term, effects in zip(self.terms, self.effects, strict=True)
        }
        start = {label: tf.convert_to_tensor(table) for label, table in tables.items()}
        solution = self.solution(by_fold, right_side, start, earlier)
        for label, table in tables.items():
            table.assign(solution.effects[label])
        return solution

    def _mean_precision(self) -> np.ndarray:
        """The mean of the rows' `inv(Omega)`, float64 `(p, p)`."""
        precision = np.diag(1.0 / np.asarray(self.residuals[0].noise_variance, np.float64))
        if not self.has_latent:
            return precision
        lost, count = np.zeros_like(precision), 0.0
        for rows, residuals in zip(self.chunks, self.residuals, strict=True):
            part, weight = residuals.lost_precision(rows.row_weights)
            lost += part.numpy()
            count += float(weight)
        return precision - lost / max(count, 1e-6)

    @property
    def has_latent(self) -> bool:
        """Whether the residuals of the last solution have a latent part."""
        return any(residuals.factors is not None for residuals in self.residuals)

    def solution(
        self,
        by_fold: bool,
        right_side: Tables,
        start: Tables,
        earlier: EarlierRows | None = None,
    ) -> Solution:
        """The solution for given right sides, which is not assigned.

        Preconditioned by the inverse blocks of the levels, which are the whole inverse where one
        factor stands alone; each iteration costs O(rows * features * (terms + latent_dim)).
        """
        if len(self.terms) == 1 and self.effects[0].basis_size == 1 and not self.has_latent:
            label, part = self.terms[0].label, self.effects[0]
            effects = _table(part, by_fold).solve(right_side[label], part.information)
            return Solution({label: effects}, tf.constant(0), tf.constant(0.0))
        return self._solvers[by_fold](right_side, self.residuals, start, earlier)

    def fitted(self, effects: Tables, rows: DesignRows, by_fold: bool) -> tf.Tensor:
        """`sum_k Z_k B_k` of some rows, `(b, p)`."""
        fold = rows.fold if by_fold else None
        parts = []
        for term in self.terms:
            encoded = rows.encoded[term.label]
            basis = term.basis_of(encoded)
            parts.append(design.product(effects[term.label], encoded["codes"], basis, fold))
        return tf.add_n(parts)

    def scores(self, values: tf.Tensor, rows: DesignRows, by_fold: bool) -> Tables:
        """`Z_k' values` of every term."""
        if rows.cell_weights is not None:
            values = values * rows.cell_weights
        fold = rows.fold if by_fold else None
        found = {}
        for term, effects in zip(self.terms, self.effects, strict=True):
            encoded = rows.encoded[term.label]
            codes, basis = encoded["codes"], term.basis_of(encoded)
            found[term.label] = design.transpose_product(
                values, codes, basis, effects.num_levels, fold
            )
        return found

    def _solver(self, by_fold: bool) -> Callable[..., Solution]:
        """The solver as a graph: eagerly its many small operations would cost more than sums."""

        def run(
            right_side: Tables,
            residuals: list[Residuals],
            start: Tables,
            earlier: EarlierRows | None,
        ) -> Solution:
            def multiply(effects: Tables) -> Tables:
                return self._product(effects, residuals, by_fold, earlier)

            def precondition(residual: Tables) -> Tables:
                return {
                    term.label: _table(effects, by_fold).solve(
                        residual[term.label], effects.information
                    )
                    for term, effects in zip(self.terms, self.effects, strict=True)
                }

            iterations = _FOLD_ITERATIONS if by_fold else _FINAL_ITERATIONS
            tolerance = _FOLD_TOLERANCE if by_fold else _FINAL_TOLERANCE
            # The latent ties the features together: then they take steps of one length.
            is_tied = residuals[0].factors is not None
            return _conjugate_gradients(
                multiply, precondition, right_side, start, iterations, tolerance, is_tied
            )

        return tf.function(run, autograph=False)

    def _product(
        self,
        effects: Tables,
        residuals: list[Residuals],
        by_fold: bool,
        earlier: EarlierRows | None,
    ) -> Tables:
        """The left side of the equations at some effects."""
        total = {
            term.label: part.prior.product(effects[term.label])
            for term, part in zip(self.terms, self.effects, strict=True)
        }
        if earlier is not None:
            past = earlier.product(effects)
            total = add_tables(total, past)
        for rows, part in zip(self.chunks, residuals, strict=True):
            values = part.precision_product(self.fitted(effects, rows, by_fold))
            total = add_tables(total, self.scores(values, rows, by_fold))
        return total


def _table(effects: LevelEffects, by_fold: bool) -> EffectsTable:
    return effects.folds if by_fold else effects.table


def _combine(one: Tables, other: Tables, step: Callable[..., tf.Tensor]) -> Tables:
    return {name: step(one[name], other[name]) for name in one}


def _inner(one: Tables, other: Tables) -> tf.Tensor:
    """Inner product by feature, `(p,)`."""
    products = [one[name] * other[name] for name in one]
    return tf.add_n([tf.reduce_sum(p, axis=tuple(range(len(p.shape) - 1))) for p in products])


def _conjugate_gradients(
    multiply: Callable[[Tables], Tables],
    precondition: Callable[[Tables], Tables],
    right_side: Tables,
    start: Tables,
    max_iterations: int,
    tolerance: float,
    is_tied: bool,
) -> Solution:
    """Preconditioned conjugate gradients, for every feature at once.

    Every feature is solved to the tolerance, also where one system ties all of them.
    """

    def together(products: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(products) if is_tied else products

    residual = _combine(right_side, multiply(start), tf.subtract)
    preconditioned = precondition(residual)
    height = _inner(residual, preconditioned)
    goal = tolerance**2 * _inner(right_side, precondition(right_side))

    def has_work(iteration: tf.Tensor, height: tf.Tensor, *_: Tables) -> tf.Tensor:
        return (iteration < max_iterations) & tf.reduce_any(height > goal)

    def iterate(
        iteration: tf.Tensor,
        height: tf.Tensor,
        effects: Tables,
        residual: Tables,
        direction: Tables,
    ) -> tuple[tf.Tensor, tf.Tensor, Tables, Tables, Tables]:
        image = multiply(direction)
        length = tf.math.divide_no_nan(together(height), together(_inner(direction, image)))
        effects = _combine(effects, direction, lambda a, b: a + length * b)
        residual = _combine(residual, image, lambda a, b: a - length * b)
        preconditioned = precondition(residual)
        new_height = _inner(residual, preconditioned)
        ratio = tf.math.divide_no_nan(together(new_height), together(height))
        direction = _combine(preconditioned, direction, lambda a, b: a + ratio * b)
        return iteration + 1, new_height, effects, residual, direction

    state = (tf.constant(0), height, dict(start), residual, preconditioned)
    iterations, height, effects, *_ = tf.while_loop(has_work, iterate, state)
    relative = tf.sqrt(tf.math.divide_no_nan(tf.maximum(height, 0.0), goal)) * tolerance
    return Solution(effects, iterations, tf.reduce_max(relative))
