"""Rows at locations of the plane that also belong to categorical groups."""

from collections.abc import Sequence

import numpy as np

from keras_lmmvae.simulation.categorical import draw_factors
from keras_lmmvae.simulation.draws import Order, checked_settings, draw_signal
from keras_lmmvae.simulation.simulation import Simulation, assemble
from keras_lmmvae.simulation.spatial import draw_field

__all__ = ["simulate_spatial_categorical"]


def simulate_spatial_categorical(
    *,
    n: int = 100_000,
    num_features: int = 100,
    num_locations: int = 10_000,
    effect_variance: float = 3.0,
    squared_length_scale: float = 0.3,
    cardinalities: Sequence[int] = (1000,),
    effect_variances: Sequence[float] = (0.3,),
    order: Order = "nested",
    latent_dim: int = 1,
    noise_variance: float = 1.0,
    seed: int | None = None,
) -> Simulation:
    """Simulates rows with a Gaussian process over locations and random intercepts of factors.

        x[i] = f(u[i]) + mean + B[location[i]] + sum{ B_k[code_k[i]] : k=1...K } + e[i]

    B is drawn as in `simulate_spatial`, B_k as in `simulate_categorical`. The locations are sorted
    along the rows. With order "nested" a level of a factor therefore has a few locations with
    successive numbers, which lie anywhere in the plane.

    Args:
        n: Positive int, number of rows. Defaults to 100000.
        num_features: Positive int, number of features `p`. Defaults to 100.
        num_locations: Positive int, number of locations. Defaults to 10000.
        effect_variance: Non-negative float, nominal variance of the Gaussian process. Defaults
            to 3.0.
        squared_length_scale: Positive float, the kernel's squared length scale. Defaults to 0.3.
        cardinalities: Positive ints, number of levels of each factor. Defaults to (1000,).
        effect_variances: Non-negative floats, nominal variance of each factor. Defaults to (0.3,).
        order: "nested" (levels sorted along the rows) or "crossed" (levels in random order).
            Defaults to "nested".
        latent_dim: Positive int, number of latent variables `d`. Defaults to 1.
        noise_variance: Positive float, variance of e. Defaults to 1.0.
        seed: Optional int. The same seed gives the same simulation. Defaults to None.

    Returns:
        simulation: A `Simulation` with the columns "lon", "lat", "location", "group_0", ...

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> simulation = simulate_spatial_categorical(
        ...     n=100, num_features=5, num_locations=20, cardinalities=(10,), seed=1
        ... )
        >>> sorted(simulation.effects)
        ['group_0', 'location']

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
    factors = draw_factors(
        rng,
        n=n,
        num_features=num_features,
        cardinalities=cardinalities,
        effect_variances=effect_variances,
        order=order,
    )
    return assemble(rng, "spatial_categorical", latent, signal, [field, factors], settings)
