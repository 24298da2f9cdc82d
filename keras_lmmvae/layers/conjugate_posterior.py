"""Closed-form posterior of one random-effects term, held in two cross-fitted folds."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae import design, linalg
from keras_lmmvae.layers.effect_tables import EffectTables

__all__ = ["EFFECT_VARIANCE_FLOOR", "ConjugatePosterior"]

tfd = tfp.distributions

# Of the variance of a standardised feature: below this a term counts as absent.
EFFECT_VARIANCE_FLOOR = 1e-6


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class ConjugatePosterior(EffectTables):
    """Posterior of the effects table B of one term, by Henderson's mixed model equations.

        B[l, :, f] ~ Normal(0, effect_variance[f] * Psi)                 prior of level l
        precision[l, f] = G[l] / noise_variance[f] + inv(Psi) / effect_variance[f]
        mean[l, f] = inv(precision[l, f]) @ (sum of phi * r[f] over its rows) / noise_variance[f]

    Rows are split into two folds with a table each. A row reads its effects from the
    table of the *other* fold, so that no row sees itself in them, and updates the table
    of its own; the covariance of the two tables estimates the effect variance without
    bias. `effects` is the table for new rows: both folds together.

    Args:
        num_levels: Positive int, levels `L` of the term.
        basis_size: Positive int, basis size `m`.
        num_features: Positive int, `p`.
        learn_coefficient_covariance: Whether `Psi`, `(m, m)`, is learned; else it stays
            the identity.
        has_folds: Whether the folds' tables are kept; without them only `effects` are.

    References:
        - Henderson, C. R. (1975), Best linear unbiased estimation and prediction.
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.
    """

    # Reading ------------------------------------------------------------------------------

    def precision_product(self, noise_variance: tf.Tensor, effects: tf.Tensor) -> tf.Tensor:
        """`precision @ effects` for all fold tables, `(2 L, m, p)`."""
        return (
            tf.matmul(self.fold_gram.value, effects) / noise_variance
            + self.prior_product(effects)
        )  # fmt: skip

    def prior_product(self, effects: tf.Tensor) -> tf.Tensor:
        """`inv(Psi) @ effects / effect_variance`, `(..., m, p)`."""
        if self.learn_coefficient_covariance:
            effects = tf.einsum("ij,ljf->lif", self.inverse_coefficient_covariance(), effects)
        return effects / self.effect_variance

    def inverse_coefficient_covariance(self) -> tf.Tensor:
        """`inv(Psi)`, `(m, m)`."""
        covariance = tf.convert_to_tensor(self.coefficient_covariance)
        scale = tf.linalg.trace(covariance) / self.basis_size
        jitter = linalg.JITTER * scale * tf.eye(self.basis_size)
        return tf.linalg.cholesky_solve(
            tf.linalg.cholesky(covariance + jitter), tf.eye(self.basis_size)
        )

    def contribution_variance(
        self, codes: tf.Tensor, basis: tf.Tensor | None, noise_variance: tf.Tensor, folds: bool
    ) -> tf.Tensor:
        """Posterior variance of a row's `Z @ B`, `phi' inv(precision) phi`.

        Args:
            codes: Int tensor `(b,)`, of the fold tables if `folds`.
            basis: Float tensor `(b, m)` or `None`.
            noise_variance: Float tensor `(p,)`.
            folds: Whether `codes` point into the fold tables.

        Returns:
            Float tensor `(b, p)`, variances; 0 for negative codes.
        """
        eigenvalues = self.fold_eigenvalues if folds else self.eigenvalues
        if self.num_levels == 1 and self.basis_size > 1:
            variance = linalg.posterior_variance(
                tf.convert_to_tensor(eigenvalues), noise_variance, self.effect_variance
            )
            rotation = tf.convert_to_tensor(self.rotations(folds))
            squares = tf.square(tf.einsum("bm,tmk->btk", basis, rotation))  # (b, t, m)
            indicator = tf.one_hot(codes, rotation.shape[0])
            return tf.einsum("bt,btm,tmf->bf", indicator, squares, variance)
        clipped = tf.maximum(codes, 0)
        variance = linalg.posterior_variance(
            tf.gather(eigenvalues.value, clipped), noise_variance, self.effect_variance
        )  # (b, m, p)
        if basis is None:
            result = variance[:, 0]
        else:
            rotated = basis if self.basis_size == 1 else tf.linalg.matvec(
                tf.gather(self.rotations(folds).value, clipped), basis, transpose_a=True
            )  # fmt: skip
            result = tf.reduce_sum(tf.square(rotated)[:, :, None] * variance, axis=1)
        return tf.where(codes[:, None] >= 0, result, tf.zeros_like(result))

    def marginal_variances(self, basis: tf.Tensor, noise_variance: tf.Tensor) -> tf.Tensor:
        """Posterior variances of `basis @ effects` of every level, `(levels, c, p)`.

        Args:
            basis: Float tensor `(c, m)`.
            noise_variance: Float tensor `(p,)`.
        """
        variance = linalg.posterior_variance(
            tf.convert_to_tensor(self.eigenvalues), noise_variance, self.effect_variance
        )
        if self.basis_size == 1:
            return self.variance_inflation * tf.square(basis) * variance
        rotated = tf.square(tf.einsum("cm,lmk->lck", basis, tf.convert_to_tensor(self.rotation)))
        return self.variance_inflation * tf.einsum("lck,lkf->lcf", rotated, variance)

    def prior_contribution_variance(self, basis: tf.Tensor | None, size: tf.Tensor) -> tf.Tensor:
        """Prior variance of a row's `Z @ B`, for levels never seen, `(b, p)`."""
        if basis is None:
            return tf.broadcast_to(self.effect_variance.value, (size, self.num_features))
        quadratic = tf.einsum("bi,ij,bj->b", basis, self.coefficient_covariance, basis)
        return quadratic[:, None] * self.effect_variance

    # Learning -----------------------------------------------------------------------------

    def step(
        self,
        residual: tf.Tensor,
        codes: tf.Tensor,
        basis: tf.Tensor | None,
        noise_variance: tf.Tensor,
        weights: tf.Tensor | None = None,
    ) -> None:
        """Natural-gradient step of the levels of a mini-batch; no other level is touched.

            B[l] += inv(precision[l]) @ (sum phi e / noise_variance - share * prior_product(B[l]))

        where `share` is the part of the level's rows that the batch holds.

        Args:
            residual: Float tensor `(b, p)`, `e = x - f(u) - Z B` with all terms of the own fold,
                times the weights of the cells: 0 where one is missing.
            codes: Int tensor `(b,)` into the fold tables.
            basis: Float tensor `(b, m)` or `None`.
            noise_variance: Float tensor `(p,)`.
            weights: Optional float tensor `(b,)`, the rows' shares of their levels' counts.
        """
        if self.num_levels == 1 and basis is not None:
            self._step_whole(residual, codes, basis, noise_variance, weights)
            return
        clipped = tf.maximum(codes, 0)
        present = tf.cast(codes >= 0, tf.float32) if weights is None else weights
        share = tf.math.divide_no_nan(present, tf.gather(self.fold_count.value, clipped))
        rows = tf.gather(self.fold_effects.value, clipped)  # (b, m, p)
        eigenvalues = tf.gather(self.fold_eigenvalues.value, clipped)
        variance = linalg.posterior_variance(eigenvalues, noise_variance, self.effect_variance)
        score = residual[:, None, :] if basis is None else basis[:, :, None] * residual[:, None, :]
        gradient = score / noise_variance - share[:, None, None] * self.prior_product(rows)
        if self.basis_size == 1:
            change = variance * gradient
        else:
            rotation = tf.gather(self.fold_rotation.value, clipped)
            change = linalg.apply_inverse(rotation, variance, gradient)
        change = tf.where(codes[:, None, None] >= 0, change, tf.zeros_like(change))
        self.fold_effects.value.scatter_add(tf.IndexedSlices(change, clipped))

    def _step_whole(
        self,
        residual: tf.Tensor,
        codes: tf.Tensor,
        basis: tf.Tensor,
        noise_variance: tf.Tensor,
        weights: tf.Tensor | None,
    ) -> None:
        """The same step for a term with one level, whose every row touches the whole table."""
        tables = self.fold_effects.shape[0]
        share = tf.math.divide_no_nan(design.count(codes, tables, weights), self.fold_count)
        effects = tf.convert_to_tensor(self.fold_effects)
        score = design.transpose_product(residual, codes, basis, tables)
        gradient = score / noise_variance - share[:, None, None] * self.prior_product(effects)
        self.fold_effects.assign_add(self.apply_inverse(gradient, noise_variance))

    def apply_inverse(
        self, values: tf.Tensor, noise_variance: tf.Tensor, folds: bool = True
    ) -> tf.Tensor:
        """`inv(precision) @ values` for whole tables, `(2 L, m, p)` or `(L, m, p)`."""
        eigenvalues = self.fold_eigenvalues if folds else self.eigenvalues
        variance = linalg.posterior_variance(
            tf.convert_to_tensor(eigenvalues), noise_variance, self.effect_variance
        )
        if self.basis_size == 1:
            return variance * values
        return linalg.apply_inverse(tf.convert_to_tensor(self.rotations(folds)), variance, values)

    def kl_share(self, codes: tf.Tensor, noise_variance: tf.Tensor) -> tf.Tensor:
        """A row's share of KL(q(B) || p(B)): the KL of its level in its fold over the level's rows.

        Summed over all rows this is the KL summed once per level, of both folds.

        Args:
            codes: Int tensor `(b,)` into the fold tables.
            noise_variance: Float tensor `(p,)`.

        Returns:
            Float tensor `(b,)`, nats.
        """
        clipped = tf.maximum(codes, 0)
        count = tf.gather(self.fold_count.value, clipped)
        if self.num_levels == 1:
            levels = self.fold_effects.shape[0]
            kl = tf.gather(self._kl(tf.range(levels), noise_variance), clipped)
        else:
            kl = self._kl(clipped, noise_variance)
        return tf.where(codes >= 0, tf.math.divide_no_nan(kl, count), tf.zeros_like(kl))

    def _kl(self, codes: tf.Tensor, noise_variance: tf.Tensor) -> tf.Tensor:
        """KL of whole levels, `(b,)`, in the coordinates in which both covariances are diagonal."""
        mean = tf.gather(self.fold_effects.value, codes)  # (b, m, p)
        eigenvalues = tf.gather(self.fold_eigenvalues.value, codes)
        variance = linalg.posterior_variance(eigenvalues, noise_variance, self.effect_variance)
        if self.basis_size > 1:
            rotation = tf.gather(self.fold_rotation.value, codes)
            if self.learn_coefficient_covariance:
                mean = tf.einsum("ij,ljf->lif", self.inverse_coefficient_covariance(), mean)
            mean = tf.matmul(rotation, mean, transpose_a=True)
        posterior = tfd.Normal(mean, tf.sqrt(variance))
        prior = tfd.Normal(tf.zeros_like(mean), tf.sqrt(self.effect_variance.value))
        return tf.reduce_sum(tfd.kl_divergence(posterior, prior), axis=(1, 2))

    # Between epochs -----------------------------------------------------------------------

    def pool(self, noise_variance: tf.Tensor) -> None:
        """Sets `effects` to the posterior mean given both folds.

        precision @ B = precision_1 @ B_1 + precision_2 @ B_2
        """
        levels = self.num_levels
        scores = self.precision_product(noise_variance, tf.convert_to_tensor(self.fold_effects))
        scores = scores[:levels] + scores[levels:]
        self.effects.assign(self.apply_inverse(scores, noise_variance, folds=False))

    def set_prior(
        self,
        effect_variance: np.ndarray,
        coefficient_covariance: tf.Tensor | None,
        noise_variance: tf.Tensor,
    ) -> None:
        """Sets the prior's variances and shrinks the folds' tables anew.

        The tables keep the right sides `precision @ B` that they solve.

        Args:
            effect_variance: Float array `(p,)`; raised to the floor.
            coefficient_covariance: Float tensor `(m, m)`, or `None` to keep it.
            noise_variance: Float tensor `(p,)`.
        """
        right_sides = self.precision_product(
            noise_variance, tf.convert_to_tensor(self.fold_effects)
        )
        self.effect_variance.assign(np.maximum(effect_variance, EFFECT_VARIANCE_FLOOR))
        if coefficient_covariance is not None:
            self.coefficient_covariance.assign(coefficient_covariance)
            self.refresh()
        self.fold_effects.assign(self.apply_inverse(right_sides, noise_variance))

    def mean_prior_share(self) -> float:
        """Prior variance of the average row's contribution, over `effect_variance`."""
        total = tf.einsum("lij,ij->", self.gram, self.coefficient_covariance)
        return max(float(total / tf.maximum(tf.reduce_sum(self.count), 1e-6)), 1e-6)
