"""Checks of what a pass over rows has shown: latents, effects, held-out errors, features."""

from __future__ import annotations

import numpy as np

from keras_lmmvae.diagnostics import thresholds
from keras_lmmvae.diagnostics.evidence import Evidence
from keras_lmmvae.diagnostics.finding import Finding
from keras_lmmvae.diagnostics.grouping_share import GroupShare, group_share
from keras_lmmvae.diagnostics.model_checks import named

__all__ = [
    "check_effects_overfit",
    "check_held_out_error",
    "check_latent_collapse",
    "check_latent_groups",
    "check_nearly_constant",
    "check_unseen_levels",
]


def check_latent_collapse(evidence: Evidence) -> list[Finding]:
    """Latent dimensions that say nothing of the row: the posterior is the prior, or constant."""
    kl, variance = _latent_numbers(evidence)
    collapsed = _is_collapsed(kl, variance)
    return [
        Finding(
            "latent_collapse",
            "warning" if collapsed.all() else "note",
            f"latent dimension {number}",
            {"kl": float(kl[number]), "variance_of_means": float(variance[number])},
            f"Latent dimension {number} says nothing of the rows: KL {kl[number]:.2g} nats, "
            f"variance of its posterior means {variance[number]:.2g} (of 1)."
            + (" So does every other one." if collapsed.all() and len(collapsed) > 1 else ""),
            "If dimensions are left over, lower `latent_dim`. Else warm the KL up "
            "(`callbacks.KLAnnealing`), lower `kl_weight`, or train longer: with much noise there "
            "may be nothing to say.",
        )
        for number in np.flatnonzero(collapsed)
    ]


def _latent_numbers(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Mean KL and variance of the posterior means of every latent dimension, `(d,)`."""
    mean = evidence.latent_mean.astype(np.float64)
    log_var = evidence.latent_log_var.astype(np.float64)
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1.0)
    return kl.mean(axis=0), mean.var(axis=0)


def _is_collapsed(kl: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return (kl < thresholds.COLLAPSED_KL) | (variance < thresholds.COLLAPSED_VARIANCE)


def check_latent_groups(evidence: Evidence, seed: int) -> list[Finding]:
    """Latents of the training rows that still tell the groups, their effects taken out."""
    findings = []
    active = np.flatnonzero(~_is_collapsed(*_latent_numbers(evidence)))
    for label, term in evidence.terms.items():
        found = group_share(evidence.latent_mean[:, active], term.groups, seed)
        if found is None or len(active) == 0:
            continue
        least = np.maximum(_most_by_chance(found), thresholds.GROUP_SHARE)
        telling = np.flatnonzero(found.share > least)
        if len(telling) == 0:
            continue
        shares = {f"latent_{active[k]}": float(found.share[k]) for k in telling}
        listed = ", ".join(f"{share:.0%} of '{name}'" for name, share in shares.items())
        places = "places" if term.is_surface else "levels"
        findings.append(
            Finding(
                "latent_predicts_group",
                "note",
                f"term '{label}'",
                {**shares, "by_chance": float(_most_by_chance(found)[telling].max())},
                "With the effects taken out, some of the latent's variance still lies between "
                f"the {places} of '{label}': {listed}.",
                f"The {places} differ in more than what is added to their rows: a term for what "
                "differs (`RandomSlopes` for a course over time), or longer training, may take it "
                "out. If the latent may know them, nothing is wrong.",
            )
        )
    return findings


def _most_by_chance(found: GroupShare) -> np.ndarray:
    return found.chance + thresholds.DEVIATIONS * found.deviation


def check_effects_overfit(training: Evidence, unseen: Evidence, is_held_out: bool) -> list[Finding]:
    """Terms whose effects are larger than rows that they have not seen bear out.

    Args:
        training: Training rows with the effects for new rows.
        unseen: Rows with effects that have not seen them: held-out rows, or the training rows
            with the effects of the other fold.
        is_held_out: Which of these.
    """
    findings = []
    which = "held-out rows" if is_held_out else "rows of the other fold"
    error = "error_held_out" if is_held_out else "error_crossed"
    for label, term in unseen.terms.items():
        slope, deviation = term.slope()
        share = term.squares.sum() / max(unseen.cells.sum(), 1.0)
        is_there = share >= thresholds.ABSENT_SHARE
        if not is_there or slope + thresholds.DEVIATIONS * deviation >= thresholds.SLOPE:
            continue
        numbers = {
            "slope": slope,
            "standard_error": deviation,
            "error_training": training.mean_squared_error,
            error: unseen.mean_squared_error,
        }
        findings.append(
            Finding(
                "effects_overfit",
                "warning",
                f"term '{label}'",
                numbers,
                f"The effects of '{label}' overfit their groups: {which} show {slope:.0%} of what "
                f"they say. Error in standard units: {training.mean_squared_error:.3g} on training "
                f"rows, {unseen.mean_squared_error:.3g} on {which}.",
                "Use posterior='conjugate' if it is not; refresh the variances after the last "
                "changes (`callbacks.RefreshEffects`, or fit for some epochs more); do not fix "
                "`noise_variance` too low; choose a coarser grouping.",
            )
        )
    return findings


def check_held_out_error(training: Evidence, held_out: Evidence) -> list[Finding]:
    """Held-out errors larger than the model's own variances make them."""
    ratio = held_out.error_ratio
    if ratio <= thresholds.ERROR_RATIO:
        return []
    return [
        Finding(
            "error_above_expected",
            "warning",
            "held-out rows",
            {
                "error_ratio": ratio,
                "error_held_out": held_out.mean_squared_error,
                "error_training": training.mean_squared_error,
            },
            f"The squared error of the held-out rows is {ratio:.2f} times what the model expects "
            f"of new rows ({held_out.mean_squared_error:.3g} in standard units, "
            f"{training.mean_squared_error:.3g} on training rows): intervals are too narrow and "
            "likelihoods too low.",
            "The networks or the effects have learned the training rows by heart: train for fewer "
            "epochs (EarlyStopping on 'val_loss'), with smaller networks or a larger `kl_weight`. "
            "If the held-out rows are of another time or place, this is what that costs.",
        )
    ]


def check_nearly_constant(evidence: Evidence) -> list[Finding]:
    """Features nearly all of whose cells hold one value."""
    share = evidence.constant_cells / np.maximum(evidence.cells, 1.0)
    features = np.flatnonzero(share >= thresholds.CONSTANT_CELLS)
    if len(features) == 0:
        return []
    return [
        Finding(
            "nearly_constant",
            "note",
            named(features),
            {"features": float(len(features)), "largest_share": float(share.max())},
            f"At least {thresholds.CONSTANT_CELLS:.0%} of the cells of {named(features)} have one "
            "and the same value: standardised, the few others are many standard deviations away, "
            "and weigh as much as all rows of another feature.",
            "Leave these features out, or transform them.",
        )
    ]


def check_unseen_levels(held_out: Evidence) -> list[Finding]:
    """Held-out rows of levels that the model has never seen."""
    findings = []
    for label, term in held_out.terms.items():
        unseen, missing = term.unseen_share(), term.null_share()
        if unseen <= thresholds.UNSEEN_ROWS:
            continue
        findings.append(
            Finding(
                "unseen_levels",
                "note",
                f"term '{label}', held-out rows",
                {"unseen_rows": unseen, "rows_without_key": missing},
                f"{unseen:.0%} of the held-out rows are of levels of '{label}' that were not among "
                "the training rows: they are predicted without its effects.",
                "If that is what is asked, nothing. Else split by rows; or take the levels in with "
                "`update_random_effects`, or a few of their rows with `condition`. Are the "
                "keys written as in training?",
            )
        )
    return findings
