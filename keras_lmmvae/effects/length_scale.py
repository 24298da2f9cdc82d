"""Maximum marginal likelihood of a kernel's length scale, from sufficient statistics."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from scipy.optimize import minimize_scalar

__all__ = ["fit_length_scale", "profile_log_likelihood"]

# The profile tries these ratios effect_variance / noise_variance for each feature.
_RATIOS = np.geomspace(1e-4, 1e3, 57)
# The search ends when the length scale is known within this share of itself.
_LOG_TOLERANCE = 0.02


def profile_log_likelihood(
    gram: np.ndarray, scores: np.ndarray, squares: np.ndarray, num_rows: int
) -> float:
    """Log marginal likelihood of all features in nats, up to a constant.

        r[:, f] ~ Normal(0, noise_variance[f] * (I + ratio[f] * Phi Phi'))

    Both variances of each feature are profiled out. The best noise variance for a given ratio is
    in closed form, and the best ratio is taken from a grid.
    """
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    rotated = (vectors.T @ scores) ** 2  # (m, p)
    best = np.full(scores.shape[1], -np.inf)
    for ratio in _RATIOS:
        weight = ratio / (1.0 + ratio * eigenvalues)
        noise = (squares - weight @ rotated) / num_rows
        noise = np.maximum(noise, 1e-12 * np.maximum(squares, 1e-12) / num_rows)
        value = -0.5 * (num_rows * np.log(noise) + np.log1p(ratio * eigenvalues).sum())
        best = np.maximum(best, value)
    return float(best.sum())


def fit_length_scale(
    basis_of: Callable[[tf.Tensor, float], tf.Tensor],
    inputs: np.ndarray,
    residual: np.ndarray,
    bounds: tuple[float, float],
    num_grid: int = 7,
    num_refinements: int = 9,
) -> float:
    """Length scale of the highest marginal likelihood: the best of a grid, then refined."""
    points = tf.constant(inputs, tf.float32)
    values = tf.constant(residual, tf.float32)
    squares = np.square(residual, dtype=np.float64).sum(axis=0)

    def misfit(log_scale: float) -> float:
        basis = basis_of(points, float(np.exp(log_scale)))
        gram = tf.matmul(basis, basis, transpose_a=True).numpy().astype(np.float64)
        scores = tf.matmul(basis, values, transpose_a=True).numpy().astype(np.float64)
        return -profile_log_likelihood(gram, scores, squares, len(inputs))

    grid = np.linspace(np.log(bounds[0]), np.log(bounds[1]), num_grid)
    at = int(np.argmin([misfit(point) for point in grid]))
    limits = grid[max(at - 1, 0)], grid[min(at + 1, num_grid - 1)]
    options = {"xatol": _LOG_TOLERANCE, "maxiter": num_refinements}
    found = minimize_scalar(misfit, bounds=limits, method="bounded", options=options)
    return float(np.exp(found.x))
