"""The steps of training and evaluation: the ELBO, its gradient, its parts as metrics."""

from __future__ import annotations

import tensorflow as tf

from keras_lmmvae.model.elbo import ElboTerms, gaussian_log_likelihood, latent_kl
from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.model.rows import FEATURES, Rows, with_bases

__all__ = ["Steps"]


class Steps(ModelPart):
    """The part of `LMMVAE` that makes a step: `train_step` and `test_step`."""

    def elbo_terms(self, rows: Rows, training: bool) -> ElboTerms:
        """The parts of the ELBO of encoded rows.

        In training the effects are those of the other fold and `u` is drawn from q(u); else
        the effects are those for new rows, their uncertainty is added to the noise, and `u` is
        its mean.
        """
        if training:
            effects = self.effects_fit.training_effects(rows)
            contribution, effects_kl = effects.contribution, effects.kl
            variance = self.networks_noise_variance()
        else:
            contribution = self.effects_fit.contribution(rows)
            effects_kl = tf.zeros(tf.shape(contribution)[0])
            variance = self.noise_variance + self.effects_fit.contribution_variance(rows)
        mean, log_var = self.latent_posterior(rows, contribution, training)
        latent = mean
        if training:
            latent += tf.exp(0.5 * log_var) * self.standard_normal(tf.shape(mean))
        residual = rows[FEATURES] - self.decode_standard(latent, training)
        error = residual - contribution
        observed = rows.get("observed")
        log_likelihood = gaussian_log_likelihood(error, variance, observed)
        return ElboTerms(
            log_likelihood - self._log_units(observed),
            latent_kl(mean, log_var),
            effects_kl,
            self._squared_error(error, observed),
            residual,
            error,
        )

    def _log_units(self, observed: tf.Tensor | None) -> tf.Tensor:
        """What the log density loses on the way from standardised to the features' units."""
        logs = tf.math.log(tf.convert_to_tensor(self.feature_scale))
        if observed is None:
            return tf.reduce_sum(logs)
        return tf.reduce_sum(tf.cast(observed, tf.float32) * logs, axis=-1)

    def _squared_error(self, error: tf.Tensor, observed: tf.Tensor | None) -> tf.Tensor:
        squares = tf.square(error * self.feature_scale)
        if observed is None:
            return tf.reduce_mean(squares, axis=-1)
        cells = tf.cast(observed, tf.float32)
        return tf.math.divide_no_nan(
            tf.reduce_sum(cells * squares, axis=-1), tf.reduce_sum(cells, axis=-1)
        )

    def train_step(self, rows: Rows) -> dict[str, tf.Tensor]:
        """Gradient step on the networks, then the closed-form step on the effects."""
        (rows,) = rows if isinstance(rows, tuple) else (rows,)
        rows = with_bases(rows, self.random_effects)
        with tf.GradientTape() as tape:
            terms = self.elbo_terms(rows, training=True)
            kl_weight = self.kl_weight * self.kl_annealing
            negative = terms.negative_elbo(kl_weight, self.effects_kl_weight)
            loss = _weighted_mean(negative, rows.get("weight"))
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        self.effects_fit.after_gradient(
            rows, tf.stop_gradient(terms.residual), tf.stop_gradient(terms.error)
        )
        return self._track(terms, negative, rows.get("weight"))

    def test_step(self, rows: Rows) -> dict[str, tf.Tensor]:
        """Loss of new rows given the effects, without the effects' KL: that belongs to training."""
        (rows,) = rows if isinstance(rows, tuple) else (rows,)
        rows = with_bases(rows, self.random_effects)
        terms = self.elbo_terms(rows, training=False)
        negative = terms.negative_elbo(self.kl_weight, self.effects_kl_weight)
        return self._track(terms, negative, rows.get("weight"))

    def _track(
        self, terms: ElboTerms, negative_elbo: tf.Tensor, weight: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        parts = (
            negative_elbo,
            -terms.log_likelihood,
            terms.latent_kl,
            terms.effects_kl,
            terms.squared_error,
        )
        for tracker, part in zip(self.trackers, parts, strict=True):
            tracker.update_state(part, sample_weight=weight)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def _weighted_mean(values: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
    """Mean over rows of `weight * values`; as in Keras, weights are not normalised."""
    return tf.reduce_mean(values if weight is None else values * weight)
