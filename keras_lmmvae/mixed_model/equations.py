"""Henderson's mixed model equations of all rows and terms, solved by conjugate gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

__all__ = [
    "INTERCEPT",
    "DesignRows",
    "EarlierRows",
    "Equations",
    "RowSums",
    "Solution",
    "Tables",
    "add_tables",
]

INTERCEPT = "(Intercept)"
"""The name that the features' means have among the tables of effects."""

Tables = dict[str, tf.Tensor]
"""Term name -> table of effects `(levels, m, p)`, or `(folds, levels, m, p)`. The intercept has one
level and `m = 1`."""

# Iterations and tolerance of the folds' equations while the networks still move, and of the last
# solution.
_FOLD_ITERATIONS, _FOLD_TOLERANCE = 40, 1e-3
_FINAL_ITERATIONS, _FINAL_TOLERANCE = 300, 2e-6
# What the levels leave of the intercept's pivot is at least this share of it.
_SMALLEST_PIVOT = 1e-6
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


class RowSums(NamedTuple):
    """Sums over rows without a latent.

    Attributes:
        scores: `Z' values` of every term and of the intercept.
        squares: Float array `(p,)`, sums of the squared values.
        cells: Float array `(p,)`, numbers of cells.
    """

    scores: Tables
    squares: np.ndarray
    cells: np.ndarray


class Solution(NamedTuple):
    """Effects, the iterations that were made and the largest remaining relative residual."""

    effects: Tables
    iterations: int
    residual: float


class _Search(NamedTuple):
    """Where the conjugate gradients are: every feature is solved to the tolerance.

    Attributes:
        effects: What was found so far.
        residual: What it leaves of the right side.
        direction: Where the next step goes.
        height: The residual in the norm of the inverse blocks, squared, by feature, `(p,)`.
    """

    effects: Tables
    residual: Tables
    direction: Tables
    height: tf.Tensor


def add_tables(total: Tables, part: Tables) -> Tables:
    """The sum of two sets of tables; an empty one counts as 0."""
    return {name: total[name] + part[name] for name in part} if total else part


class Equations:
    """Henderson's equations of some terms over some rows.

        (Z' inv(Omega) Z + inv(prior covariance)) B = Z' inv(Omega) values

    with Z all terms side by side, and Omega the covariance of what the effects leave over: the
    latent and the noise (see `Residuals`). With `by_fold` there are two such systems, of the rows
    of each fold by themselves.

    With an intercept, Z has a column of ones in front whose effect has no prior: a fixed effect,
    estimated by generalised least squares.

    Args:
        terms: The terms.
        effects: Their effects, which hold designs, variances and tables.
        rows: The rows.
        has_intercept: Whether there is an intercept.
    """

    def __init__(
        self,
        terms: Sequence[RandomEffect],
        effects: Sequence[LevelEffects],
        rows: Pass,
        has_intercept: bool = False,
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
        self.has_intercept = has_intercept
        self.residuals: list[Residuals] = []
        # Mean precision of a row, `(p, p)`, or its diagonal `(p,)` if it has nothing else.
        self.precision = np.ones(effects[0].num_features)
        self._copies: tuple[int, Equations] | None = None
        self._cells = {by_fold: self._count_cells(by_fold) for by_fold in (True, False)}
        self._steps = {by_fold: self._stepper(by_fold) for by_fold in (True, False)}

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
        right_side = self.right_side(by_fold, targets_of, noise_variance, earlier)
        tables = {
            term.label: _table(effects, by_fold).effects
            for term, effects in zip(self.terms, self.effects, strict=True)
        }
        start = {label: tf.convert_to_tensor(table) for label, table in tables.items()}
        start = self.zeros(by_fold) | start
        solution = self.solution(by_fold, right_side, start, earlier)
        for label, table in tables.items():
            table.assign(solution.effects[label])
        return solution

    def right_side(
        self,
        by_fold: bool,
        targets_of: Callable[[Rows], Targets],
        noise_variance: tf.Tensor,
        earlier: EarlierRows | None = None,
    ) -> Tables:
        """`Z' inv(Omega) values`; the equations take on these `Omega`."""
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
        self._take_precision()
        return right_side

    def copies(self, count: int) -> Equations:
        """The equations of all rows for so many copies of the features, side by side.

        One solution of them has as many right sides. The features are independent: a row has the
        diagonal of its mean precision. The copies have the priors of now.
        """
        if self._copies is None or self._copies[0] != count:
            self._copies = (count, self._copied(count))
        copies = self._copies[1]
        for part, copied in zip(self.effects, copies.effects, strict=True):
            covariance = None
            if part.learn_coefficient_covariance:
                covariance = part.coefficient_covariance.value
            copied.set_prior(np.tile(np.asarray(part.effect_variance), count), covariance)
        copies.set_noise_variance(tf.tile(self._noise_of_copies(), (count,)))
        return copies

    def information_of_copies(self, effects: LevelEffects) -> Information:
        """What a row tells of a term's effects in the equations of copies."""
        return Information.given_latent(effects.prior, self._noise_of_copies())

    def _noise_of_copies(self) -> tf.Tensor:
        """One over the diagonal of the mean precision of a row, `(p,)`."""
        precision = self.precision if self.precision.ndim == 1 else np.diag(self.precision)
        return tf.constant(1.0 / precision, tf.float32)

    def _copied(self, count: int) -> Equations:
        """The equations of so many copies of the features."""
        copied = copy.copy(self)
        copied.effects = [part.copied(count) for part in self.effects]
        copied.chunks = [
            replace(rows, cell_weights=tf.tile(rows.cell_weights, (1, count)))
            if rows.cell_weights is not None and rows.cell_weights.shape[1] > 1
            else rows
            for rows in self.chunks
        ]
        copied._cells = {False: tf.tile(self._cells[False], (1, 1, count))}
        copied._steps = {False: copied._stepper(False)}
        return copied

    def level_sums(self, by_fold: bool = False) -> Tables:
        """`Z' 1` of every term and of the intercept: sums over the observed cells."""
        found: Tables = {}
        for rows in self.chunks:
            ones = tf.ones((tf.shape(rows.fold)[0], self.effects[0].num_features))
            found = add_tables(found, self.scores(ones, rows, by_fold))
        return found

    def row_sums(self, values_of: Callable[[Rows], tf.Tensor]) -> RowSums:
        """Sums over all rows of what the effects are to explain of them."""
        width = self.effects[0].num_features
        squares, cells = np.zeros(width), np.zeros(width)

        def targets_of(batch: Rows) -> Targets:
            nonlocal squares, cells
            values, weights = values_of(batch), cell_weights(batch)
            weights = tf.ones_like(values) if weights is None else weights * tf.ones_like(values)
            squares += tf.reduce_sum(weights * tf.square(values), axis=0).numpy()
            cells += tf.reduce_sum(weights, axis=0).numpy()
            return Targets(values)

        scores = self.right_side(False, targets_of, tf.ones(width))
        return RowSums(scores, squares, cells)

    def set_noise_variance(self, noise_variance: tf.Tensor) -> None:
        """Takes on `Omega = diag(noise_variance)`, that of rows without a latent."""
        self.residuals = [Residuals(noise_variance)] * len(self.chunks)
        self._take_precision()

    def _take_precision(self) -> None:
        """Tells the terms what a row tells of their effects."""
        self.precision = self._mean_precision()
        for effects in self.effects:
            effects.set_information(self.precision)

    def zeros(self, by_fold: bool = False) -> Tables:
        """Tables that are 0."""
        found = {
            term.label: tf.zeros_like(_table(effects, by_fold).effects)
            for term, effects in zip(self.terms, self.effects, strict=True)
        }
        if self.has_intercept:
            folds = (design.NUM_FOLDS,) if by_fold else ()
            found[INTERCEPT] = tf.zeros((*folds, 1, 1, self.effects[0].num_features))
        return found

    def _mean_precision(self) -> np.ndarray:
        """The mean of the rows' `inv(Omega)`, float64 `(p, p)`; `(p,)` if that is diagonal."""
        precision = 1.0 / np.asarray(self.residuals[0].noise_variance, np.float64)
        if not self.has_latent:
            return precision
        lost, count = np.zeros((len(precision),) * 2), 0.0
        for rows, residuals in zip(self.chunks, self.residuals, strict=True):
            part, weight = residuals.lost_precision(rows.row_weights)
            lost += part.numpy()
            count += float(weight)
        return np.diag(precision) - lost / max(count, 1e-6) if lost.any() else precision

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
        tolerance: float | None = None,
    ) -> Solution:
        """The solution for given right sides, which is not assigned.

        Preconditioned by the inverse blocks of the levels, which are the whole inverse where one
        factor stands alone; each iteration costs O(rows * features * (terms + latent_dim)).
        """
        if self.has_one_block and not self.has_latent:
            return Solution(self._solution_of_one_block(by_fold, right_side), 0, 0.0)
        if tolerance is None:
            tolerance = _FOLD_TOLERANCE if by_fold else _FINAL_TOLERANCE
        goal = tolerance**2 * _inner(right_side, self._precondition(right_side, by_fold))
        # The first step goes from 0 to the start.
        zeros = {label: tf.zeros_like(table) for label, table in start.items()}
        state, iterations = _Search(zeros, right_side, start, tf.ones_like(goal)), -1
        most = _FOLD_ITERATIONS if by_fold else _FINAL_ITERATIONS
        while iterations < 0 or (iterations < most and bool(tf.reduce_any(state.height > goal))):
            is_first = tf.constant(iterations < 0)
            state = self._steps[by_fold](state, is_first, self.residuals, earlier)
            iterations += 1
        left = tf.math.divide_no_nan(tf.maximum(state.height, 0.0), goal)
        relative = tf.reduce_max(tf.sqrt(left)) * tolerance
        return Solution(state.effects, iterations, float(relative))

    @property
    def has_one_block(self) -> bool:
        """Whether there is one term whose levels have Gram matrices that hold for all features."""
        is_exact = self.effects[0].basis_size == 1 or not self.has_missing_cells
        return len(self.terms) == 1 and is_exact

    def _solution_of_one_block(self, by_fold: bool, right_side: Tables) -> Tables:
        """The solution for one term without a latent, by elimination of its levels."""
        label, part = self.terms[0].label, self.effects[0]
        table, information = _table(part, by_fold), part.information
        solved = table.solve(right_side[label], information)
        if not self.has_intercept:
            return {label: solved}
        # `Z' inv(Omega) 1`.
        ones = {
            name: sums / self.residuals[0].noise_variance
            for name, sums in self.level_sums(by_fold).items()
        }
        shared = table.solve(ones[label], information)

        def left_of(sums: Tables, solved: tf.Tensor) -> tf.Tensor:
            """What the levels leave of sums over all rows, `(folds, 1, 1, p)` or `(1, 1, p)`."""
            if part.basis_size > 1:
                return sums[INTERCEPT] - _level_sum(ones[label] * solved)
            # The same without a difference of large numbers, which small noise would make of it.
            without = sums[INTERCEPT] - _level_sum(sums[label])
            without = tf.where(has_rows_without, without, tf.zeros_like(without))
            return without + _level_sum(sums[label] * table.left(information))

        rows_without = ones[INTERCEPT] - _level_sum(ones[label])
        has_rows_without = rows_without > _SMALLEST_PIVOT * ones[INTERCEPT]
        pivot = tf.maximum(left_of(ones, shared), 0.0)
        if part.basis_size > 1:
            pivot = tf.maximum(pivot, _SMALLEST_PIVOT * ones[INTERCEPT])
        intercept = tf.math.divide_no_nan(left_of(right_side, solved), pivot)
        return {label: solved - shared * intercept, INTERCEPT: intercept}

    def fitted(self, effects: Tables, rows: DesignRows, by_fold: bool) -> tf.Tensor:
        """`sum_k Z_k B_k` of some rows, `(b, p)`, with the intercept."""
        fold = rows.fold if by_fold else None
        parts = []
        if self.has_intercept:
            parts.append(design.product(effects[INTERCEPT], tf.zeros_like(rows.fold), None, fold))
        for term in self.terms:
            encoded = rows.encoded[term.label]
            basis = term.basis_of(encoded)
            parts.append(design.product(effects[term.label], encoded["codes"], basis, fold))
        return tf.add_n(parts)

    def scores(self, values: tf.Tensor, rows: DesignRows, by_fold: bool) -> Tables:
        """`Z_k' values` of every term, and the sums of the intercept."""
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
        if self.has_intercept:
            zeros = tf.zeros_like(rows.fold)
            found[INTERCEPT] = design.transpose_product(values, zeros, None, 1, fold)
        return found

    def _stepper(self, by_fold: bool) -> Callable[..., _Search]:
        """A step of the solver as a graph: eagerly its many operations would cost more than sums.

        The loop itself is not part of it. A graph with a loop takes three times as long to make,
        longer than all solutions of a small table.
        """

        def step(
            state: _Search,
            is_first: tf.Tensor,
            residuals: list[Residuals],
            earlier: EarlierRows | None,
        ) -> _Search:
            image = self._product(state.direction, residuals, by_fold, earlier)

            # The latent ties the features together: then they take steps of one length.
            def together(products: tf.Tensor) -> tf.Tensor:
                return products if residuals[0].factors is None else tf.reduce_sum(products)

            length = tf.math.divide_no_nan(
                together(state.height), together(_inner(state.direction, image))
            )
            length = tf.where(is_first, tf.ones_like(length), length)
            effects = _combine(state.effects, state.direction, lambda a, b: a + length * b)
            residual = _combine(state.residual, image, lambda a, b: a - length * b)
            preconditioned = self._precondition(residual, by_fold)
            height = _inner(residual, preconditioned)
            ratio = tf.math.divide_no_nan(together(height), together(state.height))
            ratio = tf.where(is_first, tf.zeros_like(ratio), ratio)
            direction = _combine(preconditioned, state.direction, lambda a, b: a + ratio * b)
            return _Search(effects, residual, direction, height)

        return tf.function(step, autograph=False)

    def _precondition(self, residual: Tables, by_fold: bool) -> Tables:
        """The residual times the inverse blocks of the levels and of the intercept."""
        found = {
            term.label: _table(effects, by_fold).solve(residual[term.label], effects.information)
            for term, effects in zip(self.terms, self.effects, strict=True)
        }
        if self.has_intercept:
            information = self.effects[0].information
            root = tf.math.rsqrt(self._cells[by_fold])
            along = information.to_axes(residual[INTERCEPT] * root) / information.signal
            found[INTERCEPT] = information.from_axes(along) * root
            self._shift(found, residual)
        return found

    def _shift(self, found: Tables, residual: Tables) -> None:
        """Adds the solution along shifts of all levels of a term against the intercept.

        The rows say nothing of such a shift, only the prior does. Without this the solver would
        need many iterations for it where the noise is small.
        """
        for term, effects in zip(self.terms, self.effects, strict=True):
            if effects.basis_size == 1:
                along = tf.reduce_sum(residual[term.label], axis=-3, keepdims=True)
                shift = (along - residual[INTERCEPT]) * effects.effect_variance
                shift = shift * effects.coefficient_covariance[0, 0] / effects.num_levels
                found[term.label] += shift
                found[INTERCEPT] -= shift

    def _count_cells(self, by_fold: bool) -> tf.Tensor:
        """Numbers of cells, at least 1, of every feature, `(folds, 1, 1, p)` or `(1, 1, p)`."""
        folds = (design.NUM_FOLDS,) if by_fold else ()
        total = tf.zeros((*folds, 1, 1, self.effects[0].num_features))
        for rows in self.chunks:
            fold = rows.fold if by_fold else None
            cells = tf.ones((tf.shape(rows.fold)[0], total.shape[-1]))
            cells = cells if rows.cell_weights is None else cells * rows.cell_weights
            total += design.transpose_product(cells, tf.zeros_like(rows.fold), None, 1, fold)
        return tf.maximum(total, 1.0)

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
        if self.has_intercept:
            total[INTERCEPT] = tf.zeros_like(effects[INTERCEPT])
        for rows, part in zip(self.chunks, residuals, strict=True):
            values = part.precision_product(self.fitted(effects, rows, by_fold))
            total = add_tables(total, self.scores(values, rows, by_fold))
        return total


def _level_sum(table: tf.Tensor) -> tf.Tensor:
    """Sum over levels and coefficients, `(folds, 1, 1, p)` or `(1, 1, p)`."""
    return tf.reduce_sum(table, axis=(-3, -2), keepdims=True)


def _table(effects: LevelEffects, by_fold: bool) -> EffectsTable:
    return effects.folds if by_fold else effects.table


def _combine(one: Tables, other: Tables, step: Callable[..., tf.Tensor]) -> Tables:
    return {name: step(one[name], other[name]) for name in one}


def _inner(one: Tables, other: Tables) -> tf.Tensor:
    """Inner product by feature, `(p,)`."""
    products = [one[name] * other[name] for name in one]
    return tf.add_n([tf.reduce_sum(p, axis=tuple(range(len(p.shape) - 1))) for p in products])
