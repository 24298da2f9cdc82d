"""State of one random-effects term: its tables of effects, designs and prior variances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import keras
import tensorflow as tf

from keras_lmmvae import linalg

__all__ = ["NUM_FOLDS", "EffectTables"]

NUM_FOLDS = 2


class EffectTables(keras.layers.Layer):
    """The weights of a term, none of them trained by gradients.

    `effects`, `(L, m, p)`, is the table for new rows. `fold_effects`, `(2 L, m, p)`, holds one
    table for each fold of the training rows, one behind the other, `fold_gram` and
    `fold_count` their designs. See `ConjugatePosterior` for what they mean.

    Args:
        num_levels: Positive int, levels `L` of the term.
        basis_size: Positive int, basis size `m`.
        num_features: Positive int, `p`.
        learn_coefficient_covariance: Whether `Psi`, `(m, m)`, is learned; else it stays
            the identity.
        has_folds: Whether the folds' tables are kept; without them only `effects` are.
    """

    def __init__(
        self,
        num_levels: int,
        basis_size: int,
        num_features: int,
        learn_coefficient_covariance: bool = False,
        has_folds: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(trainable=False, dtype="float32", **kwargs)
        self.num_levels = num_levels
        self.basis_size = basis_size
        self.num_features = num_features
        self.learn_coefficient_covariance = learn_coefficient_covariance
        self.has_folds = has_folds

    def build(self, input_shape: Any = None) -> None:
        levels, size, width = self.num_levels, self.basis_size, self.num_features

        def state(name: str, shape: tuple[int, ...], initializer: Any = "zeros") -> keras.Variable:
            return self.add_weight(
                name=name, shape=shape, initializer=initializer, trainable=False, autocast=False
            )

        self.effects = state("effects", (levels, size, width))
        self.effect_variance = state("effect_variance", (width,), "ones")
        self.coefficient_covariance = state(
            "coefficient_covariance", (size, size), keras.initializers.Identity()
        )
        if self.has_folds:
            self._build_folds(state)
        self.built = True

    def _build_folds(self, state: Callable[..., keras.Variable]) -> None:
        levels, size, width = self.num_levels, self.basis_size, self.num_features
        self.gram = state("gram", (levels, size, size))
        self.count = state("count", (levels,))
        self.fold_effects = state("fold_effects", (NUM_FOLDS * levels, size, width))
        self.fold_gram = state("fold_gram", (NUM_FOLDS * levels, size, size))
        self.fold_count = state("fold_count", (NUM_FOLDS * levels,))
        # Joint over block-wise variance of the effects, where terms share rows; 1 for one term.
        self.variance_inflation = state("variance_inflation", (), "ones")
        # Derived from the Gram matrices and Psi by `refresh`; kept because a step needs them.
        self.eigenvalues = state("eigenvalues", (levels, size))
        self.fold_eigenvalues = state("fold_eigenvalues", (NUM_FOLDS * levels, size))
        if size > 1:
            self.rotation = state("rotation", (levels, size, size))
            self.fold_rotation = state("fold_rotation", (NUM_FOLDS * levels, size, size))

    def grown(self, num_levels: int) -> Self:
        """A copy with more levels; the new ones are at the prior."""
        copy = type(self)(
            num_levels,
            self.basis_size,
            self.num_features,
            self.learn_coefficient_covariance,
            self.has_folds,
            name=self.name,
        )
        copy.build()
        for name in ("effect_variance", "coefficient_covariance"):
            getattr(copy, name).assign(getattr(self, name))
        copy.variance_inflation.assign(self.variance_inflation)

        def padded(values: tf.Tensor) -> tf.Tensor:
            rest = [[0, num_levels - self.num_levels]] + [[0, 0]] * (len(values.shape) - 1)
            return tf.pad(values, rest)

        for name in ("effects", "gram", "count"):
            getattr(copy, name).assign(padded(tf.convert_to_tensor(getattr(self, name))))
        for name in ("fold_effects", "fold_gram", "fold_count"):
            parts = tf.split(tf.convert_to_tensor(getattr(self, name)), NUM_FOLDS)
            getattr(copy, name).assign(tf.concat([padded(part) for part in parts], axis=0))
        copy.refresh()
        return copy

    def own_codes(self, codes: tf.Tensor, fold: tf.Tensor) -> tf.Tensor:
        """Rows of the fold tables that a data row updates, `(b,)`."""
        return tf.where(codes >= 0, codes + fold * self.num_levels, codes)

    def other_codes(self, codes: tf.Tensor, fold: tf.Tensor) -> tf.Tensor:
        """Rows of the fold tables that a data row reads: the fold it is not part of."""
        return self.own_codes(codes, 1 - fold)

    def set_design(self, fold_gram: tf.Tensor, fold_count: tf.Tensor) -> None:
        """Takes `Z'Z` and the row counts of the training rows, by fold and level."""
        self.fold_gram.assign(fold_gram)
        self.fold_count.assign(fold_count)
        self.gram.assign(fold_gram[: self.num_levels] + fold_gram[self.num_levels :])
        self.count.assign(fold_count[: self.num_levels] + fold_count[self.num_levels :])
        self.refresh()

    def refresh(self) -> None:
        """Recomputes rotations and eigenvalues after a change of the Gram matrices or Psi."""
        for folds in (False, True):
            gram = self.fold_gram if folds else self.gram
            rotation, eigenvalues = linalg.rotate_gram(
                tf.convert_to_tensor(gram), tf.convert_to_tensor(self.coefficient_covariance)
            )
            (self.fold_eigenvalues if folds else self.eigenvalues).assign(eigenvalues)
            if self.basis_size > 1:
                self.rotations(folds).assign(rotation)

    def served_variables(self) -> list[keras.Variable]:
        """Variables that posterior means and variances of new rows are computed from."""
        variables = [self.effects, self.effect_variance, self.coefficient_covariance]
        if not self.has_folds:
            return variables
        variables += [self.eigenvalues, self.variance_inflation]
        return [*variables, self.rotation] if self.basis_size > 1 else variables

    def rotations(self, folds: bool) -> keras.Variable:
        """Rotations of the folds' tables, or of the common one."""
        return self.fold_rotation if folds else self.rotation

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "num_levels": self.num_levels,
            "basis_size": self.basis_size,
            "num_features": self.num_features,
            "learn_coefficient_covariance": self.learn_coefficient_covariance,
            "has_folds": self.has_folds,
        }
