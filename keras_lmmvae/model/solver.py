"""Exact joint solution of the mixed model equations of all terms, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from keras_lmmvae import design
from keras_lmmvae.effects.random_effect import Encoded, RandomEffect

__all__ = ["DesignRows", "Effects", "History", "Solution", "fitted_values", "scores", "solve"]

Effects = dict[str, tf.Tensor]
"""Term name -> table of effects `(levels, m, p)`."""


@dataclass(frozen=True)
class DesignRows:
    """What the equations need of some rows: everything but their values.

    Attributes:
        encoded: Term name -> codes and inputs.
        fold: Int tensor `(b,)`.
        cell_weights: Float tensor `(b, p)` or `(b, 1)`: row weight, 0 for missing cells; or `None`.
        row_weights: Float tensor `(b,)`: row weight times its share of observed cells; or `None`.
    """

    encoded: dict[str, Encoded]
    fold: tf.Tensor
    cell_weights: tf.Tensor | None
    row_weights: tf.Tensor | None

    def codes(self, term: RandomEffect, folds: bool) -> tf.Tensor:
        """Codes into the tables of the rows' own folds, or into the common table."""
        codes = self.encoded[term.label]["codes"]
        return term.posterior.own_codes(codes, self.fold) if folds else codes


class History(NamedTuple):
    """Equations of earlier rows, of which only sufficient statistics are left.

    Attributes:
        grams: Term name -> Gram matrices `(levels, m, m)`.
        scores: Term name -> right sides `(levels, m, p)`, over the noise variance.
    """

    grams: Effects
    scores: Effects


class Solution(NamedTuple):
    """Effects, the iterations that were made and the largest remaining relative residual."""

    effects: Effects
    iterations: tf.Tensor
    residual: tf.Tensor


def fitted_values(
    effects: Effects, terms: Sequence[RandomEffect], rows: DesignRows, folds: bool
) -> tf.Tensor:
    """`sum_k Z_k B_k` of some rows, `(b, p)`."""
    return tf.add_n([
        design.product(
            effects[term.label], rows.codes(term, folds), term.basis_of(rows.encoded[term.label])
        )
        for term in terms
    ])  # fmt: skip


def scores(
    values: tf.Tensor, terms: Sequence[RandomEffect], rows: DesignRows, folds: bool
) -> Effects:
    """`Z_k' values` for every term, `(levels, m, p)` each."""
    if rows.cell_weights is not None:
        values = values * rows.cell_weights
    tables = 2 if folds else 1
    return {
        term.label: design.transpose_product(
            values,
            rows.codes(term, folds),
            term.basis_of(rows.encoded[term.label]),
            tables * term.num_levels,
        )
        for term in terms
    }


def _combine(one: Effects, other: Effects, step: Callable[..., tf.Tensor]) -> Effects:
    return {name: step(one[name], other[name]) for name in one}


def _inner(one: Effects, other: Effects) -> tf.Tensor:
    """Inner product by feature, `(p,)`."""
    return tf.add_n([tf.reduce_sum(one[name] * other[name], axis=(0, 1)) for name in one])


def solve(
    terms: Sequence[RandomEffect],
    chunks: Sequence[DesignRows],
    right_side: Effects,
    noise_variance: tf.Tensor,
    start: Effects,
    *,
    folds: bool,
    history: History | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-5,
) -> Solution:
    """Solves Henderson's equations for all terms and features at once.

        (Z'Z / noise_variance + inv(prior covariance)) B = Z' r / noise_variance

    with Z all terms side by side. Preconditioned by the inverse blocks of the levels, so
    that one term alone is solved in one iteration. O(rows * features * terms) each. Runs in
    a graph: eagerly the many small operations would cost more than the arithmetic.

    Args:
        terms: The terms, with their Gram matrices set.
        chunks: Design rows of all data.
        right_side: `Z' r / noise_variance` of every term.
        noise_variance: Float tensor `(p,)`.
        start: First guess of the effects.
        folds: Whether to solve the two folds' tables, apart, instead of the common one.
        history: Equations of earlier rows; theirs of different terms are taken as unrelated.
        max_iterations: Most iterations.
        tolerance: Of the residual against the right side, in the preconditioner's norm.
    """

    def multiply(effects: Effects) -> Effects:
        total = {t.label: t.posterior.prior_product(effects[t.label]) for t in terms}
        if history is not None:
            past = {name: tf.matmul(history.grams[name], effects[name]) for name in effects}
            total = {name: total[name] + past[name] / noise_variance for name in effects}
        for rows in chunks:
            values = fitted_values(effects, terms, rows, folds) / noise_variance
            total = _combine(total, scores(values, terms, rows, folds), tf.add)
        return total

    def precondition(residual: Effects) -> Effects:
        return {
            t.label: t.posterior.apply_inverse(residual[t.label], noise_variance, folds)
            for t in terms
        }

    residual = _combine(right_side, multiply(start), tf.subtract)
    preconditioned = precondition(residual)
    height = _inner(residual, preconditioned)
    goal = tolerance**2 * _inner(right_side, precondition(right_side))

    def has_work(iteration: tf.Tensor, height: tf.Tensor, *_: Effects) -> tf.Tensor:
        return (iteration < max_iterations) & tf.reduce_any(height > goal)

    def iterate(
        iteration: tf.Tensor,
        height: tf.Tensor,
        effects: Effects,
        residual: Effects,
        direction: Effects,
    ) -> tuple[tf.Tensor, tf.Tensor, Effects, Effects, Effects]:
        image = multiply(direction)
        length = tf.math.divide_no_nan(height, _inner(direction, image))
        effects = _combine(effects, direction, lambda a, b: a + length * b)
        residual = _combine(residual, image, lambda a, b: a - length * b)
        preconditioned = precondition(residual)
        new_height = _inner(residual, preconditioned)
        ratio = tf.math.divide_no_nan(new_height, height)
        direction = _combine(preconditioned, direction, lambda a, b: a + ratio * b)
        return iteration + 1, new_height, effects, residual, direction

    state = (tf.constant(0), height, dict(start), residual, preconditioned)
    iterations, height, effects, *_ = tf.while_loop(has_work, iterate, state)
    relative = tf.sqrt(tf.math.divide_no_nan(height, goal)) * tolerance
    return Solution(effects, iterations, tf.reduce_max(relative))
