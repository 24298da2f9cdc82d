"""The paper's inference: a second encoder gives codes, averaged by level into the effects."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.model.effects_fit import EffectsFit, TrainingEffects
from keras_lmmvae.model.rows import EFFECTS, FEATURES, Rows, batches_of, cell_weights

__all__ = ["AmortizedFit"]

tfd = tfp.distributions


class AmortizedFit(EffectsFit):
    """Effects as level means of per-row codes, sampled from `q(b[i] | x[i])`.

        B_k[l] = mean over the batch's rows of level l of b_k[i],    b_k[i] ~ q(b_k | x[i])

    After training the table of a level is the mean over all its training rows.

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3 and algorithm 1.
    """

    encoder_sees_residual = False

    def training_effects(self, rows: Rows) -> TrainingEffects:
        contribution = tf.zeros_like(rows[FEATURES])
        kl = tf.zeros(tf.shape(contribution)[0])
        for term, (mean, log_var) in zip(self.terms, self.model.effect_codes(rows), strict=True):
            scale = tf.exp(0.5 * log_var)  # (b, c, p)
            codes = mean + scale * self.model.standard_normal(tf.shape(mean))
            encoded = rows[EFFECTS][term.label]
            contribution += term.aggregate_batch(codes, encoded)
            prior = tfd.Normal(0.0, tf.sqrt(term.posterior.effect_variance.value))
            divergence = tfd.kl_divergence(tfd.Normal(mean, scale), prior)
            kl += tf.reduce_sum(divergence, axis=(1, 2)) * self._row_share(term, encoded)
        return TrainingEffects(contribution, kl)

    def _row_share(self, term: RandomEffect, encoded: Any) -> tf.Tensor:
        """Weight of a row's KL: 1 over its level's rows, or 1 as published."""
        codes = term.aggregation_codes(encoded)
        known = tf.cast(codes >= 0, tf.float32)
        if self.model.effects_kl_reduction == "row":
            return known
        count = tf.gather(term.aggregation_count.value, tf.maximum(codes, 0))
        return known / tf.maximum(count, 1.0)

    def after_gradient(self, rows: Rows, residual: tf.Tensor, error: tf.Tensor) -> None:
        del residual
        self.update_noise(rows, tf.square(error))

    def begin(self, rows: Any) -> None:
        self.rows = rows
        for term in self.terms:
            count = tf.zeros_like(term.aggregation_count)
            for batch in batches_of(rows):
                codes = term.aggregation_codes(batch[EFFECTS][term.label])
                weight = batch.get("weight")
                ones = tf.ones(tf.shape(codes)) if weight is None else weight
                count += tf.math.unsorted_segment_sum(ones, codes, count.shape[0])
            term.aggregation_count.assign(count)
        if not self.model.is_fitted:
            self.model.reset_noise_variance(tf.ones(self.model.num_features).numpy())

    def end_epoch(self, epoch: int) -> None:
        del epoch
        sums: dict[str, Any] = {term.label: 0.0 for term in self.terms}
        for batch in batches_of(self.rows):
            weights = cell_weights(batch)
            for term, (mean, _) in zip(self.terms, self.model.effect_codes(batch), strict=True):
                codes = term.aggregation_codes(batch[EFFECTS][term.label])
                row_weight = 1.0 if weights is None else batch.get("weight", tf.ones(len(codes)))
                weighted = mean * tf.reshape(row_weight, (-1, 1, 1))
                levels = term.aggregation_count.shape[0]
                sums[term.label] += tf.math.unsorted_segment_sum(weighted, codes, levels)
        for term in self.terms:
            count = tf.convert_to_tensor(term.aggregation_count)[:, None, None]
            term.posterior.effects.assign(
                term.table_of_means(tf.math.divide_no_nan(sums[term.label], count))
            )

    def refresh(self, epoch: int) -> None:
        self.end_epoch(epoch)

    def end(self) -> None:
        self.end_epoch(0)
