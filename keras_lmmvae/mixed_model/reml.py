"""Variance components by restricted maximum likelihood (REML).

With `B` the solution of the mixed model equations with an intercept, and `T` the effective number
of parameters of a term (see `EffectiveParameters`), REML's equation for a feature's variance is

    effect_variance = sum over levels of B[l]' inv(Psi) B[l] / T

and without a latent that of the noise variance is

    noise_variance = values' (values - intercept - Z B) / (n - 1)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_lmmvae.mixed_model.effective_parameters import (
    EffectiveParameters,
    Probes,
    array,
    total,
)
from keras_lmmvae.mixed_model.equations import Equations, RowSums, Tables
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.mixed_model.prior import EFFECT_VARIANCE_FLOOR

__all__ = ["REML"]

_ROUNDS = 30
_SOLUTION_TOLERANCE = 1e-4
# Steps end when no estimate moves by more than this share of its standard error. With ten times as
# much, 10,000 x 5,000 sparse levels are left so far from the maximum that networks learn of it.
_SMALL_STEP = 0.01
# The prior variance of a term's part of a standardised feature, whose variance is 1, is kept below
# this. Above it, effects have been taken for what they cannot be.
_LARGEST_PRIOR_SHARE = 2.0
# In one step a variance changes by this factor at most, and a step is lengthened by so much.
_LARGEST_CHANGE = 4.0
_LARGEST_STRETCH = 20.0
# Eigenvalues of a learned Psi are kept above this share of the largest.
_COVARIANCE_FLOOR = 1e-4


class _Moments(NamedTuple):
    """Squares of the effects of a term, over their prior variance.

    Attributes:
        found: `B' W B / effect_variance` summed over levels, float array `(p,)`.
        expected: What it is if the variance is right, float array `(p,)`.
        found_covariance: `B B' / effect_variance` summed over levels and features, `(m, m)`; `None`
            where `Psi` is given.
        expected_covariance: What it is if `Psi` is right.
    """

    found: np.ndarray
    expected: np.ndarray
    found_covariance: np.ndarray | None = None
    expected_covariance: np.ndarray | None = None


class REML:
    """Steps towards the REML estimates of the variances of all terms.

    A step is Newton's on the log scale for every variance by itself (Schall's fixed point,
    lengthened). The random signs are the same in all steps, so that the steps converge.

    Args:
        equations: The equations, with an intercept.
        seed: Seed of the random signs.

    References:
        - Patterson & Thompson (1971), Recovery of inter-block information.
        - Harville, D. A. (1977), Maximum likelihood approaches to variance component estimation.
        - Schall, R. (1991), Estimation in generalized linear models with random effects.
        - Hutchinson, M. F. (1990), A stochastic estimator of the trace of the influence matrix.
    """

    def __init__(self, equations: Equations, seed: int) -> None:
        self.equations = equations
        self.probes = Probes(equations, seed)
        self._effects = equations.zeros()
        # By term: the last steps and the share of a step that is made, `(p,)` each.
        self._last = [np.zeros(1)] * len(equations.terms)
        self._damping = [np.ones(1)] * len(equations.terms)

    def fit(
        self,
        sums: RowSums,
        noise_variance: np.ndarray,
        noise_floor: float | None,
    ) -> np.ndarray:
        """Sets the priors of all terms, for rows without a latent.

        Args:
            sums: Sums over the rows.
            noise_variance: Float array `(p,)` to start from.
            noise_floor: The smallest noise variance; `None`: it is given.

        Returns:
            The noise variance, float array `(p,)`.
        """
        noise = array(noise_variance)
        freedom = np.maximum(sums.cells - 1.0, 1.0)
        for _ in range(_ROUNDS):
            self.equations.set_noise_variance(tf.constant(noise, tf.float32))
            scale = tf.constant(1.0 / noise, tf.float32)
            scores = {name: table * scale for name, table in sums.scores.items()}
            effects = self._effects = self.probes.solve(scores)
            before = noise
            if noise_floor is not None:
                explained = sum(total(effects[name] * sums.scores[name]) for name in effects)
                noise = np.maximum((sums.squares - explained) / freedom, noise_floor)
            change = self._move(noise / before, None if noise_floor is None else freedom)
            if change < _SMALL_STEP:
                break
        return noise

    def steps(self, right_side: Tables, rounds: int) -> None:
        """So many steps, the covariance of the rows as it is.

        What is not known of one term because of the others is found once.
        """
        self.probes.solve()
        for _ in range(rounds):
            self._effects = self.equations.solution(
                False, right_side, self._effects, tolerance=_SOLUTION_TOLERANCE
            ).effects
            if self._move() < _SMALL_STEP:
                break

    def _move(
        self, noise_change: np.ndarray | float = 1.0, freedom: np.ndarray | None = None
    ) -> float:
        """Makes a step.

        Args:
            noise_change: The factors by which the noise variance changes, `(p,)`. The equations'
                solution depends on the variances over the noise's only, which are what moves.
            freedom: Degrees of freedom of a noise variance that is learned, `(p,)`.

        Returns:
            The largest change of a variance or of an entry of `Psi`, over its standard error.
        """
        largest = 0.0
        terms, found = self.equations.terms, self.probes.effective_parameters()
        pairs = zip(terms, self.equations.effects, found, strict=True)
        for number, (term, effects, parameters) in enumerate(pairs):
            moment = self._moments(term.label, effects, parameters)
            variance = array(effects.effect_variance)
            curvature = _curvature(parameters, freedom)
            step = self._damped(number, _log_step(moment, parameters, noise_change, curvature))
            moved = variance * np.exp(step)
            highest = _LARGEST_PRIOR_SHARE / effects.mean_prior_share()
            moved = np.clip(moved * noise_change, EFFECT_VARIANCE_FLOOR, highest)
            changes = np.abs(np.log(moved / noise_change / variance)) * np.sqrt(0.5 * curvature)
            largest = max(largest, float(changes.max()))
            before = array(effects.coefficient_covariance)
            covariance = _moved_covariance(moment, before)
            if covariance is not None:
                change = np.abs(covariance - before).max() * np.sqrt(0.5 * curvature.sum())
                largest = max(largest, float(change))
            effects.set_prior(moved, covariance)
        return largest

    def _damped(self, number: int, step: np.ndarray) -> np.ndarray:
        """A term's step, halved as often as it has turned back: so it does not go to and fro."""
        has_turned = step * self._last[number] < 0.0
        self._damping[number] = np.where(has_turned, 0.5, 1.0) * self._damping[number]
        self._last[number] = step
        return np.asarray(step * self._damping[number])

    def _moments(
        self, label: str, effects: LevelEffects, parameters: EffectiveParameters
    ) -> _Moments:
        solved, prior = self._effects[label], effects.prior
        if not effects.learn_coefficient_covariance:
            return _Moments(total(solved * prior.product(solved)), parameters.count)
        scale = tf.math.rsqrt(effects.effect_variance.value)
        found = tf.einsum("laf,lcf->fac", solved * scale, solved * scale)
        information, rotation = effects.information, effects.table.rotation.value
        kept = information.of_features(effects.table.kept(information))
        own = tf.einsum("lik,lkf,ljk->fij", rotation, kept, rotation)
        expected = array(own) - self.probes.further_covariance(label)
        metric = _metric(array(effects.coefficient_covariance))
        return _Moments(
            np.einsum("fac,ac->f", array(found), metric),
            np.einsum("fac,ac->f", expected, metric),
            array(found).sum(axis=0),
            expected.sum(axis=0),
        )


def _curvature(parameters: EffectiveParameters, freedom: np.ndarray | None) -> np.ndarray:
    """2 over the variance of the logarithm of a variance over the noise's, `(p,)`."""
    curvature = parameters.squares * parameters.share**2
    if freedom is not None:
        curvature = curvature - parameters.count**2 / freedom
    return np.asarray(np.maximum(curvature, 1e-30))


def _log_step(
    moments: _Moments,
    parameters: EffectiveParameters,
    noise_change: np.ndarray | float,
    curvature: np.ndarray,
) -> np.ndarray:
    """The step of the logarithm of a variance over the noise's, `(p,)`."""
    expected = np.maximum(moments.expected, 1e-30)
    stretch = parameters.count / curvature
    step = np.log(np.maximum(moments.found / noise_change, 1e-30) / expected)
    bound = np.log(_LARGEST_CHANGE)
    return np.clip(np.clip(stretch, 1.0, _LARGEST_STRETCH) * step, -bound, bound)


def _metric(covariance: np.ndarray) -> np.ndarray:
    """`inv(Psi)` in the directions whose variance is not at its floor, 0 in the others."""
    values, vectors = np.linalg.eigh(covariance)
    inverse = np.where(values > 2.0 * _COVARIANCE_FLOOR * values[-1], 1.0 / values, 0.0)
    return (vectors * inverse) @ vectors.T


def _moved_covariance(moments: _Moments, before: np.ndarray) -> np.ndarray | None:
    """`Psi` with trace `m`, moved so that what is expected becomes what was found."""
    found, expected = moments.found_covariance, moments.expected_covariance
    if found is None or expected is None:
        return None
    root = _root(found) @ np.linalg.inv(_root(expected))
    moved = root @ before @ root.T
    values, vectors = np.linalg.eigh(0.5 * (moved + moved.T))
    values = np.maximum(values, _COVARIANCE_FLOOR * values[-1])
    moved = (vectors * values) @ vectors.T
    return np.asarray(moved * (len(moved) / np.trace(moved)))


def _root(covariance: np.ndarray) -> np.ndarray:
    """Cholesky root of a covariance, made positive definite."""
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 1e-9 * max(values[-1], 1e-30))
    return np.linalg.cholesky((vectors * values) @ vectors.T)
