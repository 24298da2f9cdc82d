"""The checks of `diagnose`, and the thresholds at which a number becomes a finding."""

from collections.abc import Iterator

import keras
import numpy as np

from keras_lmmvae.diagnostics.evidence import Evidence
from keras_lmmvae.diagnostics.finding import Finding
from keras_lmmvae.diagnostics.grouping_share import group_share
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.likelihood import NOISE_VARIANCE_FLOOR
from keras_lmmvae.mixed_model.level_effects import LevelEffects

__all__ = [
    "check_effects_overfit",
    "check_held_out_error",
    "check_latent_collapse",
    "check_latent_groups",
    "check_inducing_points",
    "check_length_scales",
    "check_nearly_constant",
    "check_noise_floor",
    "check_singletons",
    "check_term_collapse",
    "check_unseen_levels",
]

# Thresholds ---------------------------------------------------------------------------------

COLLAPSED_KL = 0.01
"""Nats a row. A posterior that narrows the prior's variance by a share s costs -log(1 - s) / 2
nats. With less than this, a latent dimension leaves 98% of its prior variance open."""

COLLAPSED_VARIANCE = 0.01
"""Variance over rows of a latent's posterior means, where the prior has 1. Burda, Grosse &
Salakhutdinov (2016), Importance weighted autoencoders, section 5.2, call such a unit inactive."""

ABSENT_SHARE = 1e-3
"""Share of a standardised feature's variance. A term with less moves a row by at most 3% of its
standard deviation."""

ABSENT_FEATURES = 0.5
"""Share of the features for which a term has to be absent. Estimates vary around 0 and are cut off
there, so a term without effects is absent for half of the features or more, not for all."""

COLLAPSED_SHARE = 0.01
"""Mean share over features below which a term is absent as a whole, because a few features with an
effect are reason enough to keep it. Without any effect, 2000 levels of 2.6 rows had 0.003."""

SLOPE = 0.8
"""Slope of rows on effects that have not seen them. It is 1 for effects that are shrunken as they
should be. Below this threshold a fifth of the effects is noise of other rows."""

DEVIATIONS = 3.0
"""Standard errors by which an estimate has to be beyond its threshold, or beyond chance. One of 700
healthy terms is that far off by chance."""

ERROR_RATIO = 1.5
"""Squared error of held-out rows over its expected variance. A healthy fit has about 1 - d / p,
because the latent fits d directions of the row itself. At 1.5, intervals of 95% hold 89%."""

GROUP_SHARE = 0.1
"""Intraclass correlation of a latent with a grouping, which is 0 in the model. The latent of groups
may well differ, so this is a note, and small values are left out."""

SINGLETON_LEVELS = 0.5
"""Share of the levels with one row. The effect of such a level cannot be told from the row's noise,
and the variance component rests on the other levels alone."""

NOISE_FLOOR_MARGIN = 1.01
"""Factor on the floor of the noise variance within which a variance is at the floor. It allows for
float32, and for a running mean that only comes near the floor."""

LENGTH_SCALE_MARGIN = 1.1
"""Factor on the bounds of the search. The last step is 3% wide and ends within the bounds."""

BETWEEN_POINTS = 0.2
"""Variance of a surface between its inducing points, over the noise variance, which holds it."""

CONSTANT_CELLS = 0.99
"""Share of a feature's cells that hold one value. All its variance is then that of 1% of the
rows."""

UNSEEN_ROWS = 0.1
"""Share of held-out rows with an unknown level. They are predicted without the term."""


# Checks of the model alone ------------------------------------------------------------------


def check_term_collapse(model: FittedModel) -> Iterator[Finding]:
    """Terms whose variance components are 0 for nearly all features."""
    for term, effects in model.mixed_model.pairs():
        if effects.is_amortized:
            continue  # This posterior does not learn effect variances.
        share = _prior_share(effects)
        if not _is_absent(share):
            continue
        absent = float(np.mean(share < ABSENT_SHARE))
        yield Finding(
            "term_collapse",
            "note",
            f"term '{term.label}'",
            {"absent_features": absent, "mean_share": float(share.mean())},
            f"The variance components of '{term.label}' are (almost) 0 for {absent:.0%} of the "
            f"features. On average they are {share.mean():.2%} of the features' variance.",
            "Leave the term out if it was a guess. If there should be an effect, check that the "
            "keys belong to the rows, and that the latent has not learned the groups "
            "('latent_predicts_group').",
        )


def _prior_share(effects: LevelEffects) -> np.ndarray:
    """Prior variance of a term's contribution over the feature's variance, `(p,)`."""
    variance = keras.ops.convert_to_numpy(effects.effect_variance)
    return np.asarray(variance * effects.mean_prior_share())


def _is_absent(share: np.ndarray) -> bool:
    is_rare = np.mean(share < ABSENT_SHARE) >= ABSENT_FEATURES
    return bool(is_rare and share.mean() < COLLAPSED_SHARE)


def check_singletons(model: FittedModel) -> Iterator[Finding]:
    """Terms most of whose levels have one row."""
    for term, effects in model.mixed_model.pairs():
        count = effects.row_counts()
        count = count[count > 0.0]
        single = float(np.mean(count <= 1.0)) if len(count) > 1 else 0.0
        if single <= SINGLETON_LEVELS:
            continue
        rows = float(count[count <= 1.0].sum() / count.sum())
        yield Finding(
            "singleton_levels",
            "warning",
            f"term '{term.label}'",
            {"levels": float(len(count)), "single_levels": single, "single_rows": rows},
            f"{single:.0%} of the {len(count)} levels of '{term.label}' have one row. They hold "
            f"{rows:.0%} of all rows. The effect of such a level cannot be told from the row's "
            "noise, so it is shrunken to almost 0.",
            "Choose a coarser grouping, collect more rows of each level, or leave the term out.",
        )


def check_noise_floor(model: FittedModel) -> Iterator[Finding]:
    """Features whose learned noise variance is at its lower limit."""
    noise = keras.ops.convert_to_numpy(model.noise_variance)
    features = np.flatnonzero(noise <= NOISE_FLOOR_MARGIN * NOISE_VARIANCE_FLOOR)
    if len(features) == 0 or model.noise_variance_setting is not None:
        return
    yield Finding(
        "noise_floor",
        "warning",
        _named(features),
        {"features": float(len(features)), "floor": NOISE_VARIANCE_FLOOR},
        f"The noise variance of {_named(features)} is at its floor of {NOISE_VARIANCE_FLOOR:g} "
        "of the feature's variance. Effects and latent explain the feature fully, so its "
        "likelihood and intervals mean nothing.",
        "Leave a feature out of 'x' if it is constant within groups or a function of others. "
        "Otherwise train for fewer epochs or with smaller networks, or give `noise_variance`.",
    )


def check_length_scales(model: FittedModel) -> Iterator[Finding]:
    """Learned length scales at a bound of their search, of terms that have effects."""
    for term, effects in model.mixed_model.pairs():
        limits, length_scale = term.fit_limits(), term.fitted_length_scale
        if limits is None or length_scale is None or _is_absent(_prior_share(effects)):
            continue  # Any length scale fits a surface that is 0.
        scale, low, high = limits
        if scale <= low * LENGTH_SCALE_MARGIN:
            side, meaning = "lower", "Places next to each other have nothing in common"
            remedy = "Use a RandomIntercept of the place, or more inducing points (`num_inducing`)."
        elif scale >= high / LENGTH_SCALE_MARGIN:
            side, meaning = "upper", "The surface is flat or a plane over the whole map"
            remedy = "Give `length_scale`, a rougher kernel ('matern12'), or leave the term out."
        else:
            continue
        yield Finding(
            "length_scale_bound",
            "warning",
            f"term '{term.label}'",
            {"length_scale": length_scale, "standardised": scale},
            f"The length scale of '{term.label}' is at the {side} bound of its search, "
            f"{length_scale:.4g}. {meaning}.",
            remedy,
        )


def check_inducing_points(model: FittedModel) -> Iterator[Finding]:
    """Surfaces that are too rough for their inducing points."""
    noise = float(keras.ops.convert_to_numpy(model.noise_variance).sum())
    for term, effects in model.mixed_model.pairs():
        if effects.is_amortized or term.has_levels or _is_absent(_prior_share(effects)):
            continue
        left = 1.0 - effects.mean_prior_share()
        total = float(keras.ops.convert_to_numpy(effects.effect_variance).sum())
        if left * total <= BETWEEN_POINTS * noise:
            continue
        yield Finding(
            "inducing_points",
            "warning",
            f"term '{term.label}'",
            {"points": float(term.basis_size), "left": left, "over_noise": left * total / noise},
            f"The {term.basis_size} inducing points of '{term.label}' leave {left:.0%} of the "
            "variance of its surface between them. That variance counts as noise, of which it is "
            f"{min(left * total / noise, 1.0):.0%}.",
            "Give more points (`num_inducing`, each row costs its square), a smoother kernel, or "
            "a RandomIntercept of the place beside it.",
        )


# Checks of rows -----------------------------------------------------------------------------


def check_latent_collapse(evidence: Evidence) -> Iterator[Finding]:
    """Latent dimensions whose posterior is the prior, or the same for all rows."""
    kl, variance = _latent_numbers(evidence)
    collapsed = _is_collapsed(kl, variance)
    others = " All other dimensions are collapsed, too." if len(collapsed) > 1 else ""
    for number in np.flatnonzero(collapsed):
        yield Finding(
            "latent_collapse",
            "warning" if collapsed.all() else "note",
            f"latent dimension {number}",
            {"kl": float(kl[number]), "variance_of_means": float(variance[number])},
            f"Latent dimension {number} holds no information about the rows. Its KL is "
            f"{kl[number]:.2g} nats, and the variance of its posterior means {variance[number]:.2g}"
            f" (prior: 1).{others if collapsed.all() else ''}",
            "If there are more dimensions than needed, lower `latent_dim`. Otherwise warm up the "
            "KL (`callbacks.KLAnnealing`), lower `kl_weight`, or train longer. With much noise "
            "there may be nothing to learn.",
        )


def _latent_numbers(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Mean KL and variance of the posterior means of every latent dimension, `(d,)`."""
    mean = evidence.latent_mean.astype(np.float64)
    log_var = evidence.latent_log_var.astype(np.float64)
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1.0)
    return kl.mean(axis=0), mean.var(axis=0)


def _is_collapsed(kl: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return (kl < COLLAPSED_KL) | (variance < COLLAPSED_VARIANCE)


def check_latent_groups(evidence: Evidence, seed: int) -> Iterator[Finding]:
    """Latents that still differ between groups after the random effects are subtracted."""
    active = np.flatnonzero(~_is_collapsed(*_latent_numbers(evidence)))
    for label, term in evidence.terms.items():
        found = group_share(evidence.latent_mean[:, active], term.groups, seed)
        if found is None or len(active) == 0:
            continue
        by_chance = found.chance + DEVIATIONS * found.deviation
        differing = np.flatnonzero(found.share > np.maximum(by_chance, GROUP_SHARE))
        if len(differing) == 0:
            continue
        shares = {f"latent_{active[k]}": float(found.share[k]) for k in differing}
        listed = ", ".join(f"{share:.0%} of '{name}'" for name, share in shares.items())
        groups = "places" if term.is_surface else "levels"
        yield Finding(
            "latent_predicts_group",
            "note",
            f"term '{label}'",
            {**shares, "by_chance": float(by_chance[differing].max())},
            f"The latent still differs between the {groups} of '{label}' after the random effects "
            f"are subtracted. Share of its variance between {groups}: {listed}.",
            f"The {groups} differ by more than what is added to their rows. A term for the "
            "difference (`RandomSlopes` for a course over time) or longer training may explain it. "
            "If the latent may depend on the group, nothing is wrong.",
        )


def check_effects_overfit(
    training: Evidence, unseen: Evidence, is_held_out: bool
) -> Iterator[Finding]:
    """Terms whose effects are larger than rows show that were not used to estimate them."""
    which = "held-out rows" if is_held_out else "rows of the other fold"
    error = "error_held_out" if is_held_out else "error_crossed"
    for label, term in unseen.terms.items():
        slope, deviation = term.slope()
        share = term.squares.sum() / max(unseen.cells.sum(), 1.0)
        if share < ABSENT_SHARE or slope + DEVIATIONS * deviation >= SLOPE:
            continue
        yield Finding(
            "effects_overfit",
            "warning",
            f"term '{label}'",
            {
                "slope": slope,
                "standard_error": deviation,
                "error_training": training.mean_squared_error,
                error: unseen.mean_squared_error,
            },
            f"The effects of '{label}' overfit their groups: {which} show {slope:.0%} of them. "
            f"The squared error in standard units is {training.mean_squared_error:.3g} on training "
            f"rows and {unseen.mean_squared_error:.3g} on {which}.",
            "Use posterior='conjugate' if the model does not. Estimate the variances again at the "
            "end (`callbacks.RefreshEffects`, or some more epochs of `fit`). Do not fix "
            "`noise_variance` too low. Choose a coarser grouping.",
        )


def check_held_out_error(training: Evidence, held_out: Evidence) -> Iterator[Finding]:
    """Held-out errors that are larger than the model's own variances."""
    ratio = held_out.error_ratio
    if ratio <= ERROR_RATIO:
        return
    yield Finding(
        "error_above_expected",
        "warning",
        "held-out rows",
        {
            "error_ratio": ratio,
            "error_held_out": held_out.mean_squared_error,
            "error_training": training.mean_squared_error,
        },
        f"The squared error of the held-out rows is {ratio:.2f} times what the model expects of "
        f"new rows ({held_out.mean_squared_error:.3g} in standard units; training rows: "
        f"{training.mean_squared_error:.3g}). Intervals are too narrow and likelihoods too low.",
        "The networks or the effects overfit the training rows. Train for fewer epochs "
        "(EarlyStopping on 'val_loss'), with smaller networks or with a larger `kl_weight`. If the "
        "held-out rows are of another time or place, that difference may be the cause.",
    )


def check_nearly_constant(evidence: Evidence) -> Iterator[Finding]:
    """Features nearly all of whose cells hold one value."""
    share = evidence.constant_cells / np.maximum(evidence.cells, 1.0)
    features = np.flatnonzero(share >= CONSTANT_CELLS)
    if len(features) == 0:
        return
    yield Finding(
        "nearly_constant",
        "note",
        _named(features),
        {"features": float(len(features)), "largest_share": float(share.max())},
        f"At least {CONSTANT_CELLS:.0%} of the cells of {_named(features)} hold one value. After "
        "standardisation the few other cells are many standard deviations away, and they weigh as "
        "much as all rows of another feature.",
        "Leave these features out, or transform them.",
    )


def check_unseen_levels(held_out: Evidence) -> Iterator[Finding]:
    """Terms with many held-out rows of levels that the model does not know."""
    for label, term in held_out.terms.items():
        unseen, missing = term.unseen_share(), term.null_share()
        if unseen <= UNSEEN_ROWS:
            continue
        yield Finding(
            "unseen_levels",
            "note",
            f"term '{label}', held-out rows",
            {"unseen_rows": unseen, "rows_without_key": missing},
            f"{unseen:.0%} of the held-out rows have levels of '{label}' that are not among the "
            "training rows. They are predicted without its effects.",
            "If you want to predict new levels, nothing is wrong. Otherwise split by rows, add the "
            "levels with `update_random_effects`, or give some of their rows to `condition`. "
            "Check that keys are written as in training.",
        )


def _named(features: np.ndarray) -> str:
    """The first few of some features' numbers: "features 0, 3, 4, 5, 8 and 7 more"."""
    shown, rest = features[:5].tolist(), len(features) - 5
    text = ", ".join(map(str, shown)) + (f" and {rest} more" if rest > 0 else "")
    return f"{'feature' if len(features) == 1 else 'features'} {text}"
