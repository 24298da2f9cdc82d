"""`diagnose`: all checks of a fitted model, and the few that `fit` makes itself."""

from __future__ import annotations

import warnings
from typing import Any

from keras_lmmvae.diagnostics import model_checks, row_checks
from keras_lmmvae.diagnostics.evidence import are_training_rows, collect
from keras_lmmvae.diagnostics.finding import Diagnosis, Finding, LMMVAEWarning
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.validation import check_positive, received

__all__ = ["diagnose", "findings_without_data", "warn_of_findings"]

_MODEL_CHECKS = {
    "term_collapse": model_checks.check_term_collapse,
    "singleton_levels": model_checks.check_singletons,
    "noise_floor": model_checks.check_noise_floor,
    "length_scale_bound": model_checks.check_length_scales,
}


def diagnose(model: FittedModel, data: Any, held_out: Any = None, seed: int = 0) -> Diagnosis:
    """Looks for what commonly goes wrong with a variational autoencoder with random effects.

    | check | finds | needs |
    |---|---|---|
    | latent_collapse | latent dimensions that say nothing of the row | |
    | latent_predicts_group | groups that the latent still tells | |
    | effects_overfit | effects larger than unseen rows bear out | conjugate, or held-out rows |
    | error_above_expected | errors above the model's own variances | held-out rows |
    | unseen_levels | held-out rows without effects | held-out rows |
    | term_collapse | a term without variance | conjugate |
    | singleton_levels | a term most of whose levels have one row | |
    | noise_floor | features that are explained fully | a learned noise variance |
    | length_scale_bound | a surface that is flat, or noise | |
    | nearly_constant | features with one value in nearly all cells | |

    Three passes over the rows at most. The thresholds, with their reasons, are in
    `keras_lmmvae.diagnostics.thresholds`.

    Args:
        model: A fitted `LMMVAE`.
        data: The training rows, in the order they had in `fit`: dict of arrays, or a batched
            dataset of dicts.
        held_out: Optional rows that were not trained on, of the same form.
        seed: Non-negative int, of the permutations that say what chance gives.

    Returns:
        The findings, warnings first: print it, iterate over it, or take `to_frame()`.

    Raises:
        ValueError: If `model` is no `LMMVAE` or not fitted, or on bad data.

    Example:
        >>> import numpy as np
        >>> import keras_lmmvae as lmm
        >>> rng = np.random.default_rng(0)
        >>> store, latent = rng.integers(0, 20, size=400), rng.normal(size=(400, 1))
        >>> x = rng.normal(size=(20, 5))[store] + latent + 0.5 * rng.normal(size=(400, 5))
        >>> data = {"x": x, "store": store}
        >>> model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(16,), seed=0)
        >>> model.adapt(data)
        >>> model.compile(optimizer="adam")
        >>> history = model.fit(data, epochs=10, batch_size=50, verbose=0)
        >>> lmm.diagnose(model, data).is_healthy
        True
    """
    if not callable(getattr(model, "require_fitted", None)):
        raise ValueError("`diagnose` looks at an LMMVAE. " + received(model=type(model).__name__))
    check_positive("seed", seed, integer=True)
    model.require_fitted()
    training = collect(model, data, is_crossed=False)
    found = {
        "latent_collapse": row_checks.check_latent_collapse(training),
        "latent_predicts_group": row_checks.check_latent_groups(training, seed),
        "nearly_constant": row_checks.check_nearly_constant(training),
        **findings_without_data(model),
    }
    skipped = {}
    if held_out is not None:
        unseen = collect(model, held_out, is_crossed=False)
        found["effects_overfit"] = row_checks.check_effects_overfit(training, unseen, True)
        found["error_above_expected"] = row_checks.check_held_out_error(training, unseen)
        found["unseen_levels"] = row_checks.check_unseen_levels(unseen)
    else:
        skipped = dict.fromkeys(("error_above_expected", "unseen_levels"), "no `held_out` rows")
        if model.posterior == "amortized":
            skipped["effects_overfit"] = (
                "no `held_out` rows, and an amortized posterior has no folds"
            )
        elif are_training_rows(model, data):
            unseen = collect(model, data, is_crossed=True)
            found["effects_overfit"] = row_checks.check_effects_overfit(training, unseen, False)
        else:
            skipped["effects_overfit"] = (
                "no `held_out` rows, and `data` are not the rows of `fit` in the order they had"
            )
    if model.posterior == "amortized":
        del found["term_collapse"]
        skipped["term_collapse"] = "an amortized posterior does not learn effect variances"
    if model.noise_variance_setting is not None:
        del found["noise_floor"]
        skipped["noise_floor"] = "`noise_variance` is given"
    findings = [finding for group in found.values() for finding in group]
    findings.sort(key=lambda finding: finding.severity != "warning")
    return Diagnosis(tuple(findings), tuple(found), skipped)


def findings_without_data(model: FittedModel) -> dict[str, list[Finding]]:
    """Check -> findings, of the checks that cost nothing: they look at the model alone."""
    return {name: check(model) for name, check in _MODEL_CHECKS.items()}


def warn_of_findings(model: FittedModel, stacklevel: int) -> None:
    """Warns of what the checks without data find, notes left out.

    Args:
        model: A fitted model.
        stacklevel: As of `warnings.warn` in the caller.
    """
    for findings in findings_without_data(model).values():
        for finding in findings:
            if finding.severity == "warning":
                text = f"{finding.message} {finding.remedy}"
                warnings.warn(text, LMMVAEWarning, stacklevel=stacklevel + 1)
