"""Keras layers of random effects, for any Keras model: products with Z, and tables of effects."""

from keras_lmmvae.design import compact_codes
from keras_lmmvae.layers.design_matrix_layer import DesignMatrixLayer
from keras_lmmvae.layers.random_effects_aggregator import RandomEffectsAggregator
from keras_lmmvae.linalg import LevelPosterior

__all__ = ["DesignMatrixLayer", "LevelPosterior", "RandomEffectsAggregator", "compact_codes"]
