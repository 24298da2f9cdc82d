"""Confidence intervals of a model's variance components."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.inspection.partition import latent_variance, require_variances
from keras_lmmvae.inspection.tables import variance_components
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.validation import check_probability, received

__all__ = ["limits_of_variance", "variance_intervals"]

Array = npt.NDArray[np.float64]
_LATENT_DRAWS = 4096


def variance_intervals(model: FittedModel, level: float = 0.9) -> pd.DataFrame:
    """Confidence intervals of the variance components; see `LMMVAE.variance_intervals`.

    The variances of the estimates' logarithms are those of the inverse of REML's expected
    information, of all terms and the noise together. A term has the interval of
    `limits_of_variance`, the noise a chi-square one. Its degrees of freedom are the rows that are
    left once effects and latent have taken theirs.
    """
    model.require_fitted()
    check_probability("level", level)
    require_variances(model)
    if not model.random_effects:
        raise ValueError(
            "The model has no random effects whose variances could have intervals. "
            + received(terms=0)
        )
    components = variance_components(model)
    freedom = _noise_freedom(model)
    log_variances = _variances_of_logarithms(model, freedom)
    limits: dict[str, tuple[Array, Array]] = {}
    for number, (term, effects) in enumerate(model.mixed_model.pairs()):
        names = term.component_names()
        if effects.num_levels * effects.basis_size == 1:
            one = np.ones(model.num_features)
            limits[names[0]] = 0.0 * one, np.inf * one
            continue
        kept = _kept(effects)
        for at, name in enumerate(names):
            shares, log_variance = kept.reshape(-1, kept.shape[-1]), log_variances[:, number]
            if len(names) > 1:
                shares = _of_coefficient(term, effects, kept, at)
                log_variance = _mixed(log_variance, effects, kept, shares)
            limits[name] = limits_of_variance(shares, log_variance, level)
    limits["noise"] = _noise_limits(model, freedom, level)
    columns = {
        "lower": np.stack([limits[name][0] for name in components.index]),
        "estimate": np.ones(components.shape),
        "upper": np.stack([limits[name][1] for name in components.index]),
    }
    index = pd.MultiIndex.from_product(
        [components.index, components.columns], names=["component", "feature"]
    )
    table = {name: (ratio * components.to_numpy()).ravel() for name, ratio in columns.items()}
    return pd.DataFrame(table, index)


def limits_of_variance(kept: Array, log_variance: Array, level: float) -> tuple[Array, Array]:
    """Limits of a variance over its estimate.

    What is estimated is the sum of the variance and of that of the noise in a level's mean, of
    which the variance is the share `S`, the mean of what the levels keep weighted by itself. The
    sum has a chi-square distribution with

        df = 2 / (S**2 * log_variance)

    degrees of freedom, which is the number of levels where all are alike. So the lower limit can
    be 0, and the upper one stays finite.

    Args:
        kept: Float array `(units, p)`, the shares that levels keep of their effects.
        log_variance: Float array `(p,)`, variance of the logarithm of the estimate.
        level: Float in (0, 1).

    Returns:
        lower: Float array `(p,)`, in [0, 1].
        upper: Float array `(p,)`, at least 1.

    Example:
        >>> lower, upper = limits_of_variance(np.ones((20, 1)), np.array([2 / 19]), 0.9)
        >>> np.round([lower[0], upper[0]], 2), np.round(19 / stats.chi2.ppf([0.95, 0.05], 19), 2)
        (array([0.63, 1.88]), array([0.63, 1.88]))

    References:
        - Satterthwaite, F. E. (1946), An approximate distribution of estimates of variance
          components, eq. (17).
    """
    share = np.sum(kept**2, axis=0) / np.maximum(np.sum(kept, axis=0), 1e-300)
    noise = (1.0 - share) / np.maximum(share, 1e-300)
    freedom = 2.0 / np.maximum(share**2 * log_variance, 1e-300)
    tail = (1.0 - level) / 2.0
    lower = (1.0 + noise) * freedom / stats.chi2.ppf(1.0 - tail, freedom) - noise
    upper = (1.0 + noise) * freedom / stats.chi2.ppf(tail, freedom) - noise
    return np.clip(lower, 0.0, 1.0), np.maximum(upper, 1.0)


def _variances_of_logarithms(model: FittedModel, noise_freedom: Array) -> Array:
    """Variances of the logarithms of the terms' variances, `(p, K)`.

    A row of the information, that of the noise included, sums to half the effective number of
    parameters of its term. A noise variance that is given has no uncertainty.
    """
    of_terms = _numpy(model.mixed_model.information)
    if model.noise_variance_setting is None:
        count = np.stack(
            [_numpy(part.effective_parameters) for part in model.mixed_model.effects], axis=1
        )
        with_noise = np.maximum(0.5 * count - of_terms.sum(axis=2), 0.0)
        of_noise = np.maximum(0.5 * noise_freedom - with_noise.sum(axis=1), 0.5)
        outer = with_noise[:, :, None] * with_noise[:, None, :]
        of_terms = of_terms - outer / of_noise[:, None, None]
    diagonal = np.einsum("fkk->fk", of_terms)
    ridge = 1e-9 * np.maximum(diagonal.max(axis=1), 1e-300)
    inverse = np.linalg.inv(of_terms + ridge[:, None, None] * np.eye(of_terms.shape[1]))
    return np.maximum(np.einsum("fkk->fk", inverse), 1e-300)


def _noise_freedom(model: FittedModel) -> Array:
    """Rows that are left once effects and latent have taken theirs, `(p,)`."""
    rows, spent = np.zeros(1), np.zeros(model.num_features)
    for effects in model.mixed_model.effects:
        count, table = _numpy(effects.table.count)[:, None], effects.table
        shares = _numpy(table.cell_share) if table.has_missing_cells else 1.0
        rows = np.maximum(rows, (count * shares).sum(axis=0))
        spent += _numpy(effects.effective_parameters)
    return np.maximum(rows * (1.0 - _latent_leverage(model)) - spent, 1.0)


def _noise_limits(model: FittedModel, freedom: Array, level: float) -> tuple[Array, Array]:
    """Limits over the estimate of the noise variance, `(p,)` each."""
    if model.noise_variance_setting is not None:
        return np.ones(model.num_features), np.ones(model.num_features)
    tail = (1.0 - level) / 2.0
    chi2 = stats.chi2
    return freedom / chi2.ppf(1.0 - tail, freedom), freedom / chi2.ppf(tail, freedom)


def _latent_leverage(model: FittedModel) -> Array:
    """Share of a feature's rows that telling their latents from it takes, `(p,)`.

    That of factor analysis with `d` factors that weigh alike, at the signal-to-noise ratios
    `s = Var(f(u)) / noise_variance`: `d * s[f] / (d + sum{ s })`.
    """
    ratio = latent_variance(model, _LATENT_DRAWS) / _numpy(model.noise_variance)
    return np.asarray(model.latent_dim * ratio / (model.latent_dim + ratio.sum()))


def _kept(effects: LevelEffects) -> Array:
    """Shares kept of the rotated effects of all levels, `(levels, m, p)`."""
    kept = effects.table.kept(effects.information)
    return _numpy(effects.information.of_features(kept))


def _of_coefficient(term: RandomEffect, effects: LevelEffects, kept: Array, at: int) -> Array:
    """Shares kept of one coefficient of the levels' effects, `(levels, p)`."""
    direction = term.user_basis()[at]
    prior = direction @ _numpy(effects.coefficient_covariance) @ direction
    weight = np.einsum("i,lik->lk", direction, _numpy(effects.table.rotation)) ** 2 / prior
    return np.einsum("lk,lkf->lf", weight, kept)


def _mixed(log_variance: Array, effects: LevelEffects, kept: Array, shares: Array) -> Array:
    """Variance of the logarithm of the variance of one coefficient, `(p,)`.

    A coefficient's variance is a feature's `effect_variance`, which all coefficients tell of,
    times an entry of `Psi`, which all features do. With one feature only the coefficient's own
    information is left, with many the entry is known.
    """
    variance = _numpy(effects.effect_variance)
    share = float(np.sum(variance**2) / np.sum(variance) ** 2)
    own = np.sum(kept**2, axis=(0, 1)) / np.maximum(np.sum(shares**2, axis=0), 1e-300)
    return (1.0 - share + share * own) * log_variance


def _numpy(weight: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(weight), np.float64)
