"""The marginal likelihood of a length scale against dense normal densities."""

import numpy as np
import pytest
from reference import kernel_matrix, log_density

from keras_lmmvae.effects import length_scale as module
from keras_lmmvae.effects.length_scale import fit_length_scale, profile_log_likelihood
from keras_lmmvae.kernels import KernelBasis, Stationary

RNG = np.random.default_rng(0)


def test_profile_is_the_maximum_of_dense_densities():
    """The profile is log Normal(r; 0, noise * (I + ratio Phi Phi')), both variances at their best.

    The best ratio is taken from the same grid, the best noise variance from a fine one; the
    constant that the profile leaves out is n p (log(2 pi) + 1) / 2.
    """
    rows, size, width = 12, 4, 3
    phi = RNG.normal(size=(rows, size))
    residual = phi @ RNG.normal(size=(size, width)) * [0.1, 1.0, 3.0]
    residual += RNG.normal(size=(rows, width))
    actual = profile_log_likelihood(
        phi.T @ phi, phi.T @ residual, np.square(residual).sum(0), rows
    ) - 0.5 * rows * width * (np.log(2 * np.pi) + 1)
    expected = 0.0
    for values in residual.T:
        best = -np.inf
        for ratio in module._RATIOS:
            shape = np.eye(rows) + ratio * phi @ phi.T
            noise = values @ np.linalg.solve(shape, values) / rows
            near = [log_density(values, shape * noise * c) for c in (0.9, 0.99, 1.0, 1.01, 1.1)]
            assert np.argmax(near) == 2  # the closed form is the maximum over the noise variance
            best = max(best, near[2])
        expected += best
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_profile_does_not_depend_on_the_units():
    """Scaling a feature by c moves the log-likelihood by -n log(c) alone."""
    phi, residual = RNG.normal(size=(20, 3)), RNG.normal(size=(20, 2))
    heights = []
    for c in (1.0, 50.0):
        values = residual * c
        height = profile_log_likelihood(
            phi.T @ phi, phi.T @ values, np.square(values).sum(0), len(values)
        )
        heights.append(height + 2 * len(values) * np.log(c))
    np.testing.assert_allclose(heights[0], heights[1], rtol=1e-10)


def test_profile_survives_a_constant_feature():
    """A feature of zeros keeps the likelihood finite."""
    phi = RNG.normal(size=(20, 3))
    height = profile_log_likelihood(phi.T @ phi, np.zeros((3, 1)), np.zeros(1), 20)
    assert np.isfinite(height)


@pytest.mark.parametrize("truth", [0.15, 0.6])
def test_recovers_a_length_scale(truth):
    """Rows of a known process give its length scale back, within 20 %.

    With 30 features on 150 places the spread of the estimate is a few percent.
    """
    places = RNG.uniform(-1, 1, (150, 2))
    covariance = kernel_matrix("rbf", places, places, truth) + 1e-8 * np.eye(len(places))
    process = np.linalg.cholesky(covariance) @ RNG.normal(size=(len(places), 30))
    at = RNG.integers(0, len(places), 600)
    residual = process[at] + 0.5 * RNG.normal(size=(600, 30))
    points = places.astype(np.float32)

    def basis_of(inputs, length_scale):
        return KernelBasis.of(Stationary("rbf"), points, length_scale).features(inputs)

    found = fit_length_scale(basis_of, places[at], residual, (0.02, 5.0))
    assert 0.8 * truth < found < 1.25 * truth
