"""The result of a simulation: the rows and the truth behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from keras_lmmvae.simulation.draws import FloatArray

__all__ = ["SimulatedEffects", "Simulation", "Structure", "assemble"]

Structure = Literal["categorical", "longitudinal", "spatial", "spatial_categorical"]


@dataclass(frozen=True)
class SimulatedEffects:
    """Random effects that were simulated together, and the columns that they depend on.

    Attributes:
        columns: Dict of arrays `(n,)`, the effect columns.
        effects: Dict of float64 arrays `(levels, M, p)`, by the column of their levels.
        contribution: Dict of float64 arrays `(n, p)`, the rows of Z @ B, by the same name.
        effect_variance: Dict of float64 arrays `(M, p)`, by the same name.
    """

    columns: dict[str, np.ndarray]
    effects: dict[str, FloatArray]
    contribution: dict[str, FloatArray]
    effect_variance: dict[str, FloatArray]


@dataclass(frozen=True, repr=False)
class Simulation:
    """Simulated rows with the signal, the random effects and the variances behind them.

        x[i] = signal[i] + sum{ contribution[name][i] : name in effects } + e[i]
        contribution[name][i] = sum{ basis[i, m] * effects[name][level[i], m] : m=1...M }
        e[i] ~ Normal(0, noise_variance * I_p)

    The basis is 1 (`M` = 1). Longitudinal data have the basis 1, t, t**2, ...

    Attributes:
        data: Dict with `x`, float32 `(n, p)`, and the effect columns, each `(n,)`.
        latent: Float64 array `(n, d)`, the latent variables u.
        signal: Float64 array `(n, p)`, the fixed part: f(u) plus the mean of each feature.
        effects: Dict of float64 arrays `(levels, M, p)`, the random effects, by the column that
            holds their levels (`group_0`, `subject`, `location`).
        contribution: Dict of float64 arrays `(n, p)`, the rows of Z @ B, by the same name.
        effect_variance: Dict of float64 arrays `(M, p)`, the true variances of the effects in
            squared units of the features, by the same name.
        noise_variance: Positive float, variance of e.
        structure: One of "categorical", "longitudinal", "spatial", "spatial_categorical".
        settings: Dict of the arguments of the simulation.
    """

    data: dict[str, np.ndarray]
    latent: FloatArray
    signal: FloatArray
    effects: dict[str, FloatArray]
    contribution: dict[str, FloatArray]
    effect_variance: dict[str, FloatArray]
    noise_variance: float
    structure: Structure
    settings: dict[str, Any]

    @property
    def num_rows(self) -> int:
        """Number of rows `n`."""
        return len(self.signal)

    @property
    def num_features(self) -> int:
        """Number of features `p`."""
        return int(self.signal.shape[1])

    @property
    def latent_dim(self) -> int:
        """Number of latent variables `d`."""
        return int(self.latent.shape[1])

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"Simulation({self.structure!r}, {arguments})"


def assemble(
    rng: np.random.Generator,
    structure: Structure,
    latent: FloatArray,
    signal: FloatArray,
    parts: Sequence[SimulatedEffects],
    settings: dict[str, Any],
) -> Simulation:
    """Draws the noise and adds signal, effects and noise up to `x`.

    Args:
        rng: Random generator.
        structure: Name of the structure.
        latent: Float64 array `(n, d)`.
        signal: Float64 array `(n, p)`.
        parts: The random effects.
        settings: The arguments of the simulation.
    """

    def joined(name: str) -> dict[str, Any]:
        return {key: value for part in parts for key, value in getattr(part, name).items()}

    noise_variance = float(settings["noise_variance"])
    contribution = joined("contribution")
    x = rng.standard_normal(signal.shape) * np.sqrt(noise_variance)  # (n, p)
    x += signal
    for part in contribution.values():
        x += part
    return Simulation(
        data={"x": x.astype(np.float32), **joined("columns")},
        latent=latent,
        signal=signal,
        effects=joined("effects"),
        contribution=contribution,
        effect_variance=joined("effect_variance"),
        noise_variance=noise_variance,
        structure=structure,
        settings=settings,
    )
