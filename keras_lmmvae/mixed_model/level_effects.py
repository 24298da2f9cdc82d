"""The effects of one term's levels: their prior, and their posterior with and without folds."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.layers.state_layer import StateLayer
from keras_lmmvae.linalg import eigh
from keras_lmmvae.mixed_model.effects_table import EffectsTable
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.prior import LevelPrior

__all__ = ["LevelEffects"]


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class LevelEffects(StateLayer):
    """What a mixed model knows of one term.

    The training rows are split into two folds, which are half-samples. A row reads the effects
    that the *other* fold gave (out-of-fold), so that no row sees itself in them, and updates those
    of its own fold. New rows read the table that all rows gave.

    Args:
        num_levels: Positive int, levels `L` of the term.
        basis_size: Positive int, `m`.
        num_features: Positive int, `p`.
        learn_coefficient_covariance: Whether `Psi` is learned.
        is_amortized: Whether the effects are means of codes: then there are no folds.
        num_aggregates: Positive int, levels that codes are averaged over.
        has_missing_cells: Whether the tables keep the shares of observed cells.

    Attributes:
        prior: The `LevelPrior`.
        table: The `EffectsTable` that new rows read.
        folds: The `EffectsTable` by fold.
        signal, axes: Weights `(p,)` and `(p, p)`; see `information`.
        variance_ratio: Weight `(p,)`, posterior variance of the effects with the other terms and
            the intercept unknown too, over that with them known.
        effective_parameters: Weight `(p,)`; see `EffectiveParameters`.
        aggregate_count: Weight `(aggregates,)`, rows that codes are averaged over.

    References:
        - Henderson, C. R. (1975), Best linear unbiased estimation and prediction.
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.
    """

    def __init__(
        self,
        num_levels: int,
        basis_size: int,
        num_features: int,
        learn_coefficient_covariance: bool = False,
        is_amortized: bool = False,
        num_aggregates: int = 0,
        has_missing_cells: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_levels = num_levels
        self.basis_size = basis_size
        self.num_features = num_features
        self.learn_coefficient_covariance = learn_coefficient_covariance
        self.is_amortized = is_amortized
        self._known_axes: bool | None = None
        self.num_aggregates = num_aggregates
        self.has_missing_cells = has_missing_cells
        sizes = (num_levels, basis_size, num_features)
        self.prior = LevelPrior(*sizes[1:], learn_coefficient_covariance, name="prior")
        options = {"has_design": not is_amortized, "has_missing_cells": has_missing_cells}
        self.table = EffectsTable(*sizes, **options, name="table")
        if not is_amortized:
            self.folds = EffectsTable(*sizes, by_fold=True, **options, name="folds")

    @classmethod
    def of(
        cls, term: RandomEffect, num_features: int, is_amortized: bool, has_missing_cells: bool
    ) -> LevelEffects:
        """The effects of an adapted term, built."""
        effects = cls(
            term.num_levels,
            term.basis_size,
            num_features,
            term.learn_coefficient_covariance,
            is_amortized,
            term.num_aggregates,
            has_missing_cells,
            name=term.name,
        )
        effects.build()
        return effects

    def build(self, input_shape: Any = None) -> None:
        self.prior.build()
        self.table.build()
        if self.is_amortized:
            self.aggregate_count = self.state("aggregate_count", (self.num_aggregates,))
            return
        self.folds.build()
        self.variance_ratio = self.state("variance_ratio", (self.num_features,), "ones")
        self.effective_parameters = self.state("effective_parameters", (self.num_features,))
        self.signal = self.state("signal", (self.num_features,), "ones")
        self.axes = self.state("axes", (self.num_features,) * 2, keras.initializers.Identity())

    @property
    def effect_variance(self) -> keras.Variable:
        """Prior variances of an effect, `(p,)`."""
        return self.prior.effect_variance

    @property
    def coefficient_covariance(self) -> keras.Variable:
        """`Psi`, `(m, m)`."""
        return self.prior.coefficient_covariance

    def set_design(
        self,
        gram: tf.Tensor,
        count: tf.Tensor,
        traces: tf.Tensor | None = None,
        earlier_gram: tf.Tensor | float = 0.0,
        earlier_traces: tf.Tensor | float = 0.0,
    ) -> None:
        """Takes `Z'Z`, numbers of rows and traces of the features' `Z'Z`, by fold and level."""
        known = None if traces is None else traces + earlier_traces
        self.folds.set_design(gram + earlier_gram, count, self.prior, known)
        if traces is not None:
            known = tf.reduce_sum(traces, axis=0) + earlier_traces
        self.table.set_design(
            tf.reduce_sum(gram, axis=0) + earlier_gram,
            tf.reduce_sum(count, axis=0),
            self.prior,
            known,
        )

    @property
    def information(self) -> Information:
        """What a row tells of the effects, as in the last solution of the equations."""
        # A graph may outlive the axes of now.
        is_plain = tf.executing_eagerly() and self._has_features_for_axes
        axes = None if is_plain else self.axes.value
        return Information(self.effect_variance.value, self.signal.value, axes)

    def set_information(self, precision: np.ndarray) -> None:
        """Takes the mean precision of a row's residuals; see `Information`.

        Args:
            precision: Float array `(p, p)`, or its diagonal `(p,)` if it has nothing else.
        """
        variance = np.asarray(self.effect_variance, np.float64)
        if precision.ndim == 2 and np.any(precision != np.diag(np.diag(precision))):
            deviation = np.sqrt(variance)
            signal, axes = eigh(deviation[:, None] * precision * deviation)
            self._set_axes(axes)
        else:
            signal = variance * (precision if precision.ndim == 1 else np.diag(precision))
            if not self._has_features_for_axes:
                self._set_axes(np.eye(self.num_features))
        self.signal.assign(np.maximum(signal, 0.0))

    def _set_axes(self, axes: np.ndarray) -> None:
        self.axes.assign(axes)
        self._known_axes = None

    @property
    def _has_features_for_axes(self) -> bool:
        """Whether the axes are the features; what was found once is kept, for many features."""
        if self._known_axes is None:
            axes = np.asarray(self.axes)
            is_diagonal = np.count_nonzero(axes) == len(axes)
            self._known_axes = is_diagonal and bool((np.diag(axes) == 1.0).all())
        return self._known_axes

    def load_own_variables(self, store: Any) -> None:
        """Takes the weights of a file."""
        self._known_axes = None
        super().load_own_variables(store)

    def pool(self) -> None:
        """Sets the table for new rows to the posterior mean given both folds.

        precision @ B = precision_1 @ B_1 + precision_2 @ B_2
        """
        effects = tf.convert_to_tensor(self.folds.effects)
        scores = self.folds.precision_product(effects, self.prior, self.information)
        self.table.effects.assign(self.table.solve(tf.reduce_sum(scores, axis=0), self.information))

    def set_prior(
        self, effect_variance: np.ndarray, coefficient_covariance: np.ndarray | None
    ) -> None:
        """Changes the prior, rows telling what they did. The effects stay, until solved anew."""
        precision = self.information.precision()
        self.prior.assign(effect_variance, coefficient_covariance)
        self.set_information(precision)
        if coefficient_covariance is not None:
            self.folds.refresh(self.prior)
            self.table.refresh(self.prior)

    def mean_prior_share(self) -> float:
        """Prior variance of the average row's contribution, over `effect_variance`."""
        total = tf.einsum("lij,ij->", self.table.gram, self.coefficient_covariance)
        return max(float(total / tf.maximum(tf.reduce_sum(self.table.count), 1e-6)), 1e-6)

    def row_counts(self) -> np.ndarray:
        """Training rows of every level, or of every aggregate, float `(levels,)`."""
        count = self.aggregate_count if self.is_amortized else self.table.count
        return np.asarray(keras.ops.convert_to_numpy(count))

    def served_variables(self) -> list[keras.Variable]:
        """Weights that an answer to a request reads."""
        variables = [self.table.effects, self.effect_variance, self.coefficient_covariance]
        if self.is_amortized:
            return variables
        variables += [self.table.eigenvalues, self.variance_ratio, self.signal, self.axes]
        if self.has_missing_cells:
            variables.append(self.table.cell_share)
        if self.num_levels == 1:  # New rows of a surface are added to what it knows.
            variables += [self.table.gram, self.table.count]
        return [*variables, self.table.rotation] if self.basis_size > 1 else variables

    def copied(self, count: int) -> LevelEffects:
        """Effects of so many copies of the features, at 0, with the same design and prior."""
        copy = type(self)(**{**self.get_config(), "num_features": count * self.num_features})
        copy.build()
        folds, traces = self.folds, None
        if self.has_missing_cells:
            traces = tf.tile(folds.traces(), (1, 1, count))
        copy.set_design(folds.gram.value, folds.count.value, traces)
        copy.set_prior(np.tile(self.effect_variance, count), self.coefficient_covariance.value)
        return copy

    def of_other_levels(self, num_levels: int) -> LevelEffects:
        """Effects of so many other levels of the same population: with this prior, at 0."""
        other = type(self)(**{**self.get_config(), "num_levels": num_levels})
        other.build()
        other.prior.assign(self.effect_variance.value, self.coefficient_covariance.value)
        return other

    def followed_by(self, other: LevelEffects) -> LevelEffects:
        """These levels, unchanged, and those of `of_other_levels` behind them."""
        has_missing_cells = self.has_missing_cells or other.has_missing_cells
        joined = self.grown(self.num_levels + other.num_levels, has_missing_cells)
        joined.table.set_last_levels(other.table, self.prior)
        joined.folds.set_last_levels(other.folds, self.prior)
        return joined

    def grown(self, num_levels: int, has_missing_cells: bool = False) -> LevelEffects:
        """A copy with room for more levels or for shares of cells; see `EffectsTable.grown`."""
        has_missing_cells |= self.has_missing_cells
        sizes = {"num_levels": num_levels, "has_missing_cells": has_missing_cells}
        copy = type(self)(**{**self.get_config(), **sizes})
        copy.prior = self.prior
        copy.table = self.table.grown(num_levels, has_missing_cells, self.prior)
        copy.folds = self.folds.grown(num_levels, has_missing_cells, self.prior)
        copy.variance_ratio = self.variance_ratio
        copy.effective_parameters = self.effective_parameters
        copy.signal, copy.axes = self.signal, self.axes
        copy.built = True
        return copy
