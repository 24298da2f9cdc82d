"""The simulated cases that the core is held to, and one way to run a model on each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

import keras_lmmvae as lmm
from keras_lmmvae.simulation import Simulation, split, take

__all__ = ["CASES", "Case", "Outcome", "run_case"]

NUM_ROWS = 20_000
EPOCHS = 25
BATCH_SIZE = 128
LEARNING_RATE = 2e-3


@dataclass(frozen=True)
class Case:
    """One simulated data set with its split.

    Attributes:
        structure: Name of the function `simulate_<structure>`.
        settings: Its arguments.
        terms: Terms of the model.
        split: "rows", "groups" or "future".
        split_on: Column of the split, where it needs one.
        most: Test MSE that LMMVAE must reach, if any.
    """

    structure: str
    settings: dict[str, Any]
    terms: tuple[Any, ...]
    split: str = "rows"
    split_on: str | None = None
    most: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a model did on a case: errors in the data's squared units, time in seconds."""

    mse: float
    oracle: float
    seconds: float
    model: lmm.LMMVAE
    simulation: Simulation


def _intercepts(number: int) -> tuple[Any, ...]:
    return tuple(lmm.RandomIntercept(f"group_{k}") for k in range(number))


def _categorical(variance: float, **settings: Any) -> dict[str, Any]:
    levels = settings.pop("cardinalities", (200, 600, 1000))
    return {"cardinalities": levels, "effect_variances": (variance,) * len(levels), **settings}


_LONGITUDINAL = {"num_subjects": 2000, "effect_variances": (3.0, 3.0, 3.0), "correlation": 0.3}
_SPATIAL = {"num_locations": 2000, "effect_variance": 3.0, "squared_length_scale": 0.3}
_SLOPES = (lmm.RandomSlopes("subject", time="t", degree=2),)
_SURFACE = (lmm.SpatialEffect(("lon", "lat")),)

CASES: dict[str, Case] = {
    "nested": Case("categorical", _categorical(3.0), _intercepts(3), most=1.24),
    "crossed": Case("categorical", _categorical(3.0, order="crossed"), _intercepts(3), most=1.20),
    "low": Case("categorical", _categorical(0.3, latent_dim=2), _intercepts(3), most=1.24),
    "sparse": Case(
        "categorical",
        _categorical(0.3, cardinalities=(5000, 10_000), order="crossed"),
        _intercepts(2),
        most=1.53,
    ),
    "no-effect": Case("categorical", _categorical(0.0, cardinalities=(10_000,)), _intercepts(1)),
    "longitudinal": Case("longitudinal", _LONGITUDINAL, _SLOPES, most=1.48),
    "future": Case("longitudinal", _LONGITUDINAL, _SLOPES, "future", "t", 2.10),
    "spatial": Case("spatial", _SPATIAL, _SURFACE, most=1.13),
    "unseen": Case("spatial", _SPATIAL, _SURFACE, "groups", "location", 1.12),
}


def run_case(
    case: Case,
    seed: int,
    *,
    terms: tuple[Any, ...] | None = None,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float | None = LEARNING_RATE,
    **arguments: Any,
) -> Outcome:
    """Simulates, splits, fits and measures.

    Args:
        case: The case.
        seed: Seed of data, split and model.
        terms: Terms instead of the case's own; an empty tuple makes a plain VAE.
        epochs: Epochs.
        batch_size: Rows a step.
        learning_rate: Of Adam with cosine decay to 0; `None`: Keras' Adam as it is.
        **arguments: Further arguments of `LMMVAE`.
    """
    simulate = getattr(lmm.simulation, f"simulate_{case.structure}")
    simulation = simulate(n=NUM_ROWS, seed=seed, **case.settings)
    train, test = split(simulation.data, case.split, on=case.split_on, seed=seed)
    rows, held_out = take(simulation.data, train), take(simulation.data, test)
    effects = case.terms if terms is None else terms
    model = lmm.LMMVAE(simulation.latent_dim, effects, seed=seed, **arguments)
    model.adapt(rows)
    rate: Any = 1e-3
    if learning_rate is not None:
        steps = int(np.ceil(len(train) / batch_size)) * epochs
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(optimizer=keras.optimizers.Adam(rate))
    start = time.perf_counter()
    model.fit(rows, epochs=epochs, batch_size=batch_size, verbose=0)
    seconds = time.perf_counter() - start
    error = lmm.metrics.mse(held_out["x"], model.reconstruct(held_out))
    oracle = lmm.metrics.oracle_mse(simulation, train, test)
    return Outcome(error, oracle, seconds, model, simulation)
