"""A table of effects: posterior means of all levels, and the design that they rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from keras_lmmvae import design, linalg
from keras_lmmvae.layers.state_layer import StateLayer
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.prior import LevelPrior
from keras_lmmvae.validation import received

__all__ = ["EffectsTable", "Increment"]


@dataclass(frozen=True)
class Increment:
    """What a training step adds to a table. Increments of several replicas may be joined.

    Attributes:
        index: Int tensor `(b, 2)`, fold and level that each row of `change` belongs to; `None`
            where the whole table changes.
        change: Float tensor `(b, m, p)`, or of the shape of the table.
    """

    index: tf.Tensor | None
    change: tf.Tensor


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class EffectsTable(StateLayer):
    """Posterior of the effects of all levels given some rows, by Henderson's equations.

        precision[l, f] = cell_share[l, f] * G[l] / noise_variance[f]
                          + inv(Psi) / effect_variance[f]
        effects[l, :, f] = inv(precision[l, f]) @ (sum of phi * r[f] over the level's rows)
                           / noise_variance[f]

    A table by fold has one such part for each fold of the training rows, on an axis in front.
    Methods take the term's prior and the `Information` of a row, which holds the noise. What rows
    read of a table is the matter of `TableRows`.

    Where cells are missing, features have Gram matrices of their own. They are taken to be
    multiples of a common one, `G[l]`, in which a row counts with the share of its cells that are
    observed. With one basis function, as for intercepts, this is exact.

    Args:
        num_levels: Positive int, levels `L` of the term.
        basis_size: Positive int, `m`.
        num_features: Positive int, `p`.
        by_fold: Whether there is a part for each fold.
        has_design: Whether Gram matrices and counts are kept; without them there are means only.
        has_missing_cells: Whether `cell_share` is kept; without it, it is 1.
    """

    def __init__(
        self,
        num_levels: int,
        basis_size: int,
        num_features: int,
        by_fold: bool = False,
        has_design: bool = True,
        has_missing_cells: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_levels = num_levels
        self.basis_size = basis_size
        self.num_features = num_features
        self.by_fold = by_fold
        self.has_design = has_design
        self.has_missing_cells = has_missing_cells
        self._saved_shapes: tuple[tuple[int, ...], ...] = ()

    def build(self, input_shape: Any = None) -> None:
        folds = (design.NUM_FOLDS,) if self.by_fold else ()
        levels, size = self.num_levels, self.basis_size
        self.effects = self.state("effects", (*folds, levels, size, self.num_features))
        if not self.has_design:
            return
        self.gram = self.state("gram", (*folds, levels, size, size))
        self.count = self.state("count", (*folds, levels))
        if self.has_missing_cells:
            self.cell_share = self.state("cell_share", (*folds, levels, self.num_features), "ones")
        # `refresh` derives these from the Gram matrices and Psi. They are kept because every
        # training step needs them.
        self.eigenvalues = self.state("eigenvalues", (*folds, levels, size))
        if size > 1:
            self.rotation = self.state("rotation", (*folds, levels, size, size))

    def set_design(
        self, gram: tf.Tensor, count: tf.Tensor, prior: LevelPrior, traces: tf.Tensor | None = None
    ) -> None:
        """Takes `Z'Z`, the numbers of rows by level and the traces of the features' `Z'Z`."""
        self.gram.assign(gram)
        self.count.assign(count)
        if self.has_missing_cells:
            total = tf.linalg.trace(gram)[..., None]
            self.cell_share.assign(tf.where(total > 0.0, traces / total, tf.ones_like(traces)))
        self.refresh(prior)

    def traces(self) -> tf.Tensor:
        """Traces of the features' `Z'Z` by level, `(..., levels, p or 1)`."""
        total = tf.linalg.trace(self.gram.value)[..., None]
        return total * self.cell_share.value if self.has_missing_cells else total

    def refresh(self, prior: LevelPrior) -> None:
        """Diagonalises the Gram matrices anew, after a change of them or of Psi."""
        rotation, eigenvalues = linalg.rotate_gram(
            tf.convert_to_tensor(self.gram), tf.convert_to_tensor(prior.coefficient_covariance)
        )
        self.eigenvalues.assign(eigenvalues)
        if self.basis_size > 1:
            self.rotation.assign(rotation)

    # Reading ------------------------------------------------------------------------------

    def rotated_variance(self, information: Information) -> tf.Tensor:
        """Posterior variances of the rotated effects of all levels, `(..., levels, m, p)`."""
        return information.posterior_variance(self.eigenvalues.value, self._shares())

    def level_variance(self, basis: tf.Tensor, information: Information) -> tf.Tensor:
        """Posterior variances of `basis @ effects` of every level, `(levels, c, p)`."""
        variance = self.rotated_variance(information)
        if self.basis_size == 1:
            return tf.square(basis) * variance
        rotated = tf.einsum("cm,lmk->lck", basis, tf.convert_to_tensor(self.rotation))
        return tf.einsum("lck,lkf->lcf", tf.square(rotated), variance)

    def precision_product(
        self, effects: tf.Tensor, prior: LevelPrior, information: Information
    ) -> tf.Tensor:
        """`precision @ effects` of whole tables."""
        of_rows = information.gram_product(self.gram.value, effects, self._shares())
        return of_rows + prior.product(effects)

    def solve(self, scores: tf.Tensor, information: Information) -> tf.Tensor:
        """`inv(precision) @ scores` of whole tables, every level by itself."""
        left = self.left(information)
        along = information.to_axes(scores)
        if self.basis_size == 1:
            return information.from_axes(left * along)
        rotation = tf.convert_to_tensor(self.rotation)
        return information.from_axes(linalg.apply_inverse(rotation, left, along))

    def left(self, information: Information) -> tf.Tensor:
        """One less `kept`, precise also where that is almost 1."""
        return 1.0 / (information.strength(self.eigenvalues.value, self._shares()) + 1.0)

    def kept(self, information: Information) -> tf.Tensor:
        """Share kept of the rotated least-squares effects of all levels, `(..., levels, m, p)`.

        Along the axes of the information, not by feature.
        """
        return information.kept(self.eigenvalues.value, self._shares())

    def _shares(self) -> tf.Tensor | None:
        return self.cell_share.value if self.has_missing_cells else None

    def add(self, increment: Increment) -> None:
        """Adds the increment of a training step."""
        if increment.index is None:
            self.effects.assign_add(increment.change)
        else:
            self.effects.value.scatter_nd_add(increment.index, increment.change)

    # More levels --------------------------------------------------------------------------

    def grown(self, num_levels: int, has_missing_cells: bool, prior: LevelPrior) -> EffectsTable:
        """A copy with room for more levels behind the present ones, or for shares of cells.

        New levels are at the prior, and shares that were not kept are 1.
        """
        sizes = {"num_levels": num_levels, "has_missing_cells": has_missing_cells}
        copy = type(self)(**{**self.get_config(), **sizes})
        copy.build()
        names = ["effects", *(["gram", "count"] if self.has_design else [])]
        if self.has_design and self.has_missing_cells:
            names.append("cell_share")
        axis = 1 if self.by_fold else 0
        for name in names:
            old = tf.convert_to_tensor(getattr(self, name))
            new = num_levels - self.num_levels
            added = [[0, new if at == axis else 0] for at in range(len(old.shape))]
            filler = 1.0 if name == "cell_share" else 0.0
            getattr(copy, name).assign(tf.pad(old, added, constant_values=filler))
        if self.has_design:
            copy.refresh(prior)
        return copy

    def set_last_levels(self, other: EffectsTable, prior: LevelPrior) -> None:
        """Takes effects and design of the last levels from a table of so many levels."""
        axis, first = (1 if self.by_fold else 0), self.num_levels - other.num_levels
        for name in ("effects", "gram", "count", "cell_share"):
            if hasattr(other, name):
                kept = tf.split(getattr(self, name).value, [first, other.num_levels], axis)[0]
                getattr(self, name).assign(tf.concat([kept, getattr(other, name).value], axis))
        self.refresh(prior)

    def load_own_variables(self, store: Any) -> None:
        """Takes the weights of a file.

        Raises:
            ValueError: If they are those of a table of another size.
        """
        expected = [tuple(weight.shape) for weight in self.weights]
        found = tuple(tuple(store[str(number)].shape) for number in range(len(store.keys())))
        # Keras tries a layer that failed once more, at a path where there are no weights.
        self._saved_shapes = found or self._saved_shapes
        if list(self._saved_shapes) != expected:
            raise ValueError(
                f"The weights of '{self.name}' are those of a table of another size. "
                + received(expected=expected, found=list(self._saved_shapes))
            )
        super().load_own_variables(store)
