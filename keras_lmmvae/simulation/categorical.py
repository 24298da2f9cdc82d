"""Rows grouped by any number of categorical factors."""

from collections.abc import Sequence

import numpy as np

from keras_lmmvae.simulation.draws import (
    Order,
    checked_settings,
    draw_effect_variance,
    draw_level_codes,
    draw_signal,
)
from keras_lmmvae.simulation.simulation import SimulatedEffects, Simulation, assemble

__all__ = ["draw_factors", "simulate_categorical"]


def draw_factors(
    rng: np.random.Generator,
    *,
    n: int,
    num_features: int,
    cardinalities: Sequence[int],
    effect_variances: Sequence[float],
    order: Order,
) -> SimulatedEffects:
    """Draws codes, variances and effects of every factor; see `simulate_categorical`."""
    factors = SimulatedEffects({}, {}, {}, {})
    for index, (cardinality, nominal) in enumerate(
        zip(cardinalities, effect_variances, strict=True)
    ):
        name = f"group_{index}"
        codes = draw_level_codes(rng, n, cardinality, shuffle=order == "crossed")
        variance = draw_effect_variance(rng, nominal, num_features)  # (p,)
        effects = rng.standard_normal((cardinality, num_features)) * np.sqrt(variance)  # (q, p)
        factors.columns[name] = codes
        factors.effects[name] = effects[:, None, :]  # (q, 1, p)
        factors.contribution[name] = effects[codes]  # (n, p)
        factors.effect_variance[name] = variance[None, :]  # (1, p)
    return factors


def simulate_categorical(
    *,
    n: int = 100_000,
    num_features: int = 100,
    cardinalities: Sequence[int] = (1000, 3000, 5000),
    effect_variances: Sequence[float] = (0.3, 0.3, 0.3),
    latent_dim: int = 1,
    order: Order = "nested",
    noise_variance: float = 1.0,
    seed: int | None = None,
) -> Simulation:
    """Simulates rows with random intercepts of crossed or nested factors.

        x[i] = f(u[i]) + mean + sum{ B_k[code_k[i]] : k=1...K } + e[i]
        B_k ~ MatrixNormal(0, I_q, diag(effect_variance_k))
        effect_variance_k[j] = (Poisson(v_k) + 1) * min(v_k, 1)

    The defaults are those of the paper. Level sizes are unequal (`draw_level_codes`).

    Args:
        n: Positive int, number of rows. Defaults to 100000.
        num_features: Positive int, number of features `p`. Defaults to 100.
        cardinalities: Positive ints, number of levels of each factor. Defaults to
            (1000, 3000, 5000).
        effect_variances: Non-negative floats, nominal variance `v_k` of each factor. Defaults to
            (0.3, 0.3, 0.3).
        latent_dim: Positive int, number of latent variables `d`. Defaults to 1.
        order: "nested" or "crossed". "nested", as in the paper, sorts the levels of every factor
            along the rows, so that the factors are nearly nested. "crossed" puts the levels in
            random order. Defaults to "nested".
        noise_variance: Positive float, variance of e. Defaults to 1.0.
        seed: Optional int. The same seed gives the same simulation. Defaults to None.

    Returns:
        simulation: A `Simulation` with the int64 columns "group_0", "group_1", ...

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> simulation = simulate_categorical(
        ...     n=100, num_features=5, cardinalities=(10,), effect_variances=(1.0,), seed=1
        ... )
        >>> simulation.effects["group_0"].shape
        (10, 1, 5)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899)
    """
    settings = checked_settings(locals())
    rng = np.random.default_rng(seed)
    latent, signal = draw_signal(rng, n, num_features, latent_dim)
    factors = draw_factors(
        rng,
        n=n,
        num_features=num_features,
        cardinalities=cardinalities,
        effect_variances=effect_variances,
        order=order,
    )
    return assemble(rng, "categorical", latent, signal, [factors], settings)
