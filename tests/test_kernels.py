"""Kernels against one line of NumPy per pair of points, and their Karhunen-Loeve features."""

import numpy as np
import pytest
import tensorflow as tf
from reference import gaussian_process_posterior, kernel_matrix

from keras_lmmvae import kernels

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-1, 1, (12, 2))
OTHERS = RNG.uniform(-1, 1, (5, 2))


def features(kernel: str, x: np.ndarray, length_scale: float) -> np.ndarray:
    """Karhunen-Loeve features of `x` on POINTS, float64."""
    matrix = kernels.kernel_matrix(kernel, tf.constant(x), tf.constant(POINTS), length_scale)
    return matrix.numpy() @ kernels.karhunen_loeve_projection(kernel, POINTS, length_scale)


@pytest.mark.parametrize("kernel", kernels.KERNELS)
class TestEveryKernel:
    @pytest.mark.parametrize("length_scale", [0.3, 2.0])
    def test_values(self, kernel, length_scale):
        """The kernel is its formula, in both float types."""
        expected = kernel_matrix(kernel, POINTS, OTHERS, length_scale)
        for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
            x1, x2 = tf.constant(POINTS, dtype), tf.constant(OTHERS, dtype)
            actual = kernels.kernel_matrix(kernel, x1, x2, length_scale)
            np.testing.assert_allclose(actual, expected, rtol=tolerance)

    def test_positive_semidefinite(self, kernel):
        """No eigenvalue is negative beyond rounding, repeated points included."""
        points = tf.constant(np.concatenate([POINTS, POINTS[:3]]))
        matrix = kernels.kernel_matrix(kernel, points, points, 0.7).numpy()
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        assert np.linalg.eigvalsh(matrix).min() > -1e-10

    def test_gradients_at_zero_distance(self, kernel):
        """Gradients reach coordinates and length scale, and are finite where points coincide."""
        points = tf.Variable(np.concatenate([POINTS, POINTS[:2]]), dtype=tf.float32)
        length_scale = tf.Variable(0.5)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(kernels.kernel_matrix(kernel, points, points, length_scale))
        by_points, by_scale = tape.gradient(total, [points, length_scale])
        assert np.isfinite(by_points).all()
        assert np.isfinite(by_scale)
        assert by_scale > 0  # a longer scale correlates more

    def test_features_reproduce_the_kernel_at_the_points(self, kernel):
        """phi(points) phi(points)' is the kernel matrix, up to the directions left out."""
        phi = features(kernel, POINTS, 0.8)
        expected = kernel_matrix(kernel, POINTS, POINTS, 0.8)
        np.testing.assert_allclose(phi @ phi.T, expected, atol=2e-5)

    def test_features_project_between_the_points(self, kernel):
        """phi phi' elsewhere is k(x, points) inv(K) k(points, x), never above the kernel."""
        phi = features(kernel, OTHERS, 0.8)
        cross = kernel_matrix(kernel, OTHERS, POINTS, 0.8)
        expected = cross @ np.linalg.solve(kernel_matrix(kernel, POINTS, POINTS, 0.8), cross.T)
        np.testing.assert_allclose(phi @ phi.T, expected, atol=1e-4)
        assert (np.diag(phi @ phi.T) <= 1 + 1e-9).all()

    def test_regression_on_features_is_the_process(self, kernel):
        """The posterior mean of phi @ coefficients at new places is the process's own."""
        values = np.random.default_rng(1).normal(size=(len(POINTS), 3))
        expected, _ = gaussian_process_posterior(
            kernel_matrix(kernel, POINTS, POINTS, 0.5),
            kernel_matrix(kernel, OTHERS, POINTS, 0.5),
            kernel_matrix(kernel, OTHERS, OTHERS, 0.5),
            values,
            0.3,
        )
        phi, phi_new = features(kernel, POINTS, 0.5), features(kernel, OTHERS, 0.5)
        precision = phi.T @ phi / 0.3 + np.eye(len(POINTS))
        coefficients = np.linalg.solve(precision, phi.T @ values / 0.3)
        np.testing.assert_allclose(phi_new @ coefficients, expected, atol=1e-4)

    def test_cholesky_coefficients_draw_the_process(self, kernel):
        """phi(points) @ coefficients of unit codes has the kernel as its covariance."""
        root = kernels.cholesky_coefficients(kernel, POINTS, 0.8)
        drawn = features(kernel, POINTS, 0.8) @ root
        expected = kernel_matrix(kernel, POINTS, POINTS, 0.8)
        np.testing.assert_allclose(drawn @ drawn.T, expected, atol=1e-4)


def test_negligible_directions_are_zero():
    """Repeated points add no direction: its column is 0 instead of a blown-up one."""
    points = np.repeat(POINTS[:4], 2, axis=0)
    projection = kernels.karhunen_loeve_projection("rbf", points, 0.5)
    assert np.isfinite(projection).all()
    assert (np.abs(projection).sum(axis=0) > 0).sum() == 4


def test_unknown_kernel_lists_the_known_ones():
    """The error names what was received and what there is."""
    with pytest.raises(ValueError, match=r"\['matern12'.*'rbf'\].*Received: kernel='cosine'"):
        kernels.check_kernel("cosine")
