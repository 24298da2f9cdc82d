"""Rows of subjects followed over time."""

from collections.abc import Sequence

import numpy as np

from keras_lmmvae.simulation.draws import (
    FloatArray,
    checked_settings,
    draw_level_codes,
    draw_signal,
)
from keras_lmmvae.simulation.simulation import SimulatedEffects, Simulation, assemble
from keras_lmmvae.validation import received

__all__ = ["simulate_longitudinal", "term_correlation"]


def term_correlation(basis_size: int, correlation: float) -> FloatArray:
    """Correlation matrix of the effects of one subject. The intercept comes first.

    Args:
        basis_size: Positive int, number of terms `M`: the intercept and `M - 1` slopes.
        correlation: Float, correlation of the intercept with each slope. The slopes are
            uncorrelated.

    Returns:
        matrix: Float64 array `(M, M)`, positive definite.

    Raises:
        ValueError: If the matrix is not positive definite: `(M - 1) * correlation**2 >= 1`.
    """
    if not (basis_size - 1) * correlation**2 < 1.0:
        raise ValueError(
            f"`correlation` must be below {(basis_size - 1) ** -0.5:.3g} in absolute value, or "
            f"the covariance of {basis_size} terms is not positive definite. "
            + received(correlation=correlation)
        )
    matrix = np.eye(basis_size)
    matrix[0, 1:] = matrix[1:, 0] = correlation
    return matrix


def simulate_longitudinal(
    *,
    n: int = 100_000,
    num_features: int = 100,
    num_subjects: int = 1000,
    effect_variances: Sequence[float] = (0.3, 0.3, 0.3),
    correlation: float = 0.3,
    latent_dim: int = 1,
    noise_variance: float = 1.0,
    seed: int | None = None,
) -> Simulation:
    """Simulates rows with a random polynomial in time for each subject.

        x[i] = f(u[i]) + mean + sum{ t[i]**m * B[subject[i], m] : m=0...M-1 } + e[i]
        B[subject, :, j] ~ Normal(0, S R S),  S = diag(sqrt(effect_variances)),
        R = term_correlation(M, correlation),  t[i] ~ Uniform(0, 1)

    All features have the same variances.

    Args:
        n: Positive int, number of rows. Defaults to 100000.
        num_features: Positive int, number of features `p`. Defaults to 100.
        num_subjects: Positive int, number of subjects `q`. Defaults to 1000.
        effect_variances: Non-negative floats, variances of the intercept, the slope, the
            quadratic term, ... Their number is `M`. Defaults to (0.3, 0.3, 0.3).
        correlation: Float, correlation of the intercept with each slope. The slopes are
            uncorrelated. Defaults to 0.3.
        latent_dim: Positive int, number of latent variables `d`. Defaults to 1.
        noise_variance: Positive float, variance of e. Defaults to 1.0.
        seed: Optional int. The same seed gives the same simulation. Defaults to None.

    Returns:
        simulation: A `Simulation` with the columns "subject", int64, and "t", float64. The rows
            are sorted by subject, not by time.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> simulation = simulate_longitudinal(n=100, num_features=5, num_subjects=10, seed=1)
        >>> simulation.effects["subject"].shape
        (10, 3, 5)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899)
    """
    settings = checked_settings(locals())
    basis_size = len(effect_variances)
    root = np.linalg.cholesky(term_correlation(basis_size, correlation))  # (M, M)
    root *= np.sqrt(np.asarray(effect_variances))[:, None]
    rng = np.random.default_rng(seed)
    latent, signal = draw_signal(rng, n, num_features, latent_dim)
    subject = draw_level_codes(rng, n, num_subjects)
    t = rng.uniform(size=n)
    effects = root @ rng.standard_normal((num_subjects, basis_size, num_features))  # (q, M, p)
    contribution = np.zeros_like(signal)  # (n, p)
    for power in range(basis_size):
        contribution += t[:, None] ** power * effects[subject, power]
    variance = np.tile(np.asarray(effect_variances, np.float64)[:, None], num_features)  # (M, p)
    effects_of_subjects = SimulatedEffects(
        columns={"subject": subject, "t": t},
        effects={"subject": effects},
        contribution={"subject": contribution},
        effect_variance={"subject": variance},
    )
    return assemble(rng, "longitudinal", latent, signal, [effects_of_subjects], settings)
