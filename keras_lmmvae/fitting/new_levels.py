"""Levels that training did not see, given their own rows and everything that training found."""

from __future__ import annotations

import tensorflow as tf

from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE
from keras_lmmvae.fitting.conjugate import ConjugateFit
from keras_lmmvae.mixed_model.mixed_model import MixedModel
from keras_lmmvae.rows import EFFECTS, FEATURES, Pass, Rows

__all__ = ["fit_new_levels"]


def fit_new_levels(fit: ConjugateFit, rows: Pass) -> None:
    """Solves for the effects of levels that the terms know and the tables do not yet.

        x[i] - Z[i] @ B = f(u[i]) + new Z[i] @ new B + e[i]

    with the effects `B` of the known levels fixed, as are networks and variances. So a row of
    known levels only, which may be one of the training rows, changes nothing. The new levels of
    all terms are solved for at once and jointly; their tables follow those of the known levels.

    Args:
        fit: The fit of the model; its mixed model gets the new levels.
        rows: Rows of the new levels, with folds.
    """
    mixed_model = fit.mixed_model
    new = mixed_model.of_new_levels()
    if not new.terms:
        return
    parts = (new, fit.networks, fit.likelihood, fit.latent_prior, fit.kl_weight)
    ConjugateFit(*parts).update(rows.map(lambda batch: _unexplained(mixed_model, batch)), None)
    mixed_model.append(new)


def _unexplained(mixed_model: MixedModel, rows: Rows) -> Rows:
    """Rows less the effects of known levels; the codes of the new levels start at 0."""
    known, new = {}, {}
    for term, effects in mixed_model.pairs():
        encoded, size = rows[EFFECTS][term.label], effects.num_levels
        is_new = encoded["codes"] >= size
        known[term.label] = {**encoded, "codes": tf.where(is_new, UNKNOWN_CODE, encoded["codes"])}
        new[term.label] = {**encoded, "codes": tf.where(is_new, encoded["codes"] - size, NULL_CODE)}
    explained = mixed_model.contribution({**rows, EFFECTS: known})
    return {**rows, FEATURES: rows[FEATURES] - explained, EFFECTS: new}
