"""Keras layers of random effects: products with Z, tables of effects, and their posterior."""

from keras_lmmvae.design import compact_codes
from keras_lmmvae.layers.conjugate_posterior import ConjugatePosterior
from keras_lmmvae.layers.design_matrix_layer import DesignMatrixLayer
from keras_lmmvae.layers.level_posterior import LevelPosterior
from keras_lmmvae.layers.random_effects_aggregator import RandomEffectsAggregator

__all__ = [
    "ConjugatePosterior",
    "DesignMatrixLayer",
    "LevelPosterior",
    "RandomEffectsAggregator",
    "compact_codes",
]
