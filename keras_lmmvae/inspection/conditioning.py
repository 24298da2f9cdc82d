"""A few rows of a level, after training: its effects given them, without any update."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import UNKNOWN_CODE
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.linalg import LevelPosterior
from keras_lmmvae.mixed_model.mixed_model import Parts
from keras_lmmvae.rows import EFFECTS, FEATURES, Rows
from keras_lmmvae.validation import received

__all__ = ["Conditioned", "condition", "condition_on_support"]


@dataclass(frozen=True)
class Conditioned:
    """What `condition` says of a level given `n` of its rows, in the features' units.

    Attributes:
        effects: Posterior mean of the level's effects, array `(m, p)`, coefficients of the
            columns as given; for a surface its values at the rows, `(n, p)`.
        standard_deviation: Posterior standard deviations of `effects`, the same shape.
        reconstruction: Reconstructions of the rows with these effects, array `(n, p)`.
    """

    effects: np.ndarray
    standard_deviation: np.ndarray
    reconstruction: np.ndarray


def condition(model: FittedModel, rows: Any, on: str) -> Conditioned:
    """Effects of a level given a few of its rows; see `LMMVAE.condition`."""
    model.require_fitted()
    term = model.find_term(on)
    if model.posterior == "amortized":
        raise ValueError(
            "Only the conjugate posterior has effects given rows. "
            + received(posterior=model.posterior)
        )
    encoded = model.encode_data(rows)
    observed = encoded.get("observed")
    x = encoded[FEATURES]
    cells = tf.ones(x.shape, tf.float64) if observed is None else tf.cast(observed, tf.float64)
    basis = term.basis_of(encoded[EFFECTS][term.label])
    basis = tf.ones((x.shape[0], 1), tf.float64) if basis is None else tf.cast(basis, tf.float64)
    parts = model.mixed_model.parts(encoded)
    posterior = condition_on_support(
        model, term, encoded, parts, basis[None], cells[None], _single_code(term, encoded)
    )
    shown = term.user_basis() if term.has_levels else basis.numpy()
    scale = np.asarray(model.feature_scale, np.float64)
    covariance = posterior.covariance[0].numpy()
    variance = np.einsum("ci,fij,cj->cf", shown, covariance, shown, optimize=True)
    own = tf.cast(tf.matmul(basis, posterior.mean[0]), tf.float32)
    return Conditioned(
        effects=shown @ posterior.mean[0].numpy() * scale,
        standard_deviation=np.sqrt(np.maximum(variance, 0.0)) * scale,
        reconstruction=np.asarray(
            model.to_units(model.infer(encoded, {**parts, term.label: own}).mean)
        ),
    )


def condition_on_support(
    model: FittedModel,
    term: RandomEffect,
    rows: Rows,
    parts: Parts,
    basis: tf.Tensor,
    cells: tf.Tensor,
    code: int,
) -> LevelPosterior:
    """Posterior of a term's effects for `b` levels, given `s` rows of each."""
    others = {label: part for label, part in parts.items() if label != term.label}

    def values_of(effects: tf.Tensor) -> tf.Tensor:
        own = tf.reshape(tf.cast(effects, tf.float32), (-1, model.num_features))
        seen = model.infer(rows, {**others, term.label: own})
        values = seen.targets(model.latent_prior).values + own - seen.contribution
        return tf.reshape(values, tf.shape(effects))

    return model.mixed_model.condition(term.label, basis, cells, values_of, code)


def _single_code(term: RandomEffect, rows: Rows) -> int:
    """The code that all rows share."""
    codes = np.unique(np.asarray(rows[EFFECTS][term.label]["codes"]))
    if len(codes) != 1 or codes[0] < UNKNOWN_CODE:
        raise ValueError(
            f"The rows to condition on must be of one level of '{term.label}', none of them with "
            "a missing key. " + received(codes=codes.tolist())
        )
    return int(codes[0])
