"""What a fitted model says about rows: reconstructions with uncertainty, and likelihoods."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.elbo import importance_bound, plain_bound
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.rows import FEATURES, Rows
from keras_lmmvae.validation import check_positive

__all__ = ["Prediction", "log_likelihood", "predictive", "term_effects"]


@dataclass(frozen=True)
class Prediction:
    """What `predictive` says of `n` rows, in the features' units.

    Attributes:
        mean: Reconstruction `f(E[u | x]) + Z B`, array `(n, p)`.
        standard_deviation: Of a new observation around it, array `(n, p)`: noise, and what is
            not known of the effects and of the latent. A missing cell is such an observation.
        contributions: Term name -> its part `Z_k B_k` of the mean, array `(n, p)`.
        population: The rest of the mean, `f(E[u | x])`, array `(n, p)`.
    """

    mean: np.ndarray
    standard_deviation: np.ndarray
    contributions: dict[str, np.ndarray]
    population: np.ndarray


def predictive(model: FittedModel, data: Any, refine: int = 0) -> Prediction:
    """Reconstructions with their uncertainty; see `LMMVAE.predictive`."""
    check_positive("refine", refine, integer=True, minimum=0)

    def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
        seen = model.infer_refined(rows, refine, by_density=True)
        deviation = tf.sqrt(model.predictive_variance(seen)) * model.feature_scale
        parts = [part * model.feature_scale for part in seen.parts.values()]
        return model.to_units(seen.population), deviation, *parts

    population, deviation, *parts = model.pass_over(data).collect(batch)
    mean = population + sum(parts) if parts else population
    labels = [term.label for term in model.random_effects]
    return Prediction(mean, deviation, dict(zip(labels, parts, strict=True)), population)


def term_effects(model: FittedModel, name: str, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Effect of one term on rows, with its deviation; see `LMMVAE.term_effects`."""
    label = model.find_term(name).label

    def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
        variance = model.mixed_model.term_variance(label, rows)
        mean = model.mixed_model.parts(rows)[label]
        return mean * model.feature_scale, tf.sqrt(variance) * model.feature_scale

    mean, deviation = model.pass_over(data).collect(batch)
    return mean, deviation


def log_likelihood(
    model: FittedModel, data: Any, num_samples: int = 0, refine: int = 10
) -> np.ndarray:
    """Lower bound of every row's log density; see `LMMVAE.log_likelihood`."""
    check_positive("num_samples", num_samples, integer=True, minimum=0)
    check_positive("refine", refine, integer=True, minimum=0)

    def batch(rows: Rows) -> tuple[tf.Tensor, ...]:
        seen = model.infer_refined(rows, refine, by_density=True)
        effects_variance = model.variance_given_latent(rows) - model.noise_variance

        def density(latent: tf.Tensor) -> tf.Tensor:
            eta = seen.decoded(latent) + seen.contribution
            return model.likelihood.log_prob(rows[FEATURES], eta, effects_variance, seen.observed)

        posterior, prior = seen.posterior, model.latent_prior.distribution()
        if num_samples:
            seed = 0 if model.seed is None else model.seed
            bound = importance_bound(density, posterior, prior, num_samples, seed)
        else:
            bound = plain_bound(density, posterior, prior)
        return (bound - model.log_units(seen.observed),)

    return model.pass_over(data).collect(batch)[0]
