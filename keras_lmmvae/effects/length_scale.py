"""Maximum likelihood of a kernel's length scale, on blocks of rows."""

import numpy as np
import tensorflow as tf
from scipy.optimize import minimize_scalar
from scipy.spatial import cKDTree

from keras_lmmvae.kernels import Kernel
from keras_lmmvae.linalg import eigh

__all__ = ["ProcessLikelihood", "blocks_of_rows", "profile_log_likelihood"]

# The profile tries these ratios effect_variance / noise_variance for each feature.
_RATIOS = np.geomspace(1e-4, 1e3, 57)
# The search ends when the length scale is known within this share of itself.
_LOG_TOLERANCE = 0.02
_NUM_GRID, _NUM_REFINEMENTS = 9, 9
_NUM_BLOCKS, _BLOCK_SIZE = 8, 256


def profile_log_likelihood(
    eigenvalues: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log likelihoods of the features in nats, up to a constant, with their best ratios.

        r[:, f] ~ Normal(0, noise_variance[f] * (I + ratio[f] * K)),    K = V diag(s) V'

    Both variances of each feature are profiled out. The best noise variance for a given ratio is
    in closed form, and the best ratio is taken from a grid.

    Args:
        eigenvalues: Float array `(n,)`, `s`.
        squares: Float array `(n, p)`, `(V' r)**2`.

    Returns:
        log_likelihoods: Float array `(p,)`.
        ratios: Float array `(p,)`.
    """
    rows = len(eigenvalues)
    smallest = 1e-12 * np.maximum(squares.sum(axis=0), 1e-12) / rows
    found = []
    for ratio in _RATIOS:
        variance = 1.0 + ratio * eigenvalues
        noise = np.maximum((1.0 / variance) @ squares / rows, smallest)
        found.append(-0.5 * (rows * np.log(noise) + np.log(variance).sum()))
    best = np.argmax(found, axis=0)
    return np.max(found, axis=0), _RATIOS[best]


def blocks_of_rows(places: np.ndarray, seed: int) -> list[np.ndarray]:
    """Numbers of the rows of some blocks, each half of neighbours and half of random rows.

    Neighbours tell short length scales, random rows long ones.

    Args:
        places: Float array `(n, c)`.
        seed: Int that fixes the choice.
    """
    rows = np.arange(len(places))
    if len(rows) <= _BLOCK_SIZE:
        return [rows]
    rng, tree, blocks = np.random.default_rng(seed), cKDTree(places), []
    for centre in rng.choice(rows, _NUM_BLOCKS, replace=False):
        _, near = tree.query(places[centre], _BLOCK_SIZE // 2)
        others = rng.choice(np.setdiff1d(rows, near), _BLOCK_SIZE // 2, replace=False)
        blocks.append(np.concatenate([near, others]))
    return blocks


class ProcessLikelihood:
    """The likelihood of a Gaussian process over places, its variances profiled out.

    It is that of the process itself, not of its features on inducing points, whose gaps would be
    taken for noise. It is computed on blocks of rows as if these were independent of each other
    (composite likelihood): all rows at once would cost O(n**3).

    Args:
        kernel: The covariance function.
        places: Float array `(n, c)`.
        values: Float array `(n, p)`. Their means are taken out.
        seed: Int that fixes the choice of the blocks.

    References:
        - Varin, Reid & Firth (2011), An overview of composite likelihood methods, section 2.
    """

    def __init__(
        self, kernel: Kernel, places: np.ndarray, values: np.ndarray, seed: int = 0
    ) -> None:
        places, values = np.asarray(places, np.float64), np.asarray(values, np.float64)
        values = values - values.mean(axis=0)
        self.kernel = kernel
        self.blocks = [(tf.constant(places[b]), values[b]) for b in blocks_of_rows(places, seed)]

    def profile(self, length_scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Log likelihoods and best ratios of the features; see `profile_log_likelihood`."""
        scale = tf.constant(length_scale, tf.float64)
        spectra = [eigh(self.kernel.matrix(at, at, scale)) for at, _ in self.blocks]
        eigenvalues = np.concatenate([np.maximum(found, 0.0) for found, _ in spectra])
        rotated = [v.T @ r for (_, v), (_, r) in zip(spectra, self.blocks, strict=True)]
        return profile_log_likelihood(eigenvalues, np.concatenate(rotated) ** 2)

    def best_length_scale(self, bounds: tuple[float, float]) -> float:
        """Length scale of the highest likelihood: the best of a grid, then refined.

        Args:
            bounds: The smallest and the largest one, in the units of the places.
        """

        def misfit(log_scale: float) -> float:
            return -float(self.profile(np.exp(log_scale))[0].sum())

        grid = np.linspace(np.log(bounds[0]), np.log(bounds[1]), _NUM_GRID)
        at = int(np.argmin([misfit(point) for point in grid]))
        limits = grid[max(at - 1, 0)], grid[min(at + 1, _NUM_GRID - 1)]
        options = {"xatol": _LOG_TOLERANCE, "maxiter": _NUM_REFINEMENTS}
        found = minimize_scalar(misfit, bounds=limits, method="bounded", options=options)
        return float(np.exp(found.x))

    def signal_to_noise(self, length_scale: float) -> float:
        """Variance of the process over that of the noise, of all standardised features together."""
        _, ratios = self.profile(length_scale)
        return float(np.sum(ratios / (1.0 + ratios)) / np.sum(1.0 / (1.0 + ratios)))
