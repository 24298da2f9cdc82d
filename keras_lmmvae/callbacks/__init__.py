"""Keras callbacks for `LMMVAE.fit`: KL annealing, exact effects and a log of variances."""

from keras_lmmvae.callbacks.kl_annealing import KLAnnealing
from keras_lmmvae.callbacks.refresh_effects import RefreshEffects
from keras_lmmvae.callbacks.variance_components_logger import VarianceComponentsLogger

__all__ = ["KLAnnealing", "RefreshEffects", "VarianceComponentsLogger"]
