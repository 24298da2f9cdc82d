"""Slow, obvious versions of the package's maths, in float64 NumPy: the oracles of the tests."""

from __future__ import annotations

import numpy as np

__all__ = [
    "blup",
    "dense_design",
    "gaussian_process_posterior",
    "kernel_matrix",
    "log_density",
    "normal_kl",
    "segment_mean",
]

Array = np.ndarray


def dense_design(codes: Array, basis: Array | None, num_levels: int) -> Array:
    """Z itself, `(n, levels * m)`: row i is the indicator of its level times its basis."""
    basis = np.ones((len(codes), 1)) if basis is None else np.asarray(basis, np.float64)
    size = basis.shape[1]
    design = np.zeros((len(codes), num_levels * size))
    for row, code in enumerate(codes):
        if code >= 0:
            design[row, code * size : (code + 1) * size] = basis[row]
    return design


def segment_mean(values: Array, codes: Array, num_levels: int) -> Array:
    """Means of the rows of every level, one level after the other; 0 without rows."""
    means = np.zeros((num_levels, *values.shape[1:]))
    for level in range(num_levels):
        if np.any(codes == level):
            means[level] = np.asarray(values, np.float64)[codes == level].mean(axis=0)
    return means


def blup(
    values: Array,
    design: Array,
    noise_variance: Array,
    effect_variance: Array,
    prior_shape: Array,
    weights: Array | None = None,
) -> tuple[Array, Array]:
    """Posterior mean `(q, p)` and covariance `(p, q, q)` by dense linear algebra.

    Through the marginal covariance of the rows, not through the precision of the effects, so
    that it shares no formula with the package:

        V = noise_variance * inv(weights) + effect_variance * Z S Z',    S = prior_shape
        mean = effect_variance * S Z' inv(V) r
        covariance = effect_variance * S - effect_variance**2 * S Z' inv(V) Z S
    """
    weights = np.ones(len(values)) if weights is None else weights
    kept = weights > 0
    design, values, weights = design[kept], np.asarray(values, np.float64)[kept], weights[kept]
    means, covariances = [], []
    for feature in range(values.shape[1]):
        prior = effect_variance[feature] * prior_shape
        marginal = noise_variance[feature] * np.diag(1.0 / weights) + design @ prior @ design.T
        gain = prior @ design.T @ np.linalg.inv(marginal)
        means.append(gain @ values[:, feature])
        covariances.append(prior - gain @ design @ prior)
    return np.stack(means, axis=1), np.stack(covariances)


def normal_kl(mean: Array, covariance: Array, prior_covariance: Array) -> float:
    """KL(Normal(mean, covariance) || Normal(0, prior_covariance)), nats."""
    precision = np.linalg.inv(prior_covariance)
    log_ratio = np.linalg.slogdet(prior_covariance)[1] - np.linalg.slogdet(covariance)[1]
    trace = np.trace(precision @ covariance)
    return 0.5 * float(trace + mean @ precision @ mean - len(mean) + log_ratio)


def kernel_matrix(kernel: str, x1: Array, x2: Array, length_scale: float) -> Array:
    """Kernel values, one pair of points after the other."""
    formulas = {
        "rbf": lambda r: np.exp(-(r**2) / 2),
        "matern12": lambda r: np.exp(-r),
        "matern32": lambda r: (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r),
        "matern52": lambda r: (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r),
    }
    matrix = np.zeros((len(x1), len(x2)))
    for i, a in enumerate(x1):
        for j, b in enumerate(x2):
            matrix[i, j] = formulas[kernel](np.sqrt(np.sum((a - b) ** 2)) / length_scale)
    return matrix


def gaussian_process_posterior(
    train: Array, cross: Array, test: Array, values: Array, noise_variance: float
) -> tuple[Array, Array]:
    """Mean `(t, p)` and covariance `(t, t)` of the process at test points given noisy rows.

    Args:
        train: Kernel of the rows, `(n, n)`.
        cross: Kernel of test points and rows, `(t, n)`.
        test: Kernel of the test points, `(t, t)`.
        values: Array `(n, p)`.
        noise_variance: Of a row.
    """
    gain = cross @ np.linalg.inv(train + noise_variance * np.eye(len(train)))
    return gain @ values, test - gain @ cross.T


def log_density(values: Array, covariance: Array) -> float:
    """Log density of Normal(0, covariance) at `values` `(n,)`."""
    quadratic = values @ np.linalg.solve(covariance, values)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return -0.5 * float(quadratic + log_det)
