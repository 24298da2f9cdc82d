"""Kernels against one line of NumPy per pair of points, and their Karhunen-Loeve features."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import gaussian_process_posterior, kernel_matrix
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
from keras_lmmvae import kernels
from keras_lmmvae.kernels import Kernel, KernelBasis, Product, Stationary, Sum

RNG = np.random.default_rng(0)
POINTS = RNG.uniform(-1, 1, (12, 2))
OTHERS = RNG.uniform(-1, 1, (5, 2))


def matrix_of(kernel: Kernel, x1: np.ndarray, x2: np.ndarray, length_scale: float) -> np.ndarray:
    """Kernel values in float64."""
    return kernel.matrix(tf.constant(x1), tf.constant(x2), tf.constant(length_scale, tf.float64))


def basis_on(points: np.ndarray, kernel: Kernel | str, length_scale: float) -> KernelBasis:
    """Karhunen-Loeve features on some points, float64."""
    return KernelBasis.of(kernels.as_kernel(kernel), points, length_scale, "float64")


def features(kernel: Kernel | str, x: np.ndarray, length_scale: float) -> np.ndarray:
    """Karhunen-Loeve features of `x` on POINTS, float64."""
    return basis_on(POINTS, kernel, length_scale).features(tf.constant(x)).numpy()


@pytest.mark.parametrize("kernel", kernels.KERNELS)
class TestEveryKernel:
    @pytest.mark.parametrize("length_scale", [0.3, 2.0])
    def test_values(self, kernel, length_scale):
        """The kernel is its formula, in both float types."""
        expected = kernel_matrix(kernel, POINTS, OTHERS, length_scale)
        for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
            x1, x2 = tf.constant(POINTS, dtype), tf.constant(OTHERS, dtype)
            actual = Stationary(kernel).matrix(x1, x2, tf.constant(length_scale, dtype))
            np.testing.assert_allclose(actual, expected, rtol=tolerance)

    def test_positive_semidefinite(self, kernel):
        """No eigenvalue is negative beyond rounding, repeated points included."""
        points = np.concatenate([POINTS, POINTS[:3]])
        matrix = np.asarray(matrix_of(Stationary(kernel), points, points, 0.7))
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
        assert np.linalg.eigvalsh(matrix).min() > -1e-10

    def test_gradients_at_zero_distance(self, kernel):
        """Gradients reach coordinates and length scale, and are finite where points coincide."""
        points = tf.Variable(np.concatenate([POINTS, POINTS[:2]]), dtype=tf.float32)
        length_scale = tf.Variable(0.5)
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(Stationary(kernel).matrix(points, points, length_scale))
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

    def test_root_draws_the_process(self, kernel):
        """phi(points) @ root @ unit codes has the kernel as its covariance."""
        drawn = features(kernel, POINTS, 0.8) @ basis_on(POINTS, kernel, 0.8).root()
        expected = kernel_matrix(kernel, POINTS, POINTS, 0.8)
        np.testing.assert_allclose(drawn @ drawn.T, expected, atol=1e-4)


def test_negligible_directions_are_zero():
    """Repeated points add no direction: its column is 0 instead of a blown-up one."""
    points = np.repeat(POINTS[:4], 2, axis=0)
    projection = basis_on(points, "rbf", 0.5).projection.numpy()
    assert np.isfinite(projection).all()
    assert (np.abs(projection).sum(axis=0) > 0).sum() == 4


def test_unknown_kernel_lists_the_known_ones():
    """The error names what was received and what there is."""
    with pytest.raises(ValueError, match=r"\['matern12'.*'rbf'\].*Received: kernel='cosine'"):
        kernels.as_kernel("cosine")


RBF, MATERN = Stationary("rbf"), Stationary("matern12")
COMPOSITES = {
    "sum": (RBF + MATERN, lambda rbf, matern: rbf + matern),
    "product": (RBF * MATERN, lambda rbf, matern: rbf * matern),
    "both": (RBF + MATERN * (RBF + RBF), lambda rbf, matern: rbf + matern * (rbf + rbf)),
}


@pytest.mark.parametrize("name", COMPOSITES)
class TestComposites:
    def test_values(self, name):
        """A sum of kernels has the sum of their matrices; a product has their product."""
        kernel, formula = COMPOSITES[name]
        parts = [kernel_matrix(part, POINTS, OTHERS, 0.6) for part in ("rbf", "matern12")]
        actual = matrix_of(kernel, POINTS, OTHERS, 0.6)
        np.testing.assert_allclose(actual, formula(*parts), rtol=1e-10)

    def test_config_round_trip(self, name):
        """Plain JSON makes an equal kernel with the same values; another kernel is unequal."""
        kernel, _ = COMPOSITES[name]
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(kernel)))
        again = keras.saving.deserialize_keras_object(config)
        assert again == kernel
        assert hash(again) == hash(kernel)
        assert again != Stationary("rbf")
        np.testing.assert_array_equal(
            matrix_of(again, POINTS, OTHERS, 0.6), matrix_of(kernel, POINTS, OTHERS, 0.6)
        )

    def test_gradient_reaches_the_length_scale(self, name):
        """The derivative by the length scale is the difference quotient of the formula."""
        kernel, formula = COMPOSITES[name]
        length_scale = tf.Variable(0.6, dtype=tf.float64)
        with tf.GradientTape() as tape:
            matrix = kernel.matrix(tf.constant(POINTS), tf.constant(OTHERS), length_scale)
            total = tf.reduce_sum(matrix)

        def value(scale: float) -> float:
            parts = [kernel_matrix(part, POINTS, OTHERS, scale) for part in ("rbf", "matern12")]
            return formula(*parts).sum()

        expected = (value(0.6 + 1e-5) - value(0.6 - 1e-5)) / 2e-5
        np.testing.assert_allclose(tape.gradient(total, length_scale), expected, rtol=1e-6)

    def test_features_are_those_of_the_correlation(self, name):
        """phi phi' is the kernel over its variance, at the points and by projection elsewhere.

        So the effect variance is the variance of the process, whatever kernels are added up.
        """
        kernel, formula = COMPOSITES[name]

        def correlation(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
            parts = [kernel_matrix(part, x1, x2, 0.6) for part in ("rbf", "matern12")]
            return formula(*parts) / formula(1.0, 1.0)

        phi, phi_new = features(kernel, POINTS, 0.6), features(kernel, OTHERS, 0.6)
        np.testing.assert_allclose(phi @ phi.T, correlation(POINTS, POINTS), atol=1e-6)
        np.testing.assert_allclose(phi_new @ phi.T, correlation(OTHERS, POINTS), atol=1e-6)
        missing = KernelBasis.missing(tf.constant(phi_new))
        cross = correlation(OTHERS, POINTS)
        known = cross @ np.linalg.solve(correlation(POINTS, POINTS), cross.T)
        np.testing.assert_allclose(missing, 1.0 - np.diag(known), atol=1e-6)

    def test_root_draws_the_process(self, name):
        """phi(points) @ root @ unit codes has the kernel over its variance as its covariance."""
        kernel, formula = COMPOSITES[name]
        drawn = features(kernel, POINTS, 0.6) @ basis_on(POINTS, kernel, 0.6).root()
        parts = [kernel_matrix(part, POINTS, POINTS, 0.6) for part in ("rbf", "matern12")]
        expected = formula(*parts) / formula(1.0, 1.0)
        np.testing.assert_allclose(drawn @ drawn.T, expected, atol=1e-5)


def test_surface_with_a_composite_kernel_is_fitted_and_saved(tmp_path):
    """A `.keras` file gives the kernel, the surface and the predictions of a sum times a kernel."""
    rng = np.random.default_rng(2)
    at = rng.integers(0, len(POINTS), 120)
    data = {"x": rng.normal(size=(120, 2)), "east": POINTS[at, 0], "north": POINTS[at, 1]}
    data["x"] += data["east"][:, None]
    kernel = (RBF + MATERN) * Stationary("matern52")
    model = small_model([lmm.SpatialEffect(("east", "north"), kernel=kernel)])
    fit_briefly(model, data, 40)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    (term,) = again.random_effects
    assert term.kernel == kernel
    assert term.fitted_length_scale == model.random_effects[0].fitted_length_scale
    np.testing.assert_array_equal(
        again.random_effects_table("east_north"), model.random_effects_table("east_north")
    )
    np.testing.assert_array_equal(again.predict(data, verbose=0), model.predict(data, verbose=0))
    assert np.abs(model.random_effects_table("east_north").to_numpy()).max() > 0.1


def test_classes_of_composites():
    """+ makes a Sum, * a Product, of the kernels on its sides."""
    assert isinstance(RBF + MATERN, Sum)
    assert isinstance(RBF * MATERN, Product)
    assert (RBF * MATERN).first == RBF
    assert (RBF * MATERN).second == MATERN
    assert RBF + MATERN != MATERN + RBF
