"""Simulated data with known random effects, and splits into training and test rows.

Each correlation structure has a function that returns a `Simulation`: the rows and the truth
behind them. TensorFlow is not imported.
"""

from keras_lmmvae.simulation.simulation import (
    Simulation,
    simulate_categorical,
    simulate_longitudinal,
    simulate_spatial,
    simulate_spatial_categorical,
)
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
