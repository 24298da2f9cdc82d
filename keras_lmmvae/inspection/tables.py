"""Tables of what a model has learned: effects and variance components, in the features' units."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.feature_names import check_feature_names
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.validation import received

__all__ = ["coefficient_covariance", "random_effects_table", "variance_components"]


def random_effects_table(
    model: FittedModel,
    name: str,
    std: bool = False,
    feature_names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A term's effects B, or their deviations; see `LMMVAE.random_effects_table`."""
    model.require_fitted()
    term = model.find_term(name)
    if std and model.posterior == "amortized":
        raise ValueError(
            "The amortized posterior gives no standard deviations of the effects: use "
            "posterior='conjugate'. " + received(posterior=model.posterior)
        )
    values = _effects_in_units(model, term, std)
    columns = _feature_columns(model, feature_names)
    table = values * keras.ops.convert_to_numpy(model.feature_scale)
    levels = term.level_names()
    if table.shape[1] == 1:
        return pd.DataFrame(table[:, 0], _index(levels, term), columns)
    index = pd.MultiIndex.from_product(
        [levels, term.coefficient_names()], names=[term.label, "coefficient"]
    )
    return pd.DataFrame(table.reshape(-1, model.num_features), index, columns)


def _effects_in_units(model: FittedModel, term: RandomEffect, std: bool) -> np.ndarray:
    """Effects as coefficients of the columns as given, `(levels, c, p)`, standardised features.

    A term without levels has values at its places, which stand in the levels' stead.
    """
    effects, basis = model.mixed_model.of(term.label), term.user_basis()
    if std:
        variance = effects.table.level_variance(tf.constant(basis, tf.float32), effects.information)
        values = np.asarray(tf.sqrt(variance * effects.variance_ratio))
    else:
        table = keras.ops.convert_to_numpy(effects.table.effects)
        values = np.asarray(np.einsum("ij,ljf->lif", basis, table))
    return values if term.has_levels else np.swapaxes(values, 0, 1)


def _feature_columns(model: FittedModel, feature_names: Sequence[str] | None) -> list[Any]:
    given = check_feature_names(feature_names, model.num_features)
    return model.feature_names if given is None else list(given)


def variance_components(
    model: FittedModel, feature_names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Variances of effects and noise; see `LMMVAE.variance_components`."""
    model.require_fitted()
    scale = np.square(keras.ops.convert_to_numpy(model.feature_scale))
    rows: dict[str, np.ndarray] = {}
    for term in model.random_effects:
        effects = model.mixed_model.of(term.label)
        variance = keras.ops.convert_to_numpy(effects.effect_variance)
        diagonal = np.diag(coefficient_covariance(model, term.label))
        for name, share in zip(term.component_names(), diagonal, strict=True):
            rows[name] = share * variance * scale
    rows["noise"] = keras.ops.convert_to_numpy(model.noise_variance) * scale
    columns = _feature_columns(model, feature_names)
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def coefficient_covariance(model: FittedModel, name: str) -> pd.DataFrame:
    """The shape `Psi` of a term's prior; see `LMMVAE.coefficient_covariance`."""
    term = model.find_term(name)
    names = term.coefficient_names()
    if len(names) == 1:
        return pd.DataFrame([[1.0]], names, names)
    shape = keras.ops.convert_to_numpy(model.mixed_model.of(name).coefficient_covariance)
    basis = term.user_basis()
    return pd.DataFrame(basis @ shape.astype(np.float64) @ basis.T, names, names)


def _index(levels: list[Any], term: RandomEffect) -> pd.Index:
    if levels and isinstance(levels[0], tuple):
        return pd.MultiIndex.from_tuples(levels, names=term.level_columns())
    return pd.Index(levels, name=term.label)
