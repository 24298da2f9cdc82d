"""One rotation per level against the inverse of every feature's precision."""

import numpy as np
import pytest
import tensorflow as tf

from keras_lmmvae import linalg

LEVELS, FEATURES = 5, 4
# Where rows tell only some directions, float32 eigenvalues are wrong by about
# 1e-7 * effect variance / noise variance of the prior precision: at most 1e-5 here.
NOISE = np.array([0.5, 1.0, 2.0, 0.1])
EFFECT = np.array([1.0, 0.1, 5.0, 10.0])


def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Gram matrices (empty, deficient and full ones) and a prior shape, float64."""
    rng = np.random.default_rng(size)
    grams = []
    for rows in (0, 1, size, 3 * size, 50):
        basis = rng.normal(size=(rows, size))
        grams.append(basis.T @ basis)
    root = rng.normal(size=(size, size))
    shape = root @ root.T + np.eye(size)
    return np.stack(grams), shape * size / np.trace(shape)


def dense_inverse(gram: np.ndarray, shape: np.ndarray, feature: int) -> np.ndarray:
    return np.linalg.inv(gram / NOISE[feature] + np.linalg.inv(shape) / EFFECT[feature])


def compute(size: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    gram, shape = (tf.constant(value, tf.float32) for value in draw(size))
    rotation, eigenvalues = linalg.rotate_gram(gram, shape)
    variance = linalg.posterior_variance(
        eigenvalues, tf.constant(NOISE, tf.float32), tf.constant(EFFECT, tf.float32)
    )
    return rotation, eigenvalues, variance


@pytest.mark.parametrize("size", [1, 2, 5])
class TestRotation:
    def test_diagonalises_gram_and_prior(self, size):
        """R' G R = diag(eigenvalues) and R' inv(Psi) R = I; eigenvalues are not negative."""
        gram, shape = draw(size)
        rotation, eigenvalues, _ = (np.asarray(value, np.float64) for value in compute(size))
        assert (eigenvalues >= 0).all()
        for level in range(LEVELS):
            R = rotation[level]
            scale = max(eigenvalues[level].max(), 1.0)
            expected = np.diag(eigenvalues[level])
            np.testing.assert_allclose(R.T @ gram[level] @ R, expected, atol=1e-5 * scale)
            np.testing.assert_allclose(R.T @ np.linalg.inv(shape) @ R, np.eye(size), atol=1e-4)

    def test_posterior_covariance(self, size):
        """R diag(variance) R' is the inverse of G / noise + inv(Psi) / effect, by feature."""
        gram, shape = draw(size)
        rotation, _, variance = (np.asarray(value, np.float64) for value in compute(size))
        for level in range(LEVELS):
            for feature in range(FEATURES):
                expected = dense_inverse(gram[level], shape, feature)
                actual = rotation[level] * variance[level, :, feature] @ rotation[level].T
                np.testing.assert_allclose(
                    actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
                )

    def test_apply_inverse(self, size):
        """`apply_inverse` multiplies by that inverse."""
        gram, shape = draw(size)
        rotation, _, variance = compute(size)
        values = np.random.default_rng(9).normal(size=(LEVELS, size, FEATURES))
        actual = linalg.apply_inverse(rotation, variance, tf.constant(values, tf.float32))
        for level in range(LEVELS):
            for feature in range(FEATURES):
                expected = dense_inverse(gram[level], shape, feature) @ values[level, :, feature]
                np.testing.assert_allclose(
                    actual[level, :, feature], expected,
                    rtol=1e-3, atol=1e-4 * np.abs(expected).max(),
                )  # fmt: skip

    def test_shrinkage_is_kept_share(self, size):
        """shrinkage = 1 - posterior variance / prior variance; 0 for a level without rows."""
        _, eigenvalues, variance = compute(size)
        kept = linalg.shrinkage(
            eigenvalues, tf.constant(NOISE, tf.float32), tf.constant(EFFECT, tf.float32)
        )
        np.testing.assert_allclose(kept, 1 - variance / EFFECT, atol=1e-5)
        np.testing.assert_array_equal(kept[0], 0.0)

    def test_compiled_is_finite(self, size):
        """XLA gives the same posterior, finite everywhere."""
        expected = compute(size)[2]
        actual = tf.function(lambda: compute(size)[2], jit_compile=True)()
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_singular_prior_is_finite():
    """A prior shape of rank one (perfectly correlated slopes) still has a posterior."""
    gram, _ = draw(2)
    rotation, eigenvalues = linalg.rotate_gram(tf.constant(gram, tf.float32), tf.ones((2, 2)))
    assert np.isfinite(rotation).all()
    assert np.isfinite(eigenvalues).all()
