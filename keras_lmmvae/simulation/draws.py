"""The random pieces that every simulated structure is made of."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = [
    "FloatArray",
    "IntArray",
    "Order",
    "check_at_least",
    "check_factors",
    "check_positive",
    "draw_effect_variance",
    "draw_level_codes",
    "draw_signal",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Order = Literal["nested", "crossed"]


def draw_level_codes(
    rng: np.random.Generator, n: int, num_levels: int, *, shuffle: bool = False
) -> IntArray:
    """Draws the level of each row; level sizes are multinomial, with unequal weights.

        weight[level] = Poisson(3) + 1
        size ~ Multinomial(n, weight / sum(weight))

    A level may be left without rows.

    Args:
        rng: Random generator.
        n: Positive int, number of rows.
        num_levels: Positive int, number of levels `q`.
        shuffle: If True the labels are in random order, otherwise sorted along the rows.
            Defaults to False.

    Returns:
        codes: Int64 array `(n,)` in `[0, num_levels)`.
    """
    weights = rng.poisson(3.0, num_levels) + 1.0
    sizes = rng.multinomial(n, weights / weights.sum())
    codes = np.repeat(np.arange(num_levels, dtype=np.int64), sizes)  # (n,)
    return rng.permutation(codes) if shuffle else codes


def draw_effect_variance(
    rng: np.random.Generator, nominal_variance: float, num_features: int
) -> FloatArray:
    """Draws the variance of one effect in each feature: `(Poisson(v) + 1) * min(v, 1)`.

    Args:
        rng: Random generator.
        nominal_variance: Non-negative float `v`.
        num_features: Positive int, number of features `p`.

    Returns:
        effect_variance: Float64 array `(p,)`, in squared units of the features.
    """
    scale = min(float(nominal_variance), 1.0)
    counts = rng.poisson(nominal_variance, num_features) + 1.0
    return np.asarray(counts * scale, np.float64)


def draw_signal(
    rng: np.random.Generator, n: int, num_features: int, latent_dim: int
) -> tuple[FloatArray, FloatArray]:
    """Draws the latent variables and the fixed part of the rows.

        u[i] ~ Normal(0, I_d)
        signal[i, j] = mean[j] + sum{ u[i, l] * W[j, l] * cos(u[i, l] * W[j, l]) : l=1...d }
        W[j, l] ~ Normal(0, 1),  mean[j] ~ Uniform(-10, 10)

    Args:
        rng: Random generator.
        n: Positive int, number of rows.
        num_features: Positive int, number of features `p`.
        latent_dim: Positive int, number of latent variables `d`.

    Returns:
        latent: Float64 array `(n, d)`.
        signal: Float64 array `(n, p)`.
    """
    latent = rng.standard_normal((n, latent_dim))
    weights = rng.standard_normal((num_features, latent_dim))
    mean = rng.uniform(-10.0, 10.0, num_features)
    signal = np.tile(mean, (n, 1))  # (n, p)
    for column in range(latent_dim):
        product = np.outer(latent[:, column], weights[:, column])  # (n, p)
        signal += product * np.cos(product)
    return latent, signal


def check_positive(**values: float) -> None:
    """Raises a ValueError unless every value is a finite number above 0."""
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(
                f"`{name}` must be a positive finite number. Received: {name}={value!r}"
            )


def check_at_least(minimum: float, **values: float) -> None:
    """Raises a ValueError unless every value is finite and at least `minimum`.

    An int `minimum` asks for ints.
    """
    for name, value in values.items():
        if isinstance(minimum, int) and not isinstance(value, (int, np.integer)):
            raise ValueError(f"`{name}` must be an int. Received: {name}={value!r}")
        if not (np.isfinite(value) and value >= minimum):
            raise ValueError(f"`{name}` must be at least {minimum}. Received: {name}={value!r}")


def check_factors(
    cardinalities: Sequence[int], effect_variances: Sequence[float], order: str
) -> None:
    """Raises a ValueError unless the factors have one variance each and a known order."""
    if len(cardinalities) == 0 or len(cardinalities) != len(effect_variances):
        raise ValueError(
            "`cardinalities` and `effect_variances` must have one value per factor, and at least "
            f"one factor. Received: cardinalities={tuple(cardinalities)!r}, "
            f"effect_variances={tuple(effect_variances)!r}"
        )
    for cardinality in cardinalities:
        check_at_least(1, cardinalities=cardinality)
    for variance in effect_variances:
        check_at_least(0.0, effect_variances=variance)
    if order not in get_args(Order):
        raise ValueError(f"`order` must be one of {get_args(Order)}. Received: order={order!r}")
