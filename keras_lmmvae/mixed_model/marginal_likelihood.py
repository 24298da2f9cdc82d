"""The likelihood of rows whose effects are integrated out, exact, by sparse factorisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import UNKNOWN_CODE
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.rows import EFFECTS, FEATURES, Pass, Rows, cell_weights
from keras_lmmvae.validation import received

__all__ = ["MarginalLikelihood", "marginal_likelihood"]

_LOG_2_PI = float(np.log(2.0 * np.pi))


class MarginalLikelihood(NamedTuple):
    """Log likelihoods of the features, in standardised units.

    Attributes:
        restricted: Float array `(p,)`, that of REML.
        full: Float array `(p,)`, that of maximum likelihood.
        cells: Float array `(p,)`, numbers of observed cells; a cell counts as often as its row.
    """

    restricted: np.ndarray
    full: np.ndarray
    cells: np.ndarray


def marginal_likelihood(
    pairs: Iterable[tuple[RandomEffect, LevelEffects]], rows: Pass, noise_variance: np.ndarray
) -> MarginalLikelihood:
    """Log likelihoods of `values = intercept + sum_k Z_k B_k + e`, feature by feature.

        V = noise_variance * I + Z D Z'
        r = values - intercept, the intercept by generalised least squares
        full       = -1/2 (n log(2 pi) + log|V| + r' inv(V) r)
        restricted = -1/2 ((n - 1) log(2 pi) + log|V| + r' inv(V) r + log(1' inv(V) 1))

    `D = R R'` is the prior covariance of all effects. With `A = I + R'Z'Z R / noise_variance`,

        log|V| = n log(noise_variance) + log|A|
        a' inv(V) b = (a'b - a'Z R inv(A) R'Z'b / noise_variance) / noise_variance

    and `A` is sparse. A row of weight 2 counts as two equal rows.

    Args:
        pairs: The terms with their variances.
        rows: Encoded rows.
        noise_variance: Float array `(p,)`.

    Raises:
        ValueError: If a row has a level that the terms do not know.

    References:
        - Harville, D. A. (1977), Maximum likelihood approaches to variance component estimation.
        - Bates et al. (2015), Fitting linear mixed-effects models using lme4, section 3.
    """
    known, batches = list(pairs), list(rows)
    design = sp.vstack([_design(known, batch) for batch in batches]).tocsr()
    values = np.concatenate([np.asarray(batch[FEATURES], np.float64) for batch in batches])
    weights = _stacked_weights(batches)
    # The first column of the design is 0: any variance will do for it.
    variances = [np.zeros((1, values.shape[1]))]
    for _, effects in known:
        variance = np.asarray(effects.effect_variance, np.float64)
        variances.append(np.tile(variance, (effects.num_levels * effects.basis_size, 1)))
    scales = np.sqrt(np.concatenate(variances) / noise_variance)
    found = []
    for feature, noise in enumerate(noise_variance):
        if feature < weights.shape[1]:
            roots = np.sqrt(weights[:, feature])
            weighted = (sp.diags_array(roots) @ design).tocsc()
            gram = weighted.T @ weighted
        both = roots[:, None] * np.stack([np.ones(len(values)), values[:, feature]], axis=1)
        found.append(_log_likelihoods(gram, weighted.T @ both, both, scales[:, feature], noise))
    return MarginalLikelihood(*np.array(found).T)


def _log_likelihoods(
    gram: sp.sparray, scores: np.ndarray, both: np.ndarray, scale: np.ndarray, noise: float
) -> tuple[float, float, float]:
    """REML's log likelihood, the full one, and the number of cells of a feature.

    Args:
        gram: `Z'Z`, for effects of prior covariance `noise * diag(scale**2)`.
        scores: `Z'` times `both`, `(q, 2)`.
        both: The ones and the values, `(n, 2)`.
        scale: Float array `(q,)`.
        noise: The noise variance.
    """
    diagonal = sp.diags_array(scale)
    matrix = sp.diags_array(np.ones_like(scale)) + diagonal @ gram @ diagonal
    # Symmetric and positive definite: no pivot needs to leave the diagonal.
    factor = splu(
        matrix.tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    scores = scale[:, None] * scores
    products = (both.T @ both - scores.T @ factor.solve(scores)) / noise
    cells = float(np.sum(both[:, 0] ** 2))
    log_det = cells * np.log(noise) + np.sum(np.log(factor.U.diagonal()))
    quadratic = products[1, 1] - products[0, 1] ** 2 / products[0, 0]
    full = -0.5 * (cells * _LOG_2_PI + log_det + quadratic)
    return full + 0.5 * (_LOG_2_PI - np.log(products[0, 0])), full, cells


def _design(pairs: Sequence[tuple[RandomEffect, LevelEffects]], rows: Rows) -> sp.csr_array:
    """`Z` of some rows with `Psi = R R'` taken into it, so that effects are independent.

    Its first column is 0: there is something to factorise without any term.
    """
    size = rows[FEATURES].shape[0]
    parts = [sp.csr_array((size, 1))]
    for term, effects in pairs:
        encoded, width = rows[EFFECTS][term.label], effects.basis_size
        codes, basis = np.asarray(encoded["codes"]), term.basis_of(encoded)
        _check_known(term, codes)
        basis = np.ones((size, 1)) if basis is None else np.asarray(basis, np.float64)
        root = np.linalg.cholesky(np.asarray(effects.coefficient_covariance, np.float64))
        entries = np.where(codes[:, None] >= 0, basis @ root, 0.0)
        columns = np.maximum(codes, 0)[:, None] * width + np.arange(width)
        place = (entries.ravel(), columns.ravel(), np.arange(size + 1) * width)
        parts.append(sp.csr_array(place, shape=(size, effects.num_levels * width)))
    return sp.hstack(parts).tocsr()


def _check_known(term: RandomEffect, codes: np.ndarray) -> None:
    unknown = np.flatnonzero(codes == UNKNOWN_CODE)
    if len(unknown):
        raise ValueError(
            f"Rows have levels of '{term.label}' that the model was not fitted to, expected the "
            "training rows. " + received(rows=len(unknown), first=int(unknown[0]))
        )


def _stacked_weights(batches: Sequence[Rows]) -> np.ndarray:
    """Weights of cells, `(n, p)`, 0 where one is missing; `(n, 1)` where features share them."""
    found = []
    for batch in batches:
        weights, (size, width) = cell_weights(batch), batch[FEATURES].shape
        weights = np.ones((size, 1)) if weights is None else np.asarray(weights, np.float64)
        found.append(np.broadcast_to(weights, (size, width)))
    stacked = np.concatenate(found)
    return stacked[:, :1] if np.all(stacked == stacked[:, :1]) else stacked
