"""Covariance kernels of spatial effects, by name, from TensorFlow Probability."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae.validation import received

__all__ = [
    "KERNELS",
    "check_kernel",
    "cholesky_coefficients",
    "karhunen_loeve_projection",
    "kernel_matrix",
]

_psd = tfp.math.psd_kernels

KERNELS: dict[str, Callable[[tf.Tensor], tfp.math.psd_kernels.PositiveSemidefiniteKernel]] = {
    "rbf": lambda length_scale: _psd.ExponentiatedQuadratic(length_scale=length_scale),
    "matern12": lambda length_scale: _psd.MaternOneHalf(length_scale=length_scale),
    "matern32": lambda length_scale: _psd.MaternThreeHalves(length_scale=length_scale),
    "matern52": lambda length_scale: _psd.MaternFiveHalves(length_scale=length_scale),
}
"""Unit-variance stationary kernels; "rbf" is `exp(-distance**2 / (2 length_scale**2))`."""

# Kernel directions with less than this share of the largest eigenvalue are left out:
# float32 kernel values do not carry them.
_EIGENVALUE_CUTOFF = 1e-7


def check_kernel(kernel: str) -> None:
    """Raises a ValueError that lists the known kernels unless `kernel` is one."""
    if kernel not in KERNELS:
        raise ValueError(
            f"Received an unknown kernel, expected one of {sorted(KERNELS)}. "
            + received(kernel=kernel)
        )


def kernel_matrix(kernel: str, x1: tf.Tensor, x2: tf.Tensor, length_scale: tf.Tensor) -> tf.Tensor:
    """Kernel values between two sets of points, `(n1, n2)`; the kernel is built at each call,
    so that gradients reach `length_scale`."""
    length_scale = tf.convert_to_tensor(length_scale, x1.dtype)
    # Not `.matrix`: its distances come from a matrix product and lose digits between near points.
    return KERNELS[kernel](length_scale).apply(x1[:, None, :], x2[None, :, :])


def karhunen_loeve_projection(kernel: str, points: np.ndarray, length_scale: float) -> np.ndarray:
    """Matrix `P`, `(m, m)`, that whitens the kernel on `points`.

    With `K = V diag(s) V'` the kernel matrix of the points, `P = V diag(s)**-1/2`, largest
    eigenvalues first, and `phi(x) = k(x, points) @ P` is the basis of the process: with
    independent unit-variance coefficients `phi(x) @ coefficients` has covariance `k`,
    exactly at the points and by projection between them. Columns of negligible
    eigenvalues are zero. Computed in float64.

    Args:
        kernel: Name of a kernel.
        points: Array `(m, c)`.
        length_scale: Positive float, in the units of the points.
    """
    points64 = tf.constant(points, tf.float64)
    matrix = kernel_matrix(kernel, points64, points64, tf.constant(length_scale, tf.float64))
    values, vectors = np.linalg.eigh(matrix.numpy())
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = values > _EIGENVALUE_CUTOFF * values[0]
    return np.where(kept, vectors / np.sqrt(np.where(kept, values, 1.0)), 0.0)


def cholesky_coefficients(kernel: str, points: np.ndarray, length_scale: float) -> np.ndarray:
    """Matrix `(m, m)` that turns standard normal codes of the points into basis coefficients.

    With `L` a Cholesky root of the points' kernel matrix, `L @ codes` are values of the
    process at the points and `P' L @ codes` the coefficients of `karhunen_loeve_projection`
    that give these values.

    Args:
        kernel: Name of a kernel.
        points: Array `(m, c)`.
        length_scale: Positive float, in the units of the points.
    """
    points64 = tf.constant(points, tf.float64)
    matrix = kernel_matrix(kernel, points64, points64, tf.constant(length_scale, tf.float64))
    root = np.linalg.cholesky(matrix.numpy() + _EIGENVALUE_CUTOFF * np.eye(len(points)))
    return karhunen_loeve_projection(kernel, points, length_scale).T @ root
