"""Random-effects terms: each knows its columns, its basis, its prior and its posterior."""

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.random_intercept import RandomIntercept
from keras_lmmvae.effects.random_slopes import RandomSlopes
from keras_lmmvae.effects.spatial_effect import SpatialEffect

__all__ = ["RandomEffect", "RandomIntercept", "RandomSlopes", "SpatialEffect"]
