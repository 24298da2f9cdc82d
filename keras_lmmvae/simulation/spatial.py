"""Rows at locations of the plane, correlated by their distance."""

import numpy as np

from keras_lmmvae.simulation.draws import (
    checked_settings,
    draw_effect_variance,
    draw_level_codes,
    draw_signal,
)
from keras_lmmvae.simulation.gaussian_process import rbf_root
from keras_lmmvae.simulation.simulation import SimulatedEffects, Simulation, assemble

__all__ = ["draw_field", "simulate_spatial"]


def draw_field(
    rng: np.random.Generator,
    *,
    n: int,
    num_features: int,
    num_locations: int,
    effect_variance: float,
    squared_length_scale: float,
) -> SimulatedEffects:
    """Draws locations, variances and the Gaussian process; see `simulate_spatial`."""
    coordinates = rng.uniform(-1.0, 1.0, (num_locations, 2))
    location = draw_level_codes(rng, n, num_locations)
    variance = draw_effect_variance(rng, effect_variance, num_features)  # (p,)
    root = rbf_root(coordinates, squared_length_scale)  # (L, m)
    effects = root @ rng.standard_normal((root.shape[1], num_features))  # (L, p)
    effects *= np.sqrt(variance)
    lon, lat = coordinates[location].T
    return SimulatedEffects(
        columns={"lon": lon.copy(), "lat": lat.copy(), "location": location},
        effects={"location": effects[:, None, :]},
        contribution={"location": effects[location]},
        effect_variance={"location": variance[None, :]},
    )


def simulate_spatial(
    *,
    n: int = 100_000,
    num_features: int = 100,
    num_locations: int = 10_000,
    effect_variance: float = 3.0,
    squared_length_scale: float = 0.3,
    latent_dim: int = 1,
    noise_variance: float = 1.0,
    seed: int | None = None,
) -> Simulation:
    """Simulates rows with a Gaussian process over their locations.

        x[i] = f(u[i]) + mean + B[location[i]] + e[i]
        B ~ MatrixNormal(0, K, diag(variance))
        K[a, b] = exp(-distance(a, b)**2 / (2 * squared_length_scale))
        variance[j] = (Poisson(v) + 1) * min(v, 1)

    Locations are uniform on [-1, 1]**2. Their numbers of rows are unequal (`draw_level_codes`).
    The covariance of the draw differs from K by at most 1e-12 (`rbf_root`). Drawing 10,000
    locations takes less than a second.

    Args:
        n: Positive int, number of rows. Defaults to 100000.
        num_features: Positive int, number of features `p`. Defaults to 100.
        num_locations: Positive int, number of locations. Defaults to 10000.
        effect_variance: Non-negative float, nominal variance `v`. Defaults to 3.0.
        squared_length_scale: Positive float, the kernel's squared length scale. Defaults to 0.3.
        latent_dim: Positive int, number of latent variables `d`. Defaults to 1.
        noise_variance: Positive float, variance of e. Defaults to 1.0.
        seed: Optional int. The same seed gives the same simulation. Defaults to None.

    Returns:
        simulation: A `Simulation` with the columns "lon" and "lat", float64, and "location",
            int64, the number of the location, which `split` can use.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> simulation = simulate_spatial(n=100, num_features=5, num_locations=20, seed=1)
        >>> simulation.effects["location"].shape
        (20, 1, 5)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899)
    """
    settings = checked_settings(locals())
    rng = np.random.default_rng(seed)
    latent, signal = draw_signal(rng, n, num_features, latent_dim)
    field = draw_field(
        rng,
        n=n,
        num_features=num_features,
        num_locations=num_locations,
        effect_variance=effect_variance,
        squared_length_scale=squared_length_scale,
    )
    return assemble(rng, "spatial", latent, signal, [field], settings)
