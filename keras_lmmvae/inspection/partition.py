"""Which part of every feature's variance is the latent's, the terms' and the noise's."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import NULL_CODE
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.inspection.tables import variance_components
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.rows import EFFECTS, Pass, Rows, num_rows
from keras_lmmvae.validation import check_positive, received

__all__ = ["latent_variance", "require_variances", "variance_partition"]

# Draws from the prior that are decoded at once.
_CHUNK = 4096


def variance_partition(
    model: FittedModel, data: Any = None, *, num_samples: int = 10_000
) -> pd.DataFrame:
    """Shares of every feature's variance; see `LMMVAE.variance_partition`."""
    model.require_fitted()
    require_variances(model)
    check_positive("num_samples", num_samples, integer=True, minimum=1)
    pairs = list(model.mixed_model.pairs())
    if data is None:
        latent = latent_variance(model, num_samples)
        shares = [effects.mean_prior_share() for _, effects in pairs]
    else:
        rows = model.pass_over(data)
        total = sum(num_rows(batch) for batch in rows)
        latent = _variance(_decoded_rows(model, rows, -(-num_samples // total)))
        shares = [_mean_prior_share(term, effects, rows) for term, effects in pairs]
    parts = {"latent": latent}
    for (term, effects), share in zip(pairs, shares, strict=True):
        parts[term.label] = share * _numpy(effects.effect_variance)
    parts["noise"] = _numpy(model.noise_variance)
    variances = np.stack(list(parts.values()))
    columns = variance_components(model).columns
    return pd.DataFrame(variances / variances.sum(axis=0), list(parts), columns)


def require_variances(model: FittedModel) -> None:
    """Raises a ValueError if the posterior is amortized: it does not learn variances."""
    if model.posterior == "amortized" and model.random_effects:
        raise ValueError(
            "The amortized posterior does not learn the variances of the effects: use "
            "posterior='conjugate'. " + received(posterior=model.posterior)
        )


def latent_variance(model: FittedModel, num_samples: int) -> np.ndarray:
    """`Var(f(u))` with `u` from its prior, `(p,)`, in squared standardised units."""
    return _variance(_decoded_prior(model, num_samples))


def _decoded_prior(model: FittedModel, num_samples: int) -> Iterator[np.ndarray]:
    """`f(u)` of draws from the prior, in standardised units."""
    for number, start in enumerate(range(0, num_samples, _CHUNK)):
        size = min(_CHUNK, num_samples - start)
        seed = (0 if model.seed is None else model.seed, number)
        latent = tf.random.stateless_normal((size, model.latent_dim), seed)
        yield _numpy(model.networks.decode(latent))


def _decoded_rows(model: FittedModel, rows: Pass, num_draws: int) -> Iterator[np.ndarray]:
    """`f(u)` of draws from the rows' posteriors, in standardised units."""
    for number, batch in enumerate(rows):
        seen = model.infer(batch)
        for draw in range(num_draws):
            seed = (0 if model.seed is None else model.seed, number * num_draws + draw)
            noise = tf.random.stateless_normal(tf.shape(seen.latent_mean), seed)
            yield _numpy(seen.decoded(seen.latent_mean + seen.latent_std * noise))


def _mean_prior_share(term: RandomEffect, effects: LevelEffects, rows: Pass) -> float:
    """Mean of `phi' Psi phi` over the rows that have a level; 0 without any."""
    total, count = np.sum([_prior_share_sums(term, effects, batch) for batch in rows], axis=0)
    return float(total / max(count, 1.0))


def _prior_share_sums(
    term: RandomEffect, effects: LevelEffects, batch: Rows
) -> tuple[float, float]:
    encoded = batch[EFFECTS][term.label]
    has_level = _numpy(encoded["codes"]) != NULL_CODE
    basis = term.basis_of(encoded)
    if basis is None:
        return float(has_level.sum()), float(has_level.sum())
    quadratic = _numpy(effects.prior.quadratic(basis))
    return float(quadratic[has_level].sum()), float(has_level.sum())


def _variance(chunks: Iterator[np.ndarray]) -> np.ndarray:
    """Variances by feature, `(p,)`, of chunks of rows `(b, p)` whose means are near 0."""
    count, first, second = 0, 0.0, 0.0
    for chunk in chunks:
        count += len(chunk)
        first, second = first + chunk.sum(axis=0), second + np.square(chunk).sum(axis=0)
    return np.asarray(second / count - np.square(first / count))


def _numpy(values: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(values), np.float64)
