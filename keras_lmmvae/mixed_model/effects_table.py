"""A table of effects: posterior means of all levels, and the design that they rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae import design, linalg
from keras_lmmvae.layers.state_layer import StateLayer
from keras_lmmvae.mixed_model.prior import LevelPrior
from keras_lmmvae.validation import received

__all__ = ["EffectsTable", "Increment"]

tfd = tfp.distributions


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
    Methods take the levels of rows as `codes`, int `(b,)`, negative for none; their basis vectors
    as `basis`, `(b, m)`, or `None` for ones; the fold whose part each row reads as `fold`, int
    `(b,)`; the term's prior; and the noise variances, `(p,)`. `residual` of a training step is
    `x - f(u) - Z B` with the effects of the own fold, times the weights of the cells, and
    `weights` are the rows' shares of their levels' counts.

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

    def product(
        self, codes: tf.Tensor, basis: tf.Tensor | None, fold: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The rows' effects `Z @ B`, `(b, p)`; see `design.product`."""
        return design.product(self.effects.value, codes, basis, fold)

    def _rows(self, weight: Any, codes: tf.Tensor, fold: tf.Tensor | None) -> tf.Tensor:
        """What a weight holds for the levels of rows; of level 0 for rows without one."""
        return design.level_rows(weight.value, codes, fold)

    def _variance(self, prior: LevelPrior, noise_variance: tf.Tensor) -> tf.Tensor:
        """Posterior variances of the rotated effects of all levels, `(..., levels, m, p)`."""
        share = self.cell_share.value if self.has_missing_cells else None
        variance = prior.effect_variance.value
        return linalg.posterior_variance(self.eigenvalues.value, noise_variance, variance, share)

    def _variance_at(
        self,
        codes: tf.Tensor,
        fold: tf.Tensor | None,
        prior: LevelPrior,
        noise_variance: tf.Tensor,
    ) -> tf.Tensor:
        """The same for the levels of rows, `(b, m, p)`."""
        eigenvalues = self._rows(self.eigenvalues, codes, fold)
        share = self._rows(self.cell_share, codes, fold) if self.has_missing_cells else None
        variance = prior.effect_variance.value
        return linalg.posterior_variance(eigenvalues, noise_variance, variance, share)

    def row_variance(
        self,
        codes: tf.Tensor,
        basis: tf.Tensor | None,
        prior: LevelPrior,
        noise_variance: tf.Tensor,
        fold: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Posterior variance of a row's `Z @ B`, `phi' inv(precision) phi`.

        Returns:
            Float tensor `(b, p)`, variances; 0 for negative codes.
        """
        if self.num_levels == 1 and basis is not None and self.basis_size > 1:
            return self._row_variance_of_one_level(codes, basis, prior, noise_variance, fold)
        variance = self._variance_at(codes, fold, prior, noise_variance)
        if basis is None:
            result = variance[:, 0]
        else:
            if self.basis_size > 1:
                rotation = self._rows(self.rotation, codes, fold)
                basis = tf.linalg.matvec(rotation, basis, transpose_a=True)
            result = tf.reduce_sum(tf.square(basis)[:, :, None] * variance, axis=1)
        return tf.where(codes[:, None] >= 0, result, tf.zeros_like(result))

    def _row_variance_of_one_level(
        self,
        codes: tf.Tensor,
        basis: tf.Tensor,
        prior: LevelPrior,
        noise_variance: tf.Tensor,
        fold: tf.Tensor | None,
    ) -> tf.Tensor:
        """The same for a surface, without a rotation for every row."""
        size = self.basis_size
        variance = self._variance(prior, noise_variance)
        variance = tf.reshape(variance, (-1, size, self.num_features))  # (t, m, p)
        rotation = tf.reshape(self.rotation.value, (-1, size, size))
        squares = tf.square(tf.einsum("bm,tmk->btk", basis, rotation))
        part = tf.zeros_like(codes) if fold is None else fold
        indicator = tf.one_hot(tf.where(codes >= 0, part, -1), rotation.shape[0])
        return tf.einsum("bt,btm,tmf->bf", indicator, squares, variance)

    def level_variance(
        self, basis: tf.Tensor, prior: LevelPrior, noise_variance: tf.Tensor
    ) -> tf.Tensor:
        """Posterior variances of `basis @ effects` of every level, `(levels, c, p)`."""
        variance = self._variance(prior, noise_variance)
        if self.basis_size == 1:
            return tf.square(basis) * variance
        rotated = tf.einsum("cm,lmk->lck", basis, tf.convert_to_tensor(self.rotation))
        return tf.einsum("lck,lkf->lcf", tf.square(rotated), variance)

    def precision_product(
        self, effects: tf.Tensor, prior: LevelPrior, noise_variance: tf.Tensor
    ) -> tf.Tensor:
        """`precision @ effects` of whole tables."""
        product = tf.matmul(self.gram.value, effects)
        if self.has_missing_cells:
            product *= self.cell_share.value[..., None, :]
        return product / noise_variance + prior.product(effects)

    def solve(self, scores: tf.Tensor, prior: LevelPrior, noise_variance: tf.Tensor) -> tf.Tensor:
        """`inv(precision) @ scores` of whole tables, every level by itself."""
        variance = self._variance(prior, noise_variance)
        if self.basis_size == 1:
            return variance * scores
        return linalg.apply_inverse(tf.convert_to_tensor(self.rotation), variance, scores)

    def shrinkage(
        self, levels: slice, prior: LevelPrior, noise_variance: tf.Tensor
    ) -> list[tf.Tensor]:
        """Share that each fold keeps of the rotated least-squares effects, `(l, m, p)` each."""
        kept = []
        for fold in range(design.NUM_FOLDS):
            share = self.cell_share[fold, levels] if self.has_missing_cells else None
            eigenvalues, variance = self.eigenvalues[fold, levels], prior.effect_variance.value
            kept.append(linalg.shrinkage(eigenvalues, noise_variance, variance, share))
        return kept

    # A training step ------------------------------------------------------------------------

    def increment(
        self,
        residual: tf.Tensor,
        codes: tf.Tensor,
        basis: tf.Tensor | None,
        fold: tf.Tensor,
        prior: LevelPrior,
        noise_variance: tf.Tensor,
        weights: tf.Tensor | None = None,
    ) -> Increment:
        """Natural-gradient step of the levels of a mini-batch; no other level is touched.

            B[l] += inv(precision[l]) @ (sum phi e / noise_variance - share * inv(prior) B[l])

        where `share` is the part of the level's rows that the batch holds.
        """
        if self.num_levels == 1 and basis is not None:
            counts = design.count(codes, self.num_levels, weights, fold)
            share = tf.math.divide_no_nan(counts, self.count.value)
            effects = tf.convert_to_tensor(self.effects)
            score = design.transpose_product(residual, codes, basis, self.num_levels, fold)
            gradient = score / noise_variance - share[..., None, None] * prior.product(effects)
            return Increment(None, self.solve(gradient, prior, noise_variance))
        present = tf.cast(codes >= 0, tf.float32) if weights is None else weights
        share = tf.math.divide_no_nan(present, self._rows(self.count, codes, fold))
        rows = self._rows(self.effects, codes, fold)  # (b, m, p)
        variance = self._variance_at(codes, fold, prior, noise_variance)
        score = residual[:, None, :] if basis is None else basis[:, :, None] * residual[:, None, :]
        gradient = score / noise_variance - share[:, None, None] * prior.product(rows)
        if self.basis_size == 1:
            change = variance * gradient
        else:
            rotation = self._rows(self.rotation, codes, fold)
            change = linalg.apply_inverse(rotation, variance, gradient)
        change = tf.where(codes[:, None, None] >= 0, change, tf.zeros_like(change))
        return Increment(tf.stack([fold, tf.maximum(codes, 0)], axis=1), change)

    def add(self, increment: Increment) -> None:
        """Adds the increment of a training step."""
        if increment.index is None:
            self.effects.assign_add(increment.change)
        else:
            self.effects.value.scatter_nd_add(increment.index, increment.change)

    def kl_share(
        self, codes: tf.Tensor, fold: tf.Tensor, prior: LevelPrior, noise_variance: tf.Tensor
    ) -> tf.Tensor:
        """A row's share of KL(q(B) || p(B)): the KL of its level over the level's rows.

        Summed over the rows of a fold this is the KL of that fold's part, once per level.

        Returns:
            Float tensor `(b,)`, nats.
        """
        count = self._rows(self.count, codes, fold)
        if self.num_levels == 1:
            folds = tf.range(design.NUM_FOLDS)
            kl = tf.gather(self._kl(tf.zeros_like(folds), folds, prior, noise_variance), fold)
        else:
            kl = self._kl(codes, fold, prior, noise_variance)
        return tf.where(codes >= 0, tf.math.divide_no_nan(kl, count), tf.zeros_like(kl))

    def _kl(
        self, codes: tf.Tensor, fold: tf.Tensor, prior: LevelPrior, noise_variance: tf.Tensor
    ) -> tf.Tensor:
        """KL of whole levels, `(b,)`, in the coordinates in which both covariances are diagonal."""
        mean = self._rows(self.effects, codes, fold)  # (b, m, p)
        variance = self._variance_at(codes, fold, prior, noise_variance)
        if self.basis_size > 1:
            if prior.learn_coefficient_covariance:
                mean = tf.matmul(prior.inverse_block(), mean)
            mean = tf.matmul(self._rows(self.rotation, codes, fold), mean, transpose_a=True)
        posterior = tfd.Normal(mean, tf.sqrt(variance))
        zero_mean = tfd.Normal(tf.zeros_like(mean), tf.sqrt(prior.effect_variance.value))
        return tf.reduce_sum(tfd.kl_divergence(posterior, zero_mean), axis=(1, 2))

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
