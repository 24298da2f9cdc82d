"""`diagnose` makes all checks of a fitted model; `fit` makes those that need no data."""

import warnings
from collections.abc import Iterator
from typing import Any

from keras_lmmvae.diagnostics import checks
from keras_lmmvae.diagnostics.evidence import are_training_rows, collect
from keras_lmmvae.diagnostics.finding import Diagnosis, Finding, LMMVAEWarning
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.validation import check_positive, received

__all__ = ["diagnose", "warn_of_findings"]


def diagnose(model: FittedModel, data: Any, held_out: Any = None, seed: int = 0) -> Diagnosis:
    """Looks for what commonly goes wrong with a variational autoencoder with random effects.

    | check | finds | needs |
    |---|---|---|
    | latent_collapse | latent dimensions without information about the rows | |
    | latent_predicts_group | groups that the latent still predicts | |
    | effects_overfit | effects larger than unseen rows show | conjugate, or held-out rows |
    | error_above_expected | errors above the model's own variances | held-out rows |
    | unseen_levels | held-out rows without effects | held-out rows |
    | term_collapse | a term without variance | conjugate |
    | singleton_levels | a term most of whose levels have one row | |
    | noise_floor | features that are explained fully | a learned noise variance |
    | length_scale_bound | a surface that is flat, or noise | |
    | inducing_points | a surface too rough for its inducing points | |
    | nearly_constant | features with one value in nearly all cells | |

    It passes over the rows three times at most. The thresholds, with their reasons, are in
    `keras_lmmvae.diagnostics.checks`.

    Args:
        model: A fitted `LMMVAE`.
        data: The training rows, in the order they had in `fit`: dict of arrays, or a batched
            dataset of dicts.
        held_out: Optional rows that were not trained on, of the same form.
        seed: Non-negative int, for the permutations that show what chance gives.

    Returns:
        The findings, warnings first. Print them, iterate over them, or take `to_frame()`.

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
        "latent_collapse": checks.check_latent_collapse(training),
        "latent_predicts_group": checks.check_latent_groups(training, seed),
        "nearly_constant": checks.check_nearly_constant(training),
        **_findings_without_data(model),
    }
    skipped = {}
    if held_out is not None:
        unseen = collect(model, held_out, is_crossed=False)
        found["effects_overfit"] = checks.check_effects_overfit(training, unseen, True)
        found["error_above_expected"] = checks.check_held_out_error(training, unseen)
        found["unseen_levels"] = checks.check_unseen_levels(unseen)
    else:
        skipped = dict.fromkeys(("error_above_expected", "unseen_levels"), "no `held_out` rows")
        if model.posterior == "amortized":
            skipped["effects_overfit"] = (
                "no `held_out` rows, and an amortized posterior has no folds"
            )
        elif are_training_rows(model, data):
            unseen = collect(model, data, is_crossed=True)
            found["effects_overfit"] = checks.check_effects_overfit(training, unseen, False)
        else:
            skipped["effects_overfit"] = (
                "no `held_out` rows, and `data` are not the rows of `fit` in the order they had"
            )
    if model.posterior == "amortized":
        skipped["term_collapse"] = "an amortized posterior does not learn effect variances"
    if model.noise_variance_setting is not None:
        skipped["noise_floor"] = "`noise_variance` is given"
    made = tuple(name for name in found if name not in skipped)
    findings = [finding for name in made for finding in found[name]]
    findings.sort(key=lambda finding: finding.severity != "warning")
    return Diagnosis(tuple(findings), made, skipped)


def _findings_without_data(model: FittedModel) -> dict[str, Iterator[Finding]]:
    """Check -> findings of the checks that look at the model alone, which costs nothing."""
    return {
        "term_collapse": checks.check_term_collapse(model),
        "singleton_levels": checks.check_singletons(model),
        "noise_floor": checks.check_noise_floor(model),
        "length_scale_bound": checks.check_length_scales(model),
        "inducing_points": checks.check_inducing_points(model),
    }


def warn_of_findings(model: FittedModel, stacklevel: int) -> None:
    """Warns of findings of the checks without data; `stacklevel` is that of `warnings.warn`."""
    for findings in _findings_without_data(model).values():
        for finding in findings:
            if finding.severity == "warning":
                text = f"{finding.message} {finding.remedy}"
                warnings.warn(text, LMMVAEWarning, stacklevel=stacklevel + 1)
