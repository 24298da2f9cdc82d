"""Log likelihood, AIC and BIC of a model that is a linear mixed model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.mixed_model.marginal_likelihood import marginal_likelihood
from keras_lmmvae.rows import Pass, with_weights
from keras_lmmvae.validation import received

__all__ = ["ALL_FEATURES", "information_criteria", "shared_parameters"]

ALL_FEATURES = "(all)"
"""The row of a table that stands for all features together."""


def information_criteria(
    model: FittedModel, data: Any, method: str = "reml", sample_weight: Any = None
) -> pd.DataFrame:
    """Log likelihood, AIC and BIC; see `LMMVAE.information_criteria`."""
    if method not in ("reml", "ml"):
        raise ValueError(
            "Received an invalid value for `method`, expected 'reml' or 'ml'. "
            + received(method=method)
        )
    _require_linear_mixed_model(model)
    rows = Pass(with_weights(model.encode_data(data), sample_weight))
    noise, scale = _numpy(model.noise_variance), _numpy(model.feature_scale)
    found = marginal_likelihood(model.mixed_model.pairs(), rows, noise)
    # A density over `n` numbers, or over the `n - 1` that are free of the intercept.
    if method == "reml":
        likelihood = found.restricted - (found.cells - 1.0) * np.log(scale)
    else:
        likelihood = found.full - found.cells * np.log(scale)
    own = 1 + int(model.noise_variance_setting is None) + len(model.random_effects)
    shared = shared_parameters(model)
    penalty = own * np.log(found.cells)
    total_penalty = penalty.sum() + shared * np.log(found.cells.sum())
    likelihood = np.append(likelihood, likelihood.sum())
    parameters = np.append(np.full(len(scale), own), len(scale) * own + shared)
    table = {
        "log_likelihood": likelihood,
        "parameters": parameters,
        "aic": 2.0 * parameters - 2.0 * likelihood,
        "bic": np.append(penalty, total_penalty) - 2.0 * likelihood,
    }
    return pd.DataFrame(table, [*model.feature_names, ALL_FEATURES])


def shared_parameters(model: FittedModel) -> int:
    """Number of learned parameters that all features share: of `Psi`, and length scales."""
    total = 0
    for term in model.random_effects:
        if term.learn_coefficient_covariance:
            total += term.basis_size * (term.basis_size + 1) // 2 - 1
        total += term.has_learned_basis
    return total


def _require_linear_mixed_model(model: FittedModel) -> None:
    """Raises a ValueError unless the model is a linear mixed model fitted by REML."""
    model.require_fitted()
    if model.posterior == "amortized":
        raise ValueError(
            "The amortized posterior does not estimate variances by REML: use "
            "posterior='conjugate'. " + received(posterior=model.posterior)
        )
    in_use = _numpy(model.networks.in_use)[0]
    if in_use:
        raise ValueError(
            "The likelihood has a closed form for a linear mixed model only, without networks: "
            "fit with `epochs=0`; `log_likelihood` is a lower bound for a model with networks. "
            + received(networks_in_use=bool(in_use))
        )
    if model.effects_kl_weight != 1.0:
        raise ValueError(
            "The variances are REML's only with `effects_kl_weight=1`. "
            + received(effects_kl_weight=model.effects_kl_weight)
        )


def _numpy(weight: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(weight), np.float64)
