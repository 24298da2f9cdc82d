"""What a fitted model says about rows: latents, reconstructions, uncertainty, likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae.model.bounds import importance_bound, plain_bound
from keras_lmmvae.model.elbo import gaussian_log_likelihood
from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.model.rows import FEATURES, Rows, batches_of
from keras_lmmvae.validation import check_positive

__all__ = ["Predicting", "Prediction"]

tfd = tfp.distributions


@dataclass(frozen=True)
class Prediction:
    """What `predictive` says of `n` rows, in the features' units.

    Attributes:
        mean: Reconstruction `f(E[u | x]) + Z B`, array `(n, p)`.
        standard_deviation: Of a new observation around it, array `(n, p)`: noise, and what is
            not known of the effects.
        contributions: Term name -> its part `Z_k B_k` of the mean, array `(n, p)`.
        population: The rest of the mean, `f(E[u | x])`, array `(n, p)`.
    """

    mean: np.ndarray
    standard_deviation: np.ndarray
    contributions: dict[str, np.ndarray]
    population: np.ndarray


class Predicting(ModelPart):
    """The part of `LMMVAE` that answers about rows; means, not samples."""

    def encode(self, data: Any) -> np.ndarray:
        """Posterior means of the latent.

        Args:
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.

        Returns:
            Float array `(n, d)`.
        """
        return self._over_batches(data, self._encode_batch)[0]

    def _encode_batch(self, rows: Rows) -> tuple[tf.Tensor, ...]:
        mean, _ = self.latent_posterior(rows, self.effects_fit.contribution(rows))
        return (mean,)

    def decode(self, latent: Any) -> np.ndarray:
        """`f(u)` in the features' units, without random effects.

        Args:
            latent: Float array `(n, d)`.

        Returns:
            Float array `(n, p)`.
        """
        self.require_fitted()
        return self.to_units(self.decode_standard(tf.cast(latent, tf.float32))).numpy()

    def reconstruct(self, data: Any, include_effects: bool = True) -> np.ndarray:
        """Reconstructions of rows.

        Args:
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.
            include_effects: Whether `Z B` is added to `f(E[u | x])`; without, the row as it
                would be in the average store, patient or place.

        Returns:
            Float array `(n, p)`, in the features' units.
        """

        def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
            contribution = self.effects_fit.contribution(rows)
            mean, _ = self.latent_posterior(rows, contribution)
            standard = self.decode_standard(mean)
            return (self.to_units(standard + contribution if include_effects else standard),)

        return self._over_batches(data, batch)[0]

    def predictive(self, data: Any) -> Prediction:
        """Reconstructions with their uncertainty and what each term contributes.

        Args:
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.

        Returns:
            A `Prediction`. Levels never seen contribute 0 and add their variance; rows with a
            null key contribute 0 and add none.
        """

        def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
            contribution = self.effects_fit.contribution(rows)
            mean, _ = self.latent_posterior(rows, contribution)
            population = self.to_units(self.decode_standard(mean))
            variance = self.noise_variance + self.effects_fit.contribution_variance(rows)
            parts = [
                self.effects_fit.term_contribution(term, rows) * self.feature_scale
                for term in self.random_effects
            ]
            return population, tf.sqrt(variance) * self.feature_scale, *parts

        population, deviation, *parts = self._over_batches(data, batch)
        labels = [term.label for term in self.random_effects]
        mean = population + sum(parts) if parts else population
        return Prediction(mean, deviation, dict(zip(labels, parts, strict=True)), population)

    def term_effects(self, name: str, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Effect of one term on rows, `Z_k B_k`, with its posterior standard deviation.

        Args:
            name: The term's name.
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.

        Returns:
            mean: Float array `(n, p)`, in the features' units.
            standard_deviation: Float array `(n, p)`, of this term by itself, the others unknown
                too; zeros for an amortized posterior.
        """
        term = self.find_term(name)

        def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
            mean = self.effects_fit.term_contribution(term, rows)
            variance = self.effects_fit.row_variance(term, rows, marginal=True)
            return mean * self.feature_scale, tf.sqrt(variance) * self.feature_scale

        mean, deviation = self._over_batches(data, batch)
        return mean, deviation

    def log_likelihood(self, data: Any, num_samples: int = 0) -> np.ndarray:
        """Lower bound of every row's log density given the training rows.

            log p(x[i]) >= E_q[log p(x[i] | u, B-hat)] - KL(q(u[i]) || p(u))

        The effects are those of the training rows; their remaining variance is added to the
        noise. Missing cells are left out.

        Args:
            data: Dict of arrays of `n` rows, or a batched dataset of dicts.
            num_samples: 0: the bound, its expectation over q(u) by the `2 d + 1` sigma points
                of the unscented transform. Positive: the tighter importance-weighted bound
                with that many draws from q(u), fixed by the model's seed.

        Returns:
            Float array `(n,)`, nats, for the density in the features' units.

        References:
            - Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders, eq. (8).
        """
        check_positive("num_samples", num_samples, integer=True, minimum=0)

        def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
            contribution = self.effects_fit.contribution(rows)
            mean, log_var = self.latent_posterior(rows, contribution)
            variance = self.noise_variance + self.effects_fit.contribution_variance(rows)
            observed = rows.get("observed")

            def density(latent: tf.Tensor) -> tf.Tensor:
                error = rows[FEATURES] - self.decode_standard(latent) - contribution
                return gaussian_log_likelihood(error, variance, observed)

            posterior, prior = tfd.Normal(mean, tf.exp(0.5 * log_var)), tfd.Normal(0.0, 1.0)
            if num_samples:
                seed = 0 if self.seed is None else self.seed
                bound = importance_bound(density, posterior, prior, num_samples, seed)
            else:
                bound = plain_bound(density, posterior, prior)
            return (bound - self._log_units(observed),)

        return self._over_batches(data, batch)[0]

    def _over_batches(
        self, data: Any, function: Callable[[Rows], tuple[tf.Tensor, ...]]
    ) -> list[np.ndarray]:
        self.require_fitted()
        results = [function(rows) for rows in batches_of(self.encode_data(data))]
        return [
            np.concatenate([keras.ops.convert_to_numpy(value) for value in values])
            for values in zip(*results, strict=True)
        ]
