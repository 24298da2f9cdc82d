"""How many parameters the effects of a term amount to, for terms that share rows.

The equations' solution shrinks the `q = levels * m` effects of a term. What is left is its
effective number of parameters for a feature,

    T = q - tr(inv(Psi) C) / effect_variance

with `C` the term's block in the inverse of the equations' matrix, the covariance of the error of
the effects. With all other terms and the intercept known, `C` has only the levels' own blocks,
and the trace has a closed form. What is not known adds to `C`. The trace of that is estimated with
random signs `z`: `E[z' C z] = tr(C)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.mixed_model.equations import INTERCEPT, Equations, Tables
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.level_effects import LevelEffects

__all__ = ["EffectiveParameters", "Probes", "array", "total"]

# Features and draws of signs together that a trace is estimated from.
_PROBES = 96
# A regression has so many points for every coefficient, or it is a mean.
_POINTS_PER_COEFFICIENT = 8
# With less than this share of its expectation left, a term cannot be told from the others.
_SMALLEST_SHARE = 0.02
_TOLERANCE = 1e-4
# What the levels leave of the intercept's pivot is at least this share of it.
_SMALLEST_PIVOT = 1e-6
# Entries of the tables of all draws together, at most.
_LARGEST_TABLES = 5_000_000
# Products of bases with effects of all draws together, at most, in one iteration of the solver.
_LARGEST_PRODUCTS = 100_000_000


@dataclass(frozen=True)
class EffectiveParameters:
    """The effective parameters of one term, float arrays `(p,)`.

    Attributes:
        count: Their number.
        alone: Their number with all else known.
        squares: The sum of the squares of the parts of `alone`.
        effects: The number of effects, `q`.
    """

    count: np.ndarray
    alone: np.ndarray
    squares: np.ndarray
    effects: float

    @property
    def share(self) -> np.ndarray:
        """Share of them that is left because all else is not known, in (0, 1]."""
        return self.count / np.maximum(self.alone, 1e-30)

    @property
    def variance_ratio(self) -> np.ndarray:
        """Variance of the effects with all else unknown too, over that with all else known."""
        return (self.effects - self.count) / np.maximum(self.effects - self.alone, 1e-30)


class Probes:
    """What is not known of a term's effects because of the other terms and the intercept.

    For one term that is a matrix of rank one, in closed form. For several, random signs tell it.
    They are solved for at once, as values of copies of the features. With a latent, the equations
    of the copies have the diagonal of the mean precision of a row: then they fall apart into
    features.

    Args:
        equations: The equations, with an intercept.
        seed: Seed of the signs.
    """

    def __init__(self, equations: Equations, seed: int) -> None:
        self.equations, self.seed = equations, seed
        self.draws = 0 if equations.has_one_block else _number_of_draws(equations)
        # The first copy of the features has the values, the others have signs.
        self._signs = self._random_signs() if self.draws else {}
        self._solved: Tables | None = None
        self._lost: dict[str, np.ndarray] = {}
        self._lost_covariance: dict[str, np.ndarray] = {}
        self._shares: list[np.ndarray] = []

    def solve(self, right_side: Tables | None = None) -> Tables:
        """Solves the equations for the signs and for values without a latent.

        Returns:
            The solution for the values, whose right side is given.
        """
        found = self.equations.zeros()
        if self.draws:
            copies = self.equations.copies(1 + self.draws)
            sides = _side_by_side(found if right_side is None else right_side, self._signs)
            start = copies.zeros() if self._solved is None else self._solved
            self._solved = copies.solution(False, sides, start, tolerance=_TOLERANCE).effects
            self._take_all(copies, sides, self._solved)
            found = {name: table[..., : self._width] for name, table in self._solved.items()}
        else:
            self._take_intercept()
            if right_side is not None:
                found = self.equations.solution(False, right_side, found).effects
        self._shares = self._found_shares()
        return found

    @property
    def _width(self) -> int:
        return self.equations.effects[0].num_features

    def _random_signs(self, only: int | None = None) -> Tables:
        """Random signs for every effect of every draw; 0 for the intercept.

        Args:
            only: Number of the term that has signs, the others having 0. They are multiplied by a
                root of `inv(Psi)`. By default all terms have plain signs.
        """
        found = {
            name: tf.zeros((*table.shape[:-1], self.draws * self._width))
            for name, table in self.equations.zeros().items()
        }
        pairs = zip(self.equations.terms, self.equations.effects, strict=True)
        for number, (term, part) in enumerate(pairs):
            if only is not None and only != number:
                continue
            seed, shape = (self.seed, number), found[term.label].shape
            bits = tf.random.stateless_uniform(shape, seed, 0, 2, tf.dtypes.int32)
            signs = 2.0 * tf.cast(bits, tf.float32) - 1.0
            if only is not None:
                root = tf.linalg.cholesky(part.prior.inverse_block())
                signs = tf.einsum("ij,ljf->lif", root, signs)
            found[term.label] = signs
        return found

    def _mean(self, by_copy: np.ndarray) -> np.ndarray:
        """Means over the draws of what is known of every copy's features, `(p, ...)`."""
        by_draw = by_copy.reshape(-1, self._width, *by_copy.shape[1:])
        return np.asarray(by_draw[1:].mean(axis=0))

    def _take_all(self, copies: Equations, signs: Tables, solved: Tables) -> None:
        """Takes what `C` has on top of the levels' own blocks, from solutions `C z`."""
        for term, effects in zip(copies.terms, copies.effects, strict=True):
            one, prior = signs[term.label], effects.prior
            other = solved[term.label] - effects.table.solve(one, effects.information)
            self._lost[term.label] = self._mean(total(one * prior.product(other)))
            if effects.learn_coefficient_covariance:
                outer = tf.einsum("laf,lcf->fac", one, other)
                outer = self._mean(array(outer / effects.effect_variance.value[:, None, None]))
                self._lost_covariance[term.label] = 0.5 * (outer + np.swapaxes(outer, 1, 2))

    def _take_intercept(self) -> None:
        """Takes what the intercept adds to `C`, for one term by itself."""
        (term,), (effects,) = self.equations.terms, self.equations.effects
        information, table = effects.information, effects.table
        sums = self.equations.level_sums()
        ones, count = (information.share_of_axes(sums[name]) for name in (term.label, INTERCEPT))
        if effects.basis_size > 1:
            ones = tf.matmul(table.rotation.value, ones, transpose_a=True)
        left = table.left(information) * information.signal
        explained = tf.reduce_sum(left * tf.square(ones), axis=(0, 1))
        pivot = tf.maximum(count[0, 0] - explained, _SMALLEST_PIVOT * count[0, 0])
        shared = left * ones * tf.math.sqrt(tf.math.divide_no_nan(1.0, pivot * information.signal))
        self._lost[term.label] = total(information.of_features(tf.square(shared)))
        if effects.learn_coefficient_covariance:
            shared = tf.matmul(table.rotation.value, shared)
            outer = information.of_features(tf.einsum("laf,lcf->acf", shared, shared))
            self._lost_covariance[term.label] = np.moveaxis(array(outer), -1, 0)

    def _found_shares(self) -> list[np.ndarray]:
        """Coefficients of the shares that are left because all else is not known.

        The share of one feature is noisy. It is a smooth function of what the terms' levels keep,
        so it is taken from a regression on that over all features. A term alone needs none.
        """
        found, regressors = [], self._regressors()
        for term, effects in zip(self.equations.terms, self.equations.effects, strict=True):
            information = effects.information
            if self.draws:
                information = self.equations.information_of_copies(effects)
            alone, _ = _alone(effects, information)
            share = 1.0 - self._lost[term.label] / np.maximum(alone, 1e-30)
            if self.draws:
                weight = alone / max(alone.max(), 1e-30)
                weighted = weight[:, None] * regressors
                share, *_ = np.linalg.lstsq(weighted, weight * share, rcond=None)
            found.append(share)
        return found

    def _regressors(self) -> np.ndarray:
        """Ones and centred means of what levels keep, `(p, 1 + K)`; `(p, 1)` for few points."""
        effects = self.equations.effects
        kept = np.stack([_alone(part, part.information)[0] / _size(part) for part in effects])
        centred = kept - kept.mean(axis=1, keepdims=True)
        design = np.vstack([np.ones(centred.shape[1]), centred]).T
        is_enough = len(design) * self.draws >= _POINTS_PER_COEFFICIENT * design.shape[1]
        return design if is_enough else design[:, :1]

    def effective_parameters(self) -> list[EffectiveParameters]:
        """Those of every term at the present variances."""
        found, regressors = [], self._regressors()
        for effects, share in zip(self.equations.effects, self._shares, strict=True):
            alone, squares = _alone(effects, effects.information)
            left = np.clip(regressors @ share if self.draws else share, _SMALLEST_SHARE, 1.0)
            found.append(EffectiveParameters(left * alone, alone, squares, _size(effects)))
        return found

    def further_covariance(self, label: str) -> np.ndarray:
        """What `C / effect_variance` has on top of the levels' own blocks, `(p, m, m)`.

        Summed over levels, and symmetric.
        """
        return self._lost_covariance[label]

    def information(self) -> np.ndarray:
        """REML's expected information of the logarithms of the terms' variances, `(p, K, K)`.

            information_kj = tr(P V_k P V_j) / 2,    V_k = effect_variance_k Z_k Psi Z_k'

        With `C_kj` the blocks of the inverse of the equations' matrix, its entries are squared
        norms: of `C_kj` for two terms, of what the effects keep for one.

        References:
            - Searle, Casella & McCulloch (1992), Variance components, section 6.6.
        """
        effects, labels = self.equations.effects, [term.label for term in self.equations.terms]
        found = np.zeros((effects[0].num_features, len(effects), len(effects)))
        for number, part in enumerate(self.effective_parameters()):
            found[:, number, number] = 0.5 * part.squares * part.share**2
            if len(effects) == 1:
                break
            copies = self.equations.copies(1 + self.draws)
            sides = _side_by_side(self.equations.zeros(), self._random_signs(number))
            solved = copies.solution(False, sides, copies.zeros(), tolerance=_TOLERANCE).effects
            for other, label in enumerate(labels):
                if other != number:
                    product = copies.effects[other].prior.product(solved[label])
                    norm = self._mean(total(solved[label] * product))
                    found[:, number, other] = 0.5 * norm / array(effects[number].effect_variance)
        return 0.5 * (found + np.swapaxes(found, 1, 2))


def _side_by_side(one: Tables, other: Tables) -> Tables:
    """Tables of further features beside those of some."""
    return {name: tf.concat([table, other[name]], axis=-1) for name, table in one.items()}


def _alone(effects: LevelEffects, information: Information) -> tuple[np.ndarray, np.ndarray]:
    """Effective parameters with all else known, and the sum of the squares of their parts."""
    kept = information.of_features(effects.table.kept(information))
    return total(kept), total(tf.square(kept))


def _size(effects: LevelEffects) -> float:
    """Number of effects of a term for every feature."""
    return float(effects.num_levels * effects.basis_size)


def _number_of_draws(equations: Equations) -> int:
    """Draws of signs: many where features are few, and fewer where data are large.

    The more rows and effects there are, the less do the variances' own errors and those of traces
    matter.
    """
    effects = equations.effects
    width = effects[0].num_features
    entries = width * sum(part.num_levels * part.basis_size for part in effects)
    rows = sum(int(chunk.fold.shape[0]) for chunk in equations.chunks)
    products = width * rows * sum(part.basis_size for part in effects)
    wanted = int(np.ceil(_PROBES / width))
    return max(1, min(wanted, _LARGEST_TABLES // entries, _LARGEST_PRODUCTS // products))


def total(table: tf.Tensor) -> np.ndarray:
    """Sum of a table by feature, float64 `(p,)`."""
    table = tf.cast(table, tf.float64)
    return array(tf.reduce_sum(table, axis=tuple(range(len(table.shape) - 1))))


def array(values: Any) -> np.ndarray:
    """Numbers as a float64 array."""
    return np.asarray(values, np.float64)
