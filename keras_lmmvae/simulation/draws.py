"""The random parts that all simulated structures share, and the checks of their arguments."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from keras_lmmvae.validation import check_not_negative, check_positive, received

__all__ = [
    "FloatArray",
    "IntArray",
    "Order",
    "checked_settings",
    "draw_effect_variance",
    "draw_level_codes",
    "draw_signal",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Order = Literal["nested", "crossed"]

COUNTS = ("n", "num_features", "latent_dim", "num_subjects", "num_locations", "cardinalities")
POSITIVE = ("noise_variance", "squared_length_scale")
NOT_NEGATIVE = ("effect_variance", "effect_variances")


def checked_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the arguments of a simulation and returns them, with sequences as tuples.

    Args:
        arguments: The arguments by name.

    Raises:
        ValueError: If an argument is out of its range.
    """
    settings: dict[str, Any] = {}
    for name, value in arguments.items():
        is_sequence = name in ("cardinalities", "effect_variances")
        settings[name] = tuple(value) if is_sequence else value
        for one in settings[name] if is_sequence else (value,):
            if name in COUNTS:
                check_positive(name, one, integer=True, minimum=1)
            elif name in POSITIVE:
                check_positive(name, one)
            elif name in NOT_NEGATIVE:
                check_not_negative(name, one)
    variances = settings.get("effect_variances", (1.0,))
    cardinalities = settings.get("cardinalities", variances)
    if len(variances) == 0 or len(cardinalities) != len(variances):
        raise ValueError(
            "`effect_variances` must have at least one value, and `cardinalities` one for each of "
            "them. " + received(cardinalities=cardinalities, effect_variances=variances)
        )
    if settings.get("order", "nested") not in get_args(Order):
        raise ValueError(
            f"`order` must be one of {get_args(Order)}. " + received(order=settings["order"])
        )
    return settings


def draw_level_codes(
    rng: np.random.Generator, n: int, num_levels: int, *, shuffle: bool = False
) -> IntArray:
    """Draws the level of each row. Level sizes are multinomial with unequal weights.

        weight[level] = Poisson(3) + 1
        size ~ Multinomial(n, weight / sum(weight))

    A level may have no rows.

    Args:
        rng: Random generator.
        n: Positive int, number of rows.
        num_levels: Positive int, number of levels `q`.
        shuffle: Whether the codes are in random order. If False, they are sorted along the rows.
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
