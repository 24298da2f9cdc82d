"""Confidence intervals of a model's variance components."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from keras_lmmvae.design import NUM_FOLDS
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.inspection.moment_intervals import FoldMoments, limits_of_variance, mixed
from keras_lmmvae.inspection.partition import latent_variance, require_variances
from keras_lmmvae.inspection.tables import variance_components
from keras_lmmvae.mixed_model.effects_table import EffectsTable
from keras_lmmvae.mixed_model.half_samples import is_centred
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.validation import check_probability, received

__all__ = ["variance_intervals"]

Array = npt.NDArray[np.float64]
# Numbers handled at once, so that memory stays bounded.
_CHUNK = 2_000_000
_LATENT_DRAWS = 4096


def variance_intervals(model: FittedModel, level: float = 0.9) -> pd.DataFrame:
    """Confidence intervals of the variance components; see `LMMVAE.variance_intervals`.

    A term's variance is estimated from the product of the effects that two half-samples gave. Its
    interval holds the variances under which the moment equation that was solved gives such an
    estimate with a probability between the tails' (see `FoldMoments` and `limits_of_variance`).
    With several terms an estimate is a linear combination of their moments, whose cumulants add
    up, as in Satterthwaite's approximation. The noise has a chi-square interval. Its degrees of
    freedom are the rows that are left once effects and latent have taken theirs.
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
    limits: dict[str, tuple[Array, Array]] = {}
    for number, effects in enumerate(model.mixed_model.effects):
        for name, cumulants in _cumulants(model, number):
            estimate = _numpy(effects.effect_variance)
            if effects.num_levels * effects.basis_size == 1:
                limits[name] = np.zeros_like(estimate), np.full_like(estimate, np.inf)
            else:
                lower, upper = limits_of_variance(cumulants, estimate, level)
                limits[name] = lower / estimate, upper / estimate
    limits["noise"] = _noise_limits(model, level)
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


def _cumulants(model: FittedModel, number: int) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Component -> cumulants `(3, p)` of its estimate as a function of its true variance."""
    pairs = list(model.mixed_model.pairs())
    matrix = _numpy(model.mixed_model.moment_matrix)  # (p, K, K)
    weights = np.linalg.pinv(matrix)[:, number]  # (p, K)
    variances = np.stack([_numpy(effects.effect_variance) for _, effects in pairs])
    moments = [_fold_moments(model, effects) for _, effects in pairs]
    of_terms = [
        partial(part.cumulants, is_centred=is_centred(effects))
        for part, (_, effects) in zip(moments, pairs, strict=True)
    ]
    term, effects = pairs[number]
    shared = variances[number]
    share = float(np.sum(shared**2) / np.sum(shared) ** 2)

    def cumulants_with(own: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def cumulants(variance: Array) -> Array:
            true = variances.copy()
            true[number] = variance
            expected = np.einsum("fkj,jf->kf", matrix, true)
            total = np.zeros((3, len(variance)))
            powers = np.arange(1, 4)[:, None]
            for other, c in enumerate(expected):
                part = own(c) if other == number else of_terms[other](c)
                total += weights[:, other] ** powers * part
            return total

        return cumulants

    names = term.component_names()
    if len(names) == 1:
        yield names[0], cumulants_with(of_terms[number])
        return
    for name, direction in zip(names, term.user_basis(), strict=True):
        own = _fold_moments(model, effects, direction)
        yield name, cumulants_with(partial(mixed, moments[number], own, share))


def _fold_moments(
    model: FittedModel, effects: LevelEffects, direction: Array | None = None
) -> FoldMoments:
    """Sums over the units of a term: its axes, or one coefficient of its levels."""
    variance = _numpy(effects.effect_variance)
    parts = []
    step = max(1, _CHUNK // (effects.basis_size * model.num_features))
    for start in range(0, effects.num_levels, step):
        levels = slice(start, min(start + step, effects.num_levels))
        if direction is None:
            kept = _kept_of_levels(effects, levels)
        else:
            kept = _kept_of_direction(effects, levels, direction)
        parts.append(FoldMoments.of_units(kept, variance, 1.0 / model.effects_kl_weight))
    return FoldMoments.total(parts)


def _noise_limits(model: FittedModel, level: float) -> tuple[Array, Array]:
    """Limits over the estimate of the noise variance, `(p,)` each."""
    if model.noise_variance_setting is not None:
        return np.ones(model.num_features), np.ones(model.num_features)
    rows, spent = np.zeros(1), np.zeros(model.num_features)
    for effects in model.mixed_model.effects:
        count = _numpy(effects.table.count)[:, None]
        rows = np.maximum(rows, _by_feature(count, effects.table, slice(None)).sum(axis=0))
        step = _CHUNK // (effects.basis_size * model.num_features) + 1
        for start in range(0, effects.num_levels, step):
            levels = slice(start, start + step)
            spent += _kept(effects, effects.table, levels).sum(axis=(0, 1))
    freedom = np.maximum(rows * (1.0 - _latent_leverage(model)) - spent, 1.0)
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


def _kept_of_levels(effects: LevelEffects, levels: slice) -> list[Array]:
    """Shares kept along the axes of the levels' Gram matrices, by fold, `(units, p)` each."""
    found = []
    for fold in range(NUM_FOLDS):
        gram = _numpy(effects.folds.gram[fold, levels])
        if effects.basis_size == 1:
            eigenvalues = gram[:, 0] * _numpy(effects.coefficient_covariance)[0, 0]
        else:
            rotation = _numpy(effects.table.rotation[levels])
            eigenvalues = np.einsum("lik,lij,ljk->lk", rotation, gram, rotation, optimize=True)
        kept = _kept(effects, effects.folds, (fold, levels), np.maximum(eigenvalues, 0.0))
        found.append(kept.reshape(-1, kept.shape[-1]))
    return found


def _kept_of_direction(effects: LevelEffects, levels: slice, direction: Array) -> list[Array]:
    """Shares of one linear form of the levels' effects that the folds tell, `(levels, p)` each."""
    prior = direction @ _numpy(effects.coefficient_covariance) @ direction
    found = []
    for fold in range(NUM_FOLDS):
        rotation = _numpy(effects.folds.rotation[fold, levels])
        weight = np.einsum("i,lik->lk", direction, rotation) ** 2 / prior
        kept = _kept(effects, effects.folds, (fold, levels))
        found.append(np.einsum("lk,lkf->lf", weight, kept))
    return found


def _kept(
    effects: LevelEffects, table: EffectsTable, index: Any, eigenvalues: Array | None = None
) -> Array:
    """Shares that features keep of least-squares effects, `(levels, m, p)`.

    Args:
        effects: The effects of the term.
        table: One of its tables.
        index: Where the levels are in it.
        eigenvalues: Those of their Gram matrices, if not those of the table.
    """
    values = table.eigenvalues[index] if eigenvalues is None else eigenvalues
    share = table.cell_share[index] if table.has_missing_cells else None
    kept = effects.information.kept(keras.ops.cast(values, "float32"), share)
    return _numpy(effects.information.of_features(kept))


def _by_feature(signal: Any, table: EffectsTable, index: Any) -> Array:
    """What levels' rows tell along each axis, `(levels * m, p)`, or one column for all features.

    Args:
        signal: `(levels, m)`, eigenvalues of the levels' Gram matrices.
        table: The table with the shares of observed cells, if cells are missing.
        index: Where the levels are in the table.
    """
    found = _numpy(signal)[..., None]
    if table.has_missing_cells:
        found = found * _numpy(table.cell_share[index])[..., None, :]
    return found.reshape(-1, found.shape[-1])


def _numpy(weight: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(weight), np.float64)
