"""Tables of what a model has learned: effects and variance components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.model.feature_names import check_feature_names
from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.validation import received

__all__ = ["Reporting", "component_names"]


class Reporting(ModelPart):
    """The part of `LMMVAE` that reports its effects and variances, in the features' units."""

    def find_term(self, name: str) -> RandomEffect:
        """The term of that name.

        Raises:
            ValueError: If there is none.
        """
        for term in self.random_effects:
            if term.label == name:
                return term
        raise ValueError(
            f"There is no term '{name}', expected one of "
            f"{[term.label for term in self.random_effects]}. " + received(name=name)
        )

    def random_effects_table(
        self, name: str, std: bool = False, feature_names: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Posterior means of a term's effects B, or their standard deviations.

        Args:
            name: The term's name.
            std: Whether to give posterior standard deviations instead of means.
            feature_names: Optional names of the `p` features. Defaults to those of the model.

        Returns:
            A DataFrame, levels x features; for slopes its index has the levels and the
            coefficients, in the units of time and covariates as given; for a spatial term the
            values of the surface at the inducing points.

        Raises:
            ValueError: If there is no such term, or `std` is asked of an amortized posterior.
        """
        self.require_fitted()
        term = self.find_term(name)
        values = term.effects_in_units(self._standard_deviations(term) if std else None)
        columns = self._feature_columns(feature_names)
        table = values * keras.ops.convert_to_numpy(self.feature_scale)
        levels = term.level_names()
        if table.shape[1] == 1:
            return pd.DataFrame(table[:, 0], _index(levels, term), columns)
        index = pd.MultiIndex.from_product(
            [levels, term.coefficient_names()], names=[term.label, "coefficient"]
        )
        return pd.DataFrame(table.reshape(-1, self.num_features), index, columns)

    def _feature_columns(self, feature_names: Sequence[str] | None) -> list[Any]:
        given = check_feature_names(feature_names, self.num_features)
        return self.feature_names if given is None else list(given)

    def _standard_deviations(self, term: RandomEffect) -> Any:
        if self.posterior == "amortized":
            raise ValueError(
                "The amortized posterior gives no standard deviations of the effects: use "
                "posterior='conjugate'. " + received(posterior=self.posterior)
            )
        return self.effects_noise_variance()

    def variance_components(self, feature_names: Sequence[str] | None = None) -> pd.DataFrame:
        """Variances of the random effects and of the noise.

        Args:
            feature_names: Optional names of the `p` features. Defaults to those of the model.

        Returns:
            A DataFrame, term x feature, in squared units of the features: a row per term
            ("store"), per coefficient of a term with slopes ("patient: t"), and "noise". With
            the amortized posterior the terms' variances are those of the prior, 1 in
            standardised units: it learns none.
        """
        self.require_fitted()
        scale = keras.ops.convert_to_numpy(self.feature_scale) ** 2
        rows: dict[str, np.ndarray] = {}
        for term in self.random_effects:
            variance = keras.ops.convert_to_numpy(term.posterior.effect_variance)
            diagonal = np.diag(self.coefficient_covariance(term.label))
            for name, share in zip(component_names(term), diagonal, strict=True):
                rows[name] = share * variance * scale
        rows["noise"] = keras.ops.convert_to_numpy(self.noise_variance) * scale
        columns = self._feature_columns(feature_names)
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    def coefficient_covariance(self, name: str) -> pd.DataFrame:
        """The shape `Psi` of a term's prior: covariance of its coefficients, features apart.

            Cov(B[l, :, f]) = effect_variance[f] * Psi

        Args:
            name: The term's name.

        Returns:
            A DataFrame, coefficients x coefficients, in the units of the columns as given; the
            1 x 1 identity for terms with one coefficient and for surfaces.
        """
        term = self.find_term(name)
        names = term.coefficient_names()
        if len(names) == 1:
            return pd.DataFrame([[1.0]], names, names)
        shape = keras.ops.convert_to_numpy(term.posterior.coefficient_covariance).astype(np.float64)
        basis = term.user_basis()
        return pd.DataFrame(basis @ shape @ basis.T, names, names)


def component_names(term: RandomEffect) -> list[str]:
    """The rows of `variance_components` that are a term's."""
    names = term.coefficient_names()
    return [term.label] if len(names) == 1 else [f"{term.label}: {name}" for name in names]


def _index(levels: list[Any], term: RandomEffect) -> pd.Index:
    if levels and isinstance(levels[0], tuple):
        return pd.MultiIndex.from_tuples(levels, names=term.level_columns())
    return pd.Index(levels, name=term.label)
