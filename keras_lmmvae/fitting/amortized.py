"""The paper's inference: a second encoder gives codes, averaged by level into the effects."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.fitting.effects_fit import EffectsFit, TrainingEffects
from keras_lmmvae.likelihood import GaussianLikelihood
from keras_lmmvae.mixed_model.level_effects import LevelEffects
from keras_lmmvae.mixed_model.mixed_model import MixedModel
from keras_lmmvae.networks import EffectsEncoder, LatentNetworks
from keras_lmmvae.rows import EFFECTS, FEATURES, Pass, Rows, cell_weights

__all__ = ["AmortizedFit"]

tfd = tfp.distributions


class AmortizedFit(EffectsFit):
    """Effects as level means of per-row codes, sampled from `q(b[i] | x[i])`.

        B_k[l] = mean over the batch's rows of level l of b_k[i],    b_k[i] ~ q(b_k | x[i])

    After training the table of a level is the mean over all its training rows.

    Args:
        mixed_model: The mixed model.
        networks: Encoder and decoder.
        likelihood: The likelihood.
        encoder: The encoder of the codes; `None` without terms.
        seed_generator: Source of the draws.
        is_kl_by_row: Whether the KL counts once per row, as published, instead of per level.

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3 and algorithm 1.
    """

    def __init__(
        self,
        mixed_model: MixedModel,
        networks: LatentNetworks,
        likelihood: GaussianLikelihood,
        encoder: EffectsEncoder | None,
        seed_generator: keras.random.SeedGenerator,
        is_kl_by_row: bool = False,
    ) -> None:
        super().__init__(mixed_model, networks, likelihood)
        self.encoder = encoder
        self.seed_generator = seed_generator
        self.is_kl_by_row = is_kl_by_row

    def codes(self, rows: Rows) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """Means and log variances of the terms' codes, `(b, c, p)` each."""
        if self.encoder is None:
            return []
        x = rows[FEATURES]
        values = self.networks.encoder_input(x, tf.zeros_like(x), rows.get("observed"))
        if self.encoder.trunk is None:
            values = self.networks.encoder.hidden(values)
        codes: list[tuple[tf.Tensor, tf.Tensor]] = self.encoder(values)
        return codes

    def training_effects(self, rows: Rows) -> TrainingEffects:
        parts, kl = {}, tf.zeros(tf.shape(rows[FEATURES])[0])
        pairs = self.mixed_model.pairs()
        for (term, effects), (mean, log_var) in zip(pairs, self.codes(rows), strict=True):
            scale = tf.exp(0.5 * log_var)  # (b, c, p)
            draws = keras.random.normal(tf.shape(mean), dtype="float32", seed=self.seed_generator)
            encoded = rows[EFFECTS][term.label]
            parts[term.label] = term.aggregate_batch(mean + scale * draws, encoded)
            prior = tfd.Normal(0.0, tf.sqrt(effects.effect_variance.value))
            divergence = tfd.kl_divergence(tfd.Normal(mean, scale), prior)
            share = self._row_share(term, effects, encoded)
            kl += tf.reduce_sum(divergence, axis=(1, 2)) * share
        return TrainingEffects(parts, kl)

    def _row_share(self, term: RandomEffect, effects: LevelEffects, encoded: Any) -> tf.Tensor:
        """Weight of a row's KL: 1 over its level's rows, or 1 as published."""
        codes = term.aggregation_codes(encoded)
        known = tf.cast(codes >= 0, tf.float32)
        if self.is_kl_by_row:
            return known
        count = tf.gather(effects.aggregate_count.value, tf.maximum(codes, 0))
        return known / tf.maximum(count, 1.0)

    def after_gradient(
        self, rows: Rows, effects: TrainingEffects, residual: tf.Tensor, error: tf.Tensor
    ) -> None:
        del effects, residual
        self.likelihood.update(tf.square(error), cell_weights(rows))

    def begin(self, rows: Pass, is_fitted: bool) -> None:
        self.rows = rows
        for term, effects in self.mixed_model.pairs():
            levels = effects.num_aggregates

            def count(batch: Rows, term: RandomEffect = term, levels: int = levels) -> tf.Tensor:
                codes = term.aggregation_codes(batch[EFFECTS][term.label])
                return tf.math.unsorted_segment_sum(_row_weight(batch), codes, levels)

            effects.aggregate_count.assign(rows.total(count))
        if not is_fitted:
            self.likelihood.assign(np.ones(self.mixed_model.num_features))

    def end_epoch(self, epoch: int) -> None:
        del epoch

        def sums(batch: Rows) -> dict[str, tf.Tensor]:
            found, weight = {}, tf.reshape(_row_weight(batch), (-1, 1, 1))
            for (term, effects), (mean, _) in zip(
                self.mixed_model.pairs(), self.codes(batch), strict=True
            ):
                codes = term.aggregation_codes(batch[EFFECTS][term.label])
                found[term.label] = tf.math.unsorted_segment_sum(
                    mean * weight, codes, effects.num_aggregates
                )
            return found

        totals = self.rows.total(sums)
        for term, effects in self.mixed_model.pairs():
            count = tf.convert_to_tensor(effects.aggregate_count)[:, None, None]
            means = tf.math.divide_no_nan(totals[term.label], count)
            effects.table.effects.assign(term.table_of_means(means))

    def refresh(self, epoch: int) -> None:
        self.end_epoch(epoch)

    def end(self) -> None:
        self.end_epoch(0)

    def take_rows(self, rows: Pass) -> None:
        self.begin(rows, is_fitted=True)
        self.end()


def _row_weight(batch: Rows) -> tf.Tensor:
    weight = batch.get("weight")
    return tf.ones(tf.shape(batch[FEATURES])[0]) if weight is None else weight
