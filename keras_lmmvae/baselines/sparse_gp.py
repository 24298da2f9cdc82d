"""Sparse Gaussian process regression in closed form, with whitened inducing values.

    f(inducing points) = root @ w,  w ~ Normal(0, I_m)
    f[i] = basis[i] @ w + Normal(0, 1 - basis[i] @ basis[i]),  basis[i] = inv(root) k(points, i)

`root` is the Cholesky root of the kernel matrix of the inducing points. All computations are in
float64, because the precision matrix of `w` can have a condition number of 1e8 and more, which is
too large for a Cholesky root in float32. The matrices have the size of the inducing points, so
float64 costs little.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

__all__ = [
    "JITTER",
    "InducingPosterior",
    "InducingSums",
    "inducing_posterior",
    "inducing_sums",
    "squared_exponential",
    "whitened_basis",
]

JITTER = 1e-6
"""Added to the diagonal of the kernel matrix of the inducing points, whose entries are 1."""

_LEAST_VARIANCE = 1e-8


def squared_exponential(x1: tf.Tensor, x2: tf.Tensor) -> tf.Tensor:
    """RBF kernel `exp(-distance**2 / 2)`, `(n1, n2)`, of points in units of the length scales.

    A product of RBF kernels of single axes is then one kernel of all axes.
    """
    inner = tf.matmul(x1, x2, transpose_b=True)
    squares = tf.reduce_sum(x1**2, axis=-1)[:, None] + tf.reduce_sum(x2**2, axis=-1)
    return tf.exp(tf.minimum(inner - 0.5 * squares, 0.0))


def whitened_basis(points: tf.Tensor, inducing_points: tf.Tensor) -> tf.Tensor:
    """The basis of every row, float64 `(b, m)`, as defined in the docstring of this module."""
    size = inducing_points.shape[0]
    matrix = squared_exponential(inducing_points, inducing_points)
    root = tf.linalg.cholesky(matrix + JITTER * tf.eye(size, dtype=matrix.dtype))
    cross = squared_exponential(inducing_points, points)  # (m, b)
    return tf.transpose(tf.linalg.triangular_solve(root, cross))


@dataclass(frozen=True)
class InducingSums:
    """Sufficient statistics of pseudo-observations for the inducing values: sums over rows.

    Attributes:
        precision: `sum_i basis[i] basis[i]' / variance[i]`, float64 tensor `(d, m, m)`.
        information: `sum_i basis[i] value[i] / variance[i]`, float64 tensor `(d, m)`.
    """

    precision: tf.Tensor
    information: tf.Tensor

    def __add__(self, other: InducingSums) -> InducingSums:
        return InducingSums(self.precision + other.precision, self.information + other.information)


def inducing_sums(basis: tf.Tensor, values: tf.Tensor, variance: tf.Tensor) -> InducingSums:
    """Sums up pseudo-observations `Normal(values, variance)`, `(b, d)`, of the latents."""
    weighted = basis / tf.transpose(variance)[..., None]  # (d, b, m)
    return InducingSums(
        tf.einsum("kbm,bj->kmj", weighted, basis),
        tf.einsum("kbm,bk->km", weighted, values),
    )


@dataclass(frozen=True)
class InducingPosterior:
    """q(w) = Normal(mean, inv(root root')) of the whitened inducing values, for each latent.

    Attributes:
        mean: Float64 tensor `(d, m)`.
        root: Cholesky roots of the precisions, float64 tensor `(d, m, m)`.
    """

    mean: tf.Tensor
    root: tf.Tensor

    def marginals(self, basis: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Means and variances of the latents of rows, float64 `(b, d)` each.

        mean[i] = basis[i] @ mean
        variance[i] = 1 - basis[i] @ basis[i] + basis[i] @ inv(precision) @ basis[i]
        """
        open_variance = tf.maximum(1.0 - tf.reduce_sum(basis**2, axis=-1), _LEAST_VARIANCE)
        solved = tf.einsum("kij,bj->kbi", self._inverse_root(), basis)
        variance = open_variance + tf.reduce_sum(solved**2, axis=-1)
        return tf.matmul(basis, self.mean, transpose_b=True), tf.transpose(variance)

    def divergence(self) -> tf.Tensor:
        """KL(q(w) || Normal(0, I)) = KL(q(inducing values) || prior), float64 `(d,)`, nats."""
        trace = tf.reduce_sum(self._inverse_root() ** 2, axis=(1, 2))
        log_determinant = 2.0 * tf.reduce_sum(tf.math.log(tf.linalg.diag_part(self.root)), axis=-1)
        squares = tf.reduce_sum(self.mean**2, axis=-1)
        return 0.5 * (trace + squares - self.root.shape[-1] + log_determinant)

    def _inverse_root(self) -> tf.Tensor:
        """Inverse of `root`, `(d, m, m)`. The covariance of q(w) is its transpose times itself."""
        eye = tf.eye(self.root.shape[-1], dtype=self.root.dtype)
        return tf.linalg.triangular_solve(self.root, tf.broadcast_to(eye, tf.shape(self.root)))


def inducing_posterior(sums: InducingSums, scale: float | tf.Tensor = 1.0) -> InducingPosterior:
    """The optimal q(w) given sums over rows.

        precision = I + scale * sums.precision
        mean = inv(precision) @ (scale * sums.information)

    `scale` is the number of all rows divided by the number of rows in the sums.

    References:
        - Titsias, M. (2009), Variational learning of inducing variables in sparse Gaussian
          processes.
        - Jazbec et al. (2021), Scalable Gaussian process variational autoencoders, eq. (7).
    """
    scale = tf.cast(scale, tf.float64)
    precision = tf.eye(sums.precision.shape[-1], dtype=tf.float64) + scale * sums.precision
    root = tf.linalg.cholesky(precision)
    mean = tf.linalg.cholesky_solve(root, scale * sums.information[..., None])[..., 0]
    return InducingPosterior(mean, root)
