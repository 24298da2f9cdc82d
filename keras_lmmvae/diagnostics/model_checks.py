"""Checks that need no data: what a fitted model says of its own terms and variances."""

from __future__ import annotations

import keras
import numpy as np

from keras_lmmvae.diagnostics import thresholds
from keras_lmmvae.diagnostics.finding import Finding
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.likelihood import NOISE_VARIANCE_FLOOR
from keras_lmmvae.mixed_model.level_effects import LevelEffects

__all__ = [
    "check_length_scales",
    "check_noise_floor",
    "check_singletons",
    "check_term_collapse",
    "named",
]


def named(features: np.ndarray) -> str:
    """Numbers of features, the first few of them: "features 0, 3, 4 and 7 more"."""
    shown, rest = features[:5].tolist(), len(features) - 5
    text = ", ".join(map(str, shown)) + (f" and {rest} more" if rest > 0 else "")
    return f"{'feature' if len(features) == 1 else 'features'} {text}"


def check_term_collapse(model: FittedModel) -> list[Finding]:
    """Terms whose variance components are 0 for nearly all features."""
    findings = []
    for term, effects in model.mixed_model.pairs():
        if effects.is_amortized:
            continue  # effect variances are not learned
        share = _prior_share(effects)
        absent = float(np.mean(share < thresholds.ABSENT_SHARE))
        if not _is_absent(share):
            continue
        findings.append(
            Finding(
                "term_collapse",
                "note",
                f"term '{term.label}'",
                {"absent_features": absent, "mean_share": float(share.mean())},
                f"The variance components of '{term.label}' are (almost) 0 for {absent:.0%} of the "
                f"features, and on average {share.mean():.2%} of the features' variance.",
                "Leave the term out, if it was a guess. If there should be an effect: are the keys "
                "those of the rows, and has the latent taken the groups over "
                "('latent_predicts_group')?",
            )
        )
    return findings


def _prior_share(effects: LevelEffects) -> np.ndarray:
    """Prior variance of a term's contribution over the feature's variance, `(p,)`."""
    variance = keras.ops.convert_to_numpy(effects.effect_variance)
    return np.asarray(variance * effects.mean_prior_share())


def _is_absent(share: np.ndarray) -> bool:
    is_rare = np.mean(share < thresholds.ABSENT_SHARE) >= thresholds.ABSENT_FEATURES
    return bool(is_rare and share.mean() < thresholds.COLLAPSED_SHARE)


def check_singletons(model: FittedModel) -> list[Finding]:
    """Terms most of whose levels have one row."""
    findings = []
    for term, effects in model.mixed_model.pairs():
        count = effects.row_counts()
        count = count[count > 0.0]
        if len(count) < 2:
            continue
        single = float(np.mean(count <= 1.0))
        if single <= thresholds.SINGLETON_LEVELS:
            continue
        rows = float(count[count <= 1.0].sum() / count.sum())
        findings.append(
            Finding(
                "singleton_levels",
                "warning",
                f"term '{term.label}'",
                {"levels": float(len(count)), "single_levels": single, "single_rows": rows},
                f"{single:.0%} of the {len(count)} levels of '{term.label}' have one row, "
                f"{rows:.0%} of all rows: what is the level's and what is the row's own cannot "
                "be told apart there, and their effects are shrunken to almost nothing.",
                "Choose a coarser grouping, gather more rows of a level, or leave the term out.",
            )
        )
    return findings


def check_noise_floor(model: FittedModel) -> list[Finding]:
    """Features whose noise variance is as small as it is let become."""
    if model.noise_variance_setting is not None:
        return []
    noise = keras.ops.convert_to_numpy(model.noise_variance)
    features = np.flatnonzero(noise <= thresholds.NOISE_FLOOR_MARGIN * NOISE_VARIANCE_FLOOR)
    if len(features) == 0:
        return []
    return [
        Finding(
            "noise_floor",
            "warning",
            named(features),
            {"features": float(len(features)), "floor": NOISE_VARIANCE_FLOOR},
            f"The noise variance of {named(features)} is at its floor of {NOISE_VARIANCE_FLOOR:g} "
            "of the variance: effects and latent explain the feature fully, and its likelihood and "
            "intervals mean nothing.",
            "A feature that is constant within its groups, or a function of others, belongs out "
            "of 'x'. Otherwise train for fewer epochs or with smaller networks, or give "
            "`noise_variance`.",
        )
    ]


def check_length_scales(model: FittedModel) -> list[Finding]:
    """Learned length scales at a bound of their search, of terms that have effects."""
    findings = []
    for term, effects in model.mixed_model.pairs():
        limits, length_scale = term.fit_limits(), term.fitted_length_scale
        if limits is None or length_scale is None or _is_absent(_prior_share(effects)):
            continue  # a surface that is 0 has any length scale
        scale, low, high = limits
        is_low = scale <= low * thresholds.LENGTH_SCALE_MARGIN
        if not is_low and scale < high / thresholds.LENGTH_SCALE_MARGIN:
            continue
        message = (
            "places next to each other have nothing in common: the surface is noise of the places"
            if is_low
            else "the surface is almost flat or a plane over the whole map"
        )
        remedy = (
            "Use a RandomIntercept of the place instead, or more inducing points (`num_inducing`)."
            if is_low
            else "Give `length_scale`, a rougher kernel ('matern12'), or leave the term out."
        )
        findings.append(
            Finding(
                "length_scale_bound",
                "warning",
                f"term '{term.label}'",
                {"length_scale": length_scale, "standardised": scale},
                f"The length scale of '{term.label}' is at the {'lower' if is_low else 'upper'} "
                f"bound of its search, {length_scale:.4g}: {message}.",
                remedy,
            )
        )
    return findings
