"""Simulated data with known random effects, and the splits to evaluate on.

One function per correlation structure; each returns a `Simulation`, which holds the rows and the
whole truth behind them. NumPy, pandas and SciPy only: no TensorFlow is imported.
"""

from keras_lmmvae.simulation.categorical import simulate_categorical
from keras_lmmvae.simulation.longitudinal import simulate_longitudinal
from keras_lmmvae.simulation.simulation import Simulation
from keras_lmmvae.simulation.spatial import simulate_spatial
from keras_lmmvae.simulation.spatial_categorical import simulate_spatial_categorical
from keras_lmmvae.simulation.splits import split, take

__all__ = [
    "Simulation",
    "simulate_categorical",
    "simulate_longitudinal",
    "simulate_spatial",
    "simulate_spatial_categorical",
    "split",
    "take",
]
