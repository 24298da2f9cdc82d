"""What rows read of a table of effects, and what they teach it in a training step."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae import design, linalg
from keras_lmmvae.mixed_model.effects_table import EffectsTable, Increment
from keras_lmmvae.mixed_model.information import Information
from keras_lmmvae.mixed_model.prior import LevelPrior

__all__ = ["TableRows"]

tfd = tfp.distributions


class TableRows:
    """The levels of some rows in a table of effects.

    An entry of the table is read once, at its first use, however often it is asked for: a
    training step needs the same entries for the effects' KL, their variances and their step.

    Args:
        table: The table.
        prior: The prior of its effects.
        codes: Int tensor `(b,)`, the rows' levels, negative for none.
        basis: Float tensor `(b, m)`, the rows' basis vectors; `None` for ones.
        fold: Int tensor `(b,)`, the part of a table by fold that each row reads.
    """

    def __init__(
        self,
        table: EffectsTable,
        prior: LevelPrior,
        codes: tf.Tensor,
        basis: tf.Tensor | None = None,
        fold: tf.Tensor | None = None,
    ) -> None:
        self.table = table
        self.prior = prior
        self.codes = codes
        self.basis = basis
        self.fold = fold
        # Name -> entries of the levels in both folds, for these rows and `of_other_fold`.
        self._entries: dict[str, tf.Tensor] = {}

    def of_other_fold(self) -> TableRows:
        """The same rows, each in the part of the fold that it is not in."""
        fold = tf.convert_to_tensor(self.fold)
        other = TableRows(self.table, self.prior, self.codes, self.basis, 1 - fold)
        other._entries = self._entries
        return other

    def _read(self, weight: Any) -> tf.Tensor:
        """What a weight of the table holds for the rows' levels; level 0 for rows without one."""
        if self.fold is None:
            return design.level_rows(weight.value, self.codes)
        if weight.name not in self._entries:
            self._entries[weight.name] = design.level_rows_by_fold(weight.value, self.codes)
        return design.choose_fold(self._entries[weight.name], self.fold)

    @cached_property
    def effects(self) -> tf.Tensor:
        """Posterior means of the rows' levels, `(b, m, p)`."""
        return self._read(self.table.effects)

    @cached_property
    def count(self) -> tf.Tensor:
        """Training rows of the rows' levels, `(b,)`."""
        return self._read(self.table.count)

    @cached_property
    def rotation(self) -> tf.Tensor:
        """What diagonalises the precisions of the rows' levels, `(b, m, m)`, for `m > 1`."""
        return self._read(self.table.rotation)

    @cached_property
    def eigenvalues(self) -> tf.Tensor:
        """Eigenvalues of the Gram matrices of the rows' levels, `(b, m)`."""
        return self._read(self.table.eigenvalues)

    @cached_property
    def cell_share(self) -> tf.Tensor | None:
        """Shares of observed cells of the rows' levels, `(b, p)`; `None` where all are 1."""
        return self._read(self.table.cell_share) if self.table.has_missing_cells else None

    @property
    def _is_of_one_level(self) -> bool:
        """Whether the table is one of a surface, whose one level is too large for every row."""
        return self.table.num_levels == 1 and self.basis is not None

    def _rotated_variance(self, information: Information) -> tf.Tensor:
        """Posterior variances of the levels' rotated effects, `(b, m, p)`."""
        return information.posterior_variance(self.eigenvalues, self.cell_share)

    def _known(self, values: tf.Tensor) -> tf.Tensor:
        """Sets the values of rows without a level to 0."""
        known = tf.reshape(self.codes >= 0, (-1, *[1] * (len(values.shape) - 1)))
        return tf.where(known, values, tf.zeros_like(values))

    def product(self) -> tf.Tensor:
        """The rows' effects `Z @ B`, `(b, p)`."""
        if self.fold is None or self._is_of_one_level:
            table = self.table.effects.value
            return design.product(table, self.codes, self.basis, self.fold)
        return design.product_of_rows(self.effects, self.codes, self.basis)

    def variance(self, information: Information) -> tf.Tensor:
        """Posterior variance of a row's `Z @ B`, `phi' inv(precision) phi`.

        Returns:
            Float tensor `(b, p)`, variances; 0 for negative codes.
        """
        size = self.table.basis_size
        if self._is_of_one_level and size > 1:
            return self._variance_of_one_level(information)
        variance, basis = self._rotated_variance(information), self.basis
        if basis is None:
            return self._known(variance[:, 0])
        if size > 1:
            basis = tf.linalg.matvec(self.rotation, basis, transpose_a=True)
        return self._known(tf.reduce_sum(tf.square(basis)[:, :, None] * variance, axis=1))

    def _variance_of_one_level(self, information: Information) -> tf.Tensor:
        """The same for a surface, without a rotation for every row."""
        size = self.table.basis_size
        variance = self.table.rotated_variance(information)
        variance = tf.reshape(variance, (-1, size, self.table.num_features))  # (t, m, p)
        rotation = tf.reshape(self.table.rotation.value, (-1, size, size))
        squares = tf.square(tf.einsum("bm,tmk->btk", self.basis, rotation))
        part = tf.zeros_like(self.codes) if self.fold is None else self.fold
        indicator = tf.one_hot(tf.where(self.codes >= 0, part, -1), rotation.shape[0])
        return tf.einsum("bt,btm,tmf->bf", indicator, squares, variance)

    def mean_variance(self, information: Information) -> tf.Tensor:
        """`variance`; of a surface its mean over the training rows, which costs O(m) a row.

        Returns:
            Float tensor `(b, p)`.
        """
        size = self.table.basis_size
        if not self._is_of_one_level or size == 1:
            return self.variance(information)
        variance = self.table.rotated_variance(information)
        eigenvalues = self.table.eigenvalues.value[..., None]
        total = tf.reduce_sum(eigenvalues * variance, axis=(-3, -2))  # (folds, p) or (p,)
        mean = tf.math.divide_no_nan(total, self.table.count.value)
        part = tf.zeros_like(self.codes) if self.fold is None else self.fold
        return self._known(tf.gather(tf.reshape(mean, (-1, self.table.num_features)), part))

    def increment(
        self, residual: tf.Tensor, noise_variance: tf.Tensor, weights: tf.Tensor | None = None
    ) -> Increment:
        """Natural-gradient step of the levels of a mini-batch; no other level is touched.

            B[l] += inv(precision[l]) @ (sum phi e / noise_variance - share * inv(prior) B[l])

        where `share` is the part of the level's rows that the batch holds.

        Args:
            residual: Float tensor `(b, p)`, `x - f(u) - Z B` with the effects of the own fold,
                times the weights of the cells.
            noise_variance: Float tensor `(p,)`.
            weights: Optional float tensor `(b,)`, the rows' shares of their levels' counts.
        """
        table, prior, codes, basis = self.table, self.prior, self.codes, self.basis
        information = Information.given_latent(prior, noise_variance)
        if self._is_of_one_level:
            counts = design.count(codes, table.num_levels, weights, self.fold)
            share = tf.math.divide_no_nan(counts, table.count.value)
            effects = tf.convert_to_tensor(table.effects)
            score = design.transpose_product(residual, codes, basis, table.num_levels, self.fold)
            gradient = score / noise_variance - share[..., None, None] * prior.product(effects)
            return Increment(None, table.solve(gradient, information))
        present = tf.cast(codes >= 0, tf.float32) if weights is None else weights
        share = tf.math.divide_no_nan(present, self.count)
        variance = self._rotated_variance(information)
        score = residual[:, None, :] if basis is None else basis[:, :, None] * residual[:, None, :]
        gradient = score / noise_variance - share[:, None, None] * prior.product(self.effects)
        if table.basis_size == 1:
            change = variance * gradient
        else:
            change = linalg.apply_inverse(self.rotation, variance, gradient)
        index = tf.stack([self.fold, tf.maximum(codes, 0)], axis=1)
        return Increment(index, self._known(change))

    def kl_share(self, noise_variance: tf.Tensor) -> tf.Tensor:
        """A row's share of KL(q(B) || p(B)): the KL of its level over the level's rows.

        Summed over the rows of a fold this is the KL of that fold's part, once per level.

        Returns:
            Float tensor `(b,)`, nats.
        """
        information = Information.given_latent(self.prior, noise_variance)
        if self.table.num_levels == 1:
            folds = tf.range(design.NUM_FOLDS)
            parts = TableRows(self.table, self.prior, tf.zeros_like(folds), None, folds)
            kl = tf.gather(parts._kl(information), self.fold)
        else:
            kl = self._kl(information)
        return self._known(tf.math.divide_no_nan(kl, self.count))

    def _kl(self, information: Information) -> tf.Tensor:
        """KL of whole levels, `(b,)`, in the coordinates in which both covariances are diagonal."""
        mean, variance = self.effects, self._rotated_variance(information)
        if self.table.basis_size > 1:
            if self.prior.learn_coefficient_covariance:
                mean = tf.matmul(self.prior.inverse_block(), mean)
            mean = tf.matmul(self.rotation, mean, transpose_a=True)
        posterior = tfd.Normal(mean, tf.sqrt(variance))
        zero_mean = tfd.Normal(tf.zeros_like(mean), tf.sqrt(self.prior.effect_variance.value))
        return tf.reduce_sum(tfd.kl_divergence(posterior, zero_mean), axis=(1, 2))
