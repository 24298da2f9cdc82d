"""The algebra of a level against dense NumPy: one rotation for all features, or Cholesky roots."""

import numpy as np
import pytest
import tensorflow as tf
from reference import blup

from keras_lmmvae import linalg
from keras_lmmvae.mixed_model.information import Information

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
    return rotation, eigenvalues, information().posterior_variance(eigenvalues)


def information() -> Information:
    effect = tf.constant(EFFECT, tf.float32)
    return Information(effect, effect / tf.constant(NOISE, tf.float32))


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

    def test_kept_share(self, size):
        """kept = 1 - posterior variance / prior variance; 0 for a level without rows."""
        _, eigenvalues, variance = compute(size)
        kept = information().kept(eigenvalues)
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


def level_rows(size: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Bases, values and observed cells of the rows of some levels; the first level has none."""
    rng = np.random.default_rng(size + 10)
    numbers = (0, 1, size, 3 * size, 12)
    bases = [rng.normal(size=(rows, size)) for rows in numbers]
    values = [rng.normal(size=(rows, FEATURES)) for rows in numbers]
    cells = [rng.integers(0, 2, (rows, FEATURES)).astype(float) for rows in numbers]
    return bases, values, cells


def float32(*values) -> list[tf.Tensor]:
    return [tf.constant(np.asarray(value), tf.float32) for value in values]


@pytest.mark.parametrize("size", [1, 2, 5])
class TestLevelPosterior:
    @pytest.mark.parametrize("has_psi", [True, False])
    def test_gram_of_each_feature_is_dense_blup(self, size, has_psi):
        """With missing cells every feature has the BLUP of the rows in which it was observed."""
        bases, values, cells = level_rows(size)
        shape = draw(size)[1] if has_psi else np.eye(size)
        gram = [np.einsum("sf,si,sj->fij", c, b, b) for b, c in zip(bases, cells, strict=True)]
        rows = zip(bases, values, cells, strict=True)
        scores = [basis.T @ (seen * value) for basis, value, seen in rows]
        posterior = linalg.level_posterior(
            *float32(gram, scores, NOISE, EFFECT),
            *(float32(np.linalg.inv(shape)) if has_psi else ()),
        )
        assert posterior.covariance.shape == (LEVELS, FEATURES, size, size)
        for level, (basis, value, seen) in enumerate(zip(bases, values, cells, strict=True)):
            for f in range(FEATURES):
                mean, covariance = blup(
                    value[:, [f]], basis, NOISE[[f]], EFFECT[[f]], shape, seen[:, f]
                )
                scale = EFFECT[f] * np.trace(shape) / size
                close = {"rtol": 1e-3, "atol": 1e-4 * scale}
                np.testing.assert_allclose(posterior.covariance[level, f], covariance[0], **close)
                np.testing.assert_allclose(
                    posterior.variance[level, :, f], np.diag(covariance[0]), **close
                )
                np.testing.assert_allclose(posterior.mean[level, :, f], mean[:, 0], **close)

    def test_agrees_with_the_rotation(self, size):
        """The posterior by Cholesky roots is the posterior by rotation, mean and covariance."""
        gram, shape = draw(size)
        scores = np.random.default_rng(11).normal(size=(LEVELS, size, FEATURES))
        inverse = linalg.inverse_psi(tf.constant(shape, tf.float32))
        posterior = linalg.level_posterior(*float32(gram, scores, NOISE, EFFECT), inverse)
        rotation, _, variance = compute(size)
        scaled = tf.constant(scores / NOISE, tf.float32)
        by_rotation = linalg.apply_inverse(rotation, variance, scaled)
        largest = np.abs(by_rotation).max()
        np.testing.assert_allclose(posterior.mean, by_rotation, rtol=1e-3, atol=1e-4 * largest)
        covariance = tf.einsum("lik,lkf,ljk->lfij", rotation, variance, rotation)
        for f in range(FEATURES):
            np.testing.assert_allclose(
                posterior.covariance[:, f], covariance[:, f], rtol=1e-3, atol=1e-4 * EFFECT[f]
            )

    def test_shared_variances_have_one_covariance(self, size):
        """With one Gram matrix and one pair of variances all features share their covariance."""
        gram, shape = draw(size)
        scores = np.random.default_rng(12).normal(size=(LEVELS, size, FEATURES))
        inverse = np.linalg.inv(shape)
        shared = linalg.level_posterior(*float32(gram, scores, [0.5], [2.0], inverse))
        by_feature = linalg.level_posterior(
            *float32(gram, scores, np.full(FEATURES, 0.5), np.full(FEATURES, 2.0), inverse)
        )
        assert shared.covariance.shape == (LEVELS, 1, size, size)
        np.testing.assert_allclose(shared.mean, by_feature.mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(shared.variance, by_feature.variance, rtol=1e-5, atol=1e-6)

    def test_gradient_is_finite_where_eigenvalues_coincide(self, size):
        """Levels without rows have equal eigenvalues; the derivative by their Gram exists."""
        gram = tf.Variable(tf.zeros((2, size, size)))
        with tf.GradientTape() as tape:
            posterior = linalg.level_posterior(
                gram, tf.ones((2, size, FEATURES)), *float32(NOISE, EFFECT)
            )
            total = tf.reduce_sum(posterior.mean)
        gradient = tape.gradient(total, gram)
        # d(mean)/dG = -(effect / noise)**2 * ones ones' at G = 0 and Psi = I.
        expected = -np.sum((EFFECT / NOISE) ** 2) * np.ones((2, size, size))
        np.testing.assert_allclose(
            gradient + tf.linalg.matrix_transpose(gradient), 2 * expected, rtol=1e-4
        )


@pytest.mark.parametrize("size", [1, 3])
def test_rotation_takes_axes_in_front(size):
    """Gram matrices by fold and level are rotated as those of each fold alone."""
    gram, shape = draw(size)
    folds = np.stack([gram, 2 * gram + np.eye(size)])
    rotation, eigenvalues = linalg.rotate_gram(*float32(folds, shape))
    for fold, part in enumerate(folds):
        own_rotation, own_eigenvalues = linalg.rotate_gram(*float32(part, shape))
        np.testing.assert_array_equal(rotation[fold], own_rotation)
        np.testing.assert_array_equal(eigenvalues[fold], own_eigenvalues)


def test_inverse_psi_is_the_inverse():
    """inv(Psi) @ Psi = I for a regular Psi; it is finite for one of rank one."""
    shape = draw(3)[1]
    inverse = linalg.inverse_psi(tf.constant(shape, tf.float64))
    np.testing.assert_allclose(inverse @ shape, np.eye(3), atol=1e-4)
    assert np.isfinite(linalg.inverse_psi(tf.ones((2, 2)))).all()
