"""Errors of reconstructions, and their lower limits on simulated data. No TensorFlow."""

import numpy as np
import numpy.typing as npt

from keras_lmmvae.simulation.blup import EffectBlock, blup, level_design
from keras_lmmvae.simulation.simulation import Simulation, rbf_root, term_correlation
from keras_lmmvae.validation import check_not_negative, received

__all__ = ["mse", "noise_floor", "oracle_mse"]

MINIMUM_VARIANCE = 1e-10  # The prior precision of a variance of 0 would be infinite.


def mse(x: npt.ArrayLike, xhat: npt.ArrayLike) -> float:
    """Mean squared error of a reconstruction over the observed cells.

    scikit-learn's `mean_squared_error` does not accept missing cells.

    Args:
        x: Float array `(n, p)`. Missing cells are NaN and are left out.
        xhat: Float array `(n, p)`. NaN in an observed cell makes the result NaN.

    Returns:
        error: Float, in squared units of `x`.

    Raises:
        ValueError: If the shapes differ or no cell is observed.

    Example:
        >>> mse([[1.0, np.nan]], [[3.0, 5.0]])
        4.0
    """
    truth, estimate = np.asarray(x), np.asarray(xhat)
    if truth.shape != estimate.shape:
        raise ValueError(
            "`x` and `xhat` must have the same shape. " + received(x=truth, xhat=estimate)
        )
    observed = ~np.isnan(truth)
    if not observed.any():
        raise ValueError(
            "`x` must have at least one observed cell, one that is not NaN. " + received(x=truth)
        )
    error = np.subtract(truth, estimate, dtype=np.float64)[observed]
    return float(np.mean(np.square(error)))


def noise_floor(noise_variance: float, latent_dim: int, num_features: int) -> float:
    """Lowest expected test error on simulated data: noise_variance * (1 - d / p).

    The `d` latent variables of a row are fitted to that row. They absorb its noise in `d` of its
    `p` directions.

    Args:
        noise_variance: Non-negative float, variance of one cell's noise.
        latent_dim: Int, number of latent variables `d`.
        num_features: Int, number of features `p`, `0 <= d <= p`.

    Returns:
        floor: Float, in squared units of the features.

    Raises:
        ValueError: If `noise_variance` is negative or `latent_dim` is not in `[0, num_features]`.

    Example:
        >>> noise_floor(1.0, latent_dim=1, num_features=100)
        0.99
    """
    check_not_negative("noise_variance", noise_variance)
    if not 0 <= latent_dim <= num_features or num_features < 1:
        raise ValueError(
            "`latent_dim` must be at least 0 and at most `num_features`, a positive int. "
            + received(latent_dim=latent_dim, num_features=num_features)
        )
    return noise_variance * (1.0 - latent_dim / num_features)


def oracle_mse(simulation: Simulation, train_idx: npt.ArrayLike, test_idx: npt.ArrayLike) -> float:
    """Test error of an oracle that knows the signal and all variances: the limit of any method.

        oracle = mean{ (x - signal - Z @ B_hat)[test]**2 } - noise_variance * d / p

    The oracle estimates only the random effects. B_hat is their BLUP from the training rows of
    x - signal = Z @ B + e. Crossed and nested factors are solved jointly, the coefficients of a
    subject have their true covariance, and the kernel of a Gaussian process is exact to 1e-12, at
    locations without training rows, too. The last term is the noise that the latent variables of
    a row absorb (`noise_floor`). The regret of a method is its test error less the oracle's.

    Args:
        simulation: The simulated rows and their truth.
        train_idx: Int array, the training rows.
        test_idx: Int array, the test rows.

    Returns:
        error: Float, in squared units of the features.

    Example:
        >>> from keras_lmmvae.simulation import simulate_longitudinal, split
        >>> simulation = simulate_longitudinal(n=2000, num_features=20, num_subjects=20, seed=1)
        >>> train_idx, test_idx = split(simulation.data, "rows", seed=1)
        >>> 0.9 < oracle_mse(simulation, train_idx, test_idx) < 1.1
        True
    """
    train, test = np.asarray(train_idx), np.asarray(test_idx)
    residual = np.asarray(simulation.data["x"], np.float64) - simulation.signal  # (n, p)
    blocks = [_effect_block(simulation, name, train) for name in simulation.effects]
    effects = blup(
        [EffectBlock(block.design[train], block.precision) for block in blocks],
        residual[train],
        simulation.noise_variance,
    )
    estimate = sum(
        block.design[test] @ effect.reshape(-1, simulation.num_features)
        for block, effect in zip(blocks, effects, strict=True)
    )
    absorbed = simulation.noise_variance * simulation.latent_dim / simulation.num_features
    return mse(residual[test], estimate) - absorbed


def _effect_block(simulation: Simulation, name: str, train: npt.NDArray[np.int64]) -> EffectBlock:
    """Returns the design of all rows and the true prior of one effect."""
    variance = np.maximum(simulation.effect_variance[name], MINIMUM_VARIANCE)  # (M, p)
    if name == "location":
        return _spatial_block(simulation, variance, train)
    num_levels, basis_size = simulation.effects[name].shape[:2]
    basis: npt.NDArray[np.float64] | None = None
    correlation = np.ones((1, 1))
    if name == "subject":
        basis = simulation.data["t"][:, None] ** np.arange(float(basis_size))  # (n, M)
        correlation = term_correlation(basis_size, simulation.settings["correlation"])
    shape = np.linalg.inv(correlation)  # (M, M)
    inverse_scale = 1.0 / np.sqrt(variance.T)  # (p, M)
    precision = inverse_scale[:, :, None] * shape * inverse_scale[:, None, :]  # (p, M, M)
    return EffectBlock(level_design(simulation.data[name], num_levels, basis), precision)


def _spatial_block(
    simulation: Simulation, variance: npt.NDArray[np.float64], train: npt.NDArray[np.int64]
) -> EffectBlock:
    """Returns the Gaussian process as independent effects of the columns of a kernel root.

    The root is rotated so that its columns are orthogonal over the training rows. The equations of
    a single Gaussian process are then diagonal.
    """
    data = simulation.data
    _, first, location = np.unique(data["location"], return_index=True, return_inverse=True)
    coordinates = np.stack([data["lon"], data["lat"]], axis=1)[first]  # (L, 2)
    root = rbf_root(coordinates, simulation.settings["squared_length_scale"])  # (L, m)
    counts = np.bincount(location[train], minlength=len(root))
    _, rotation = np.linalg.eigh(root.T @ (counts[:, None] * root))
    return EffectBlock((root @ rotation)[location], 1.0 / variance.T[:, :, None])
