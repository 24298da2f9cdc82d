"""How well a fit found the truth of a simulation: effects, latents, variances, intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.table import Problem
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.simulation import Simulation, take

__all__ = ["latent_correlation", "recovery"]

INTERVAL = 1.6448536  # half width of a 90 % interval, in standard deviations


def recovery(model: LMMVAE, problem: Problem) -> dict[str, float]:
    """Correlation of the effects with the truth, coverage of their intervals, variances.

    Effects are taken where the training rows are: each level of a factor once, a subject's curve
    at the times of its rows, a surface at its locations. An effect's mean over all rows cannot be
    told from the features' mean, so effects and truth are centred by feature first.

    Args:
        model: A fitted model.
        problem: A simulated table.

    Returns:
        A dict with, averaged over the terms, `effects_correlation`; `coverage`, the share of
        true effects in their 90 % intervals; and `variance_error`, the largest relative error of
        the terms' variances, averaged over the features. The amortized posterior has neither
        intervals nor learned variances. Terms without true effects are left out; no such term:
        an empty dict.
    """
    simulation = problem.source.simulation
    if simulation is None:
        return {}
    correlations, coverages, errors = [], [], []
    for term in model.random_effects:
        column = term.label if term.label in simulation.effects else "location"
        is_real = simulation.effect_variance[column].sum(axis=0) > 0.0  # (p,)
        if not is_real.any():
            continue
        rows = _distinct_rows(simulation, problem.train_rows, column)
        mean, deviation = model.term_effects(term.label, take(simulation.data, rows))
        error = _centred(mean) - _centred(simulation.contribution[column][rows])
        correlations.append(_correlation(mean, simulation.contribution[column][rows]))
        coverages.append((np.abs(error) <= INTERVAL * deviation)[:, is_real].mean())
        errors.append(_variance_error(model, term, simulation.effect_variance[column]))
    if not correlations:
        return {}
    found = {"effects_correlation": float(np.mean(correlations))}
    if model.posterior == "amortized":
        return found
    return found | {"coverage": float(np.mean(coverages)), "variance_error": max(errors)}


def latent_correlation(latent: np.ndarray, truth: np.ndarray) -> float:
    """Correlation of the true latents with their prediction from the estimated ones.

    A model determines its latents only up to an invertible transformation. So each true latent is
    predicted by the mean of the ten nearest neighbours in the estimated latents. Five-fold
    cross-validation keeps a row out of its own prediction.

    Args:
        latent: Float array `(n, d)`, estimated.
        truth: Float array `(n, d)`.

    Returns:
        Correlation of prediction and truth, mean over the `d` latents. It is 1 if nothing is lost.

    Example:
        >>> u = np.linspace(-2, 2, 400)[:, None]
        >>> latent_correlation(np.where(u < 0, u + 9, u), u) > 0.999
        True
    """
    model = make_pipeline(StandardScaler(), KNeighborsRegressor(10))
    folds = KFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(model, latent, truth, cv=folds).reshape(truth.shape)
    columns = zip(predicted.T, truth.T, strict=True)
    return float(np.mean([_correlation(one[:, None], other[:, None]) for one, other in columns]))


def _distinct_rows(simulation: Simulation, rows: np.ndarray, column: str) -> np.ndarray:
    """Training rows to compare effects at: one of each level, or all rows of a subject."""
    if column == "subject":
        return rows
    return rows[np.unique(simulation.data[column][rows], return_index=True)[1]]


def _variance_error(model: LMMVAE, term: Any, truth: np.ndarray) -> float:
    """Largest relative error over a term's coefficients, variances averaged over features."""
    components = model.variance_components()
    learned = components.loc[term.component_names()].to_numpy().mean(axis=1)
    return float(np.abs(learned / truth.mean(axis=1) - 1.0).max())


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=0)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    a, b = _centred(one).ravel(), _centred(other).ravel()
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-30))
