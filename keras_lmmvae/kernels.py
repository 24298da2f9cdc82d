"""Covariance functions, and the features of a Gaussian process on some points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_lmmvae.linalg import eigh
from keras_lmmvae.validation import received

__all__ = ["KERNELS", "Kernel", "KernelBasis", "Product", "Stationary", "Sum", "as_kernel"]

_psd = tfp.math.psd_kernels

KERNELS: dict[str, Callable[[tf.Tensor], tfp.math.psd_kernels.PositiveSemidefiniteKernel]] = {
    "rbf": lambda length_scale: _psd.ExponentiatedQuadratic(length_scale=length_scale),
    "matern12": lambda length_scale: _psd.MaternOneHalf(length_scale=length_scale),
    "matern32": lambda length_scale: _psd.MaternThreeHalves(length_scale=length_scale),
    "matern52": lambda length_scale: _psd.MaternFiveHalves(length_scale=length_scale),
}
"""Stationary kernels of variance 1. "rbf" is `exp(-distance**2 / (2 length_scale**2))`."""

# Directions of the kernel with less than this share of the largest eigenvalue are left out.
# Kernel values in float32 do not carry them.
_EIGENVALUE_CUTOFF = 1e-7


class Kernel:
    """A covariance function `k(s, s')`. Kernels add and multiply.

    A subclass writes `matrix`, and `get_config` where it has arguments.

    Example:
        >>> kernel = Stationary("rbf") + Stationary("matern12") * Stationary("matern32")
        >>> points = tf.constant([[0.0], [1.0]])
        >>> kernel.matrix(points, points, tf.constant(1.0)).shape
        TensorShape([2, 2])
    """

    def matrix(self, x1: tf.Tensor, x2: tf.Tensor, length_scale: tf.Tensor) -> tf.Tensor:
        """Kernel values between two sets of points.

        Args:
            x1: Float tensor `(n1, c)`.
            x2: Float tensor `(n2, c)`.
            length_scale: Positive float tensor, in the units of the points.

        Returns:
            Float tensor `(n1, n2)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must write `matrix`.")

    def __add__(self, other: Kernel) -> Kernel:
        return Sum(self, other)

    def __mul__(self, other: Kernel) -> Kernel:
        return Product(self, other)

    def __eq__(self, other: object) -> bool:
        is_same = isinstance(other, Kernel) and type(self) is type(other)
        return isinstance(other, Kernel) and is_same and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(repr(self.get_config()))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the kernel, for saved files."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Kernel:
        """The kernel of a configuration."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class Stationary(Kernel):
    """A kernel of variance 1 that depends on the distance of two points over the length scale.

    Args:
        name: "rbf", "matern12", "matern32" or "matern52".

    Raises:
        ValueError: If the name is unknown.
    """

    def __init__(self, name: str) -> None:
        if name not in KERNELS:
            raise ValueError(
                f"Received an unknown kernel, expected one of {sorted(KERNELS)}. "
                + received(kernel=name)
            )
        self.name = name

    def matrix(self, x1: tf.Tensor, x2: tf.Tensor, length_scale: tf.Tensor) -> tf.Tensor:
        # The kernel is built at each call, so that gradients reach the length scale. Its own
        # `matrix` takes distances by a matrix product and loses digits between near points.
        kernel = KERNELS[self.name](tf.convert_to_tensor(length_scale, x1.dtype))
        return kernel.apply(x1[:, None, :], x2[None, :, :])

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


class _Pair(Kernel):
    """Two kernels, joined."""

    def __init__(self, first: Kernel, second: Kernel) -> None:
        self.first = first
        self.second = second

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {"first": serialize(self.first), "second": serialize(self.second)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Kernel:
        return cls(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class Sum(_Pair):
    """`k1(s, s') + k2(s, s')`, the covariance of the sum of two independent processes."""

    def matrix(self, x1: tf.Tensor, x2: tf.Tensor, length_scale: tf.Tensor) -> tf.Tensor:
        return self.first.matrix(x1, x2, length_scale) + self.second.matrix(x1, x2, length_scale)


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class Product(_Pair):
    """`k1(s, s') * k2(s, s')`: alike are places that both kernels call alike."""

    def matrix(self, x1: tf.Tensor, x2: tf.Tensor, length_scale: tf.Tensor) -> tf.Tensor:
        return self.first.matrix(x1, x2, length_scale) * self.second.matrix(x1, x2, length_scale)


def as_kernel(kernel: Kernel | str) -> Kernel:
    """A kernel, of its name if that is given.

    Raises:
        ValueError: If there is no kernel of that name.
    """
    return kernel if isinstance(kernel, Kernel) else Stationary(kernel)


@dataclass(frozen=True)
class KernelBasis:
    """Karhunen-Loeve features of a Gaussian process on some points.

    With `K = V diag(s) V'` the kernel matrix of the points, `v` the mean of its diagonal,
    `P = V diag(s)**-1/2 / sqrt(v)`, largest eigenvalues first, and

        phi(x) = k(x, points) @ P

    With independent coefficients of variance 1, `phi(x) @ coefficients` has the covariance
    `k / v`: exactly at the points, and by projection between them. A sum of kernels has `v > 1`.
    The division by `v` makes 1 the variance of every process.

    Attributes:
        kernel: The covariance function.
        points: Float tensor `(m, c)`, the inducing points.
        length_scale: Positive float tensor, in the units of the points.
        projection: Float tensor `(m, m)`, `P`. Columns of negligible eigenvalues are zero.
    """

    kernel: Kernel
    points: tf.Tensor
    length_scale: tf.Tensor
    projection: tf.Tensor

    @classmethod
    def of(
        cls, kernel: Kernel, points: np.ndarray, length_scale: float, dtype: Any = "float32"
    ) -> KernelBasis:
        """The basis with its projection, which is computed in float64.

        Args:
            kernel: The covariance function.
            points: Array `(m, c)`.
            length_scale: Positive float, in the units of the points.
            dtype: Float type of the tensors.
        """
        gram = _gram(kernel, points, length_scale)
        values, vectors = eigh(gram)
        values, vectors = values[::-1], vectors[:, ::-1]
        kept = values > _EIGENVALUE_CUTOFF * values[0]
        projection = np.where(kept, vectors / np.sqrt(np.where(kept, values, 1.0)), 0.0)
        projection /= np.sqrt(np.mean(np.diag(gram)))
        numbers = (points, length_scale, projection)
        return cls(kernel, *(tf.constant(number, dtype) for number in numbers))

    def features(self, x: tf.Tensor) -> tf.Tensor:
        """`phi(x)`, `(n, m)`, of points `(n, c)`."""
        return tf.matmul(self.kernel.matrix(x, self.points, self.length_scale), self.projection)

    @staticmethod
    def missing(features: tf.Tensor, variance: tf.Tensor | float = 1.0) -> tf.Tensor:
        """Variance of the process that its values at the points do not tell, `(n,)`.

        Args:
            features: Float tensor `(n, m)`.
            variance: Float, the variance of the process.
        """
        return tf.maximum(variance - tf.reduce_sum(tf.square(features), axis=1), 0.0)

    def root(self) -> np.ndarray:
        """Matrix `(m, m)` that turns standard normal codes of the points into coefficients.

        With `L` a Cholesky root of `K / v`, `L @ codes` are values of the process at the points,
        and `v P' L @ codes` are the coefficients that give these values.
        """
        points = np.asarray(self.points)
        gram = _gram(self.kernel, points, float(self.length_scale))
        variance = np.mean(np.diag(gram))
        root = np.linalg.cholesky(gram / variance + _EIGENVALUE_CUTOFF * np.eye(len(points)))
        return variance * np.asarray(self.projection, np.float64).T @ root


def _gram(kernel: Kernel, points: np.ndarray, length_scale: float) -> np.ndarray:
    """The kernel matrix of some points, in float64."""
    points64 = tf.constant(points, tf.float64)
    matrix = kernel.matrix(points64, points64, tf.constant(length_scale, tf.float64))
    return np.asarray(matrix)
