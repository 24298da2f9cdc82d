"""The likelihood of a length scale against dense normal densities; blocks and samples of rows."""

import numpy as np
import pytest
import tensorflow as tf
from reference import log_density

from keras_lmmvae.effects import length_scale as module
from keras_lmmvae.effects.length_scale import (
    ProcessLikelihood,
    blocks_of_rows,
    profile_log_likelihood,
)
from keras_lmmvae.effects.row_sample import RowSample
from keras_lmmvae.kernels import Stationary

RNG = np.random.default_rng(0)


def spectrum(covariance: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return eigenvalues, (vectors.T @ values) ** 2


def test_profile_is_the_maximum_of_dense_densities():
    """The profile is log Normal(r; 0, noise * (I + ratio K)), both variances at their best.

    The best ratio is taken from the same grid, the best noise variance from a fine one; the
    constant that the profile leaves out is n p (log(2 pi) + 1) / 2. Two blocks are independent.
    """
    rows, width = 12, 3
    covariance = np.zeros((rows, rows))
    for block in (slice(0, 7), slice(7, 12)):
        phi = RNG.normal(size=(block.stop - block.start, 4))
        covariance[block, block] = phi @ phi.T
    values = np.linalg.cholesky(covariance + 1e-9 * np.eye(rows)) @ RNG.normal(size=(rows, width))
    values = values * [0.1, 1.0, 3.0] + RNG.normal(size=(rows, width))
    parts = [spectrum(covariance[b, b], values[b]) for b in (slice(0, 7), slice(7, 12))]
    joined = [np.concatenate(part) for part in zip(*parts, strict=True)]
    actual, ratios = profile_log_likelihood(*joined)
    for feature, height, chosen in zip(values.T, actual, ratios, strict=True):
        best, best_ratio = -np.inf, 0.0
        for ratio in module._RATIOS:
            shape = np.eye(rows) + ratio * covariance
            noise = feature @ np.linalg.solve(shape, feature) / rows
            near = [log_density(feature, shape * noise * c) for c in (0.9, 0.99, 1.0, 1.01, 1.1)]
            assert np.argmax(near) == 2  # the closed form is the maximum over the noise variance
            if near[2] > best:
                best, best_ratio = near[2], ratio
        constant = 0.5 * rows * (np.log(2 * np.pi) + 1)
        np.testing.assert_allclose(height - constant, best, rtol=1e-8)
        assert chosen == best_ratio


def test_profile_does_not_depend_on_the_units():
    """Scaling a feature by c moves the log-likelihood by -n log(c) alone."""
    eigenvalues, squares = RNG.chisquare(2, size=20), RNG.chisquare(1, size=(20, 2))
    heights = [
        profile_log_likelihood(eigenvalues, squares * c**2)[0] + 20 * np.log(c) for c in (1.0, 50.0)
    ]
    np.testing.assert_allclose(heights[0], heights[1], rtol=1e-10)


def test_profile_survives_a_constant_feature():
    """A feature of zeros keeps the likelihood finite."""
    assert np.isfinite(profile_log_likelihood(np.ones(20), np.zeros((20, 1)))[0]).all()


def test_blocks_hold_neighbours_and_others():
    """Half of a block are the rows nearest to one row, the rest is spread; no row stands twice."""
    places = RNG.uniform(-1, 1, (3_000, 2))
    blocks = blocks_of_rows(places, seed=1)
    for block in blocks:
        assert len(set(block)) == len(block) == 256
        spread = places[block].std(axis=0).mean()
        assert places[block[:128]].std(axis=0).mean() < 0.3 * spread
        near = np.linalg.norm(places - places[block[0]], axis=1)
        assert set(block[:128]) == set(np.argsort(near)[:128])
    again = blocks_of_rows(places, seed=1)
    np.testing.assert_array_equal(blocks, again)
    assert not np.array_equal(blocks, blocks_of_rows(places, seed=2))


def test_few_rows_are_one_block():
    """Up to 256 rows have their full likelihood."""
    (block,) = blocks_of_rows(RNG.uniform(size=(100, 2)), seed=0)
    np.testing.assert_array_equal(block, np.arange(100))


def test_equal_places_may_fill_a_block():
    """Rows at one place are neighbours of each other: their kernel matrix has rank 1."""
    places = np.repeat(RNG.uniform(-1, 1, (3, 2)), 200, axis=0)
    values = np.repeat(RNG.normal(size=(3, 5)), 200, axis=0) + RNG.normal(size=(600, 5))
    likelihood = ProcessLikelihood(Stationary("rbf"), places, values)
    assert 0.02 <= likelihood.best_length_scale((0.02, 5.0)) <= 5.0


@pytest.mark.parametrize("kernel", ["rbf", "matern32"])
@pytest.mark.parametrize("truth", [0.15, 0.6])
def test_recovers_a_length_scale(kernel, truth):
    """Rows of a known process give its length scale back, within 20 %, in any order of the rows.

    With 30 features on 400 places the spread of the estimate is a few percent.
    """
    places = RNG.uniform(-1, 1, (400, 2))
    places = places[np.argsort(places[:, 0])]
    covariance = Stationary(kernel).matrix(*[tf.constant(places)] * 2, truth).numpy()
    covariance += 1e-8 * np.eye(len(places))
    values = 3.0 + np.linalg.cholesky(covariance) @ RNG.normal(size=(len(places), 30))
    values += 0.5 * RNG.normal(size=values.shape)
    likelihood = ProcessLikelihood(Stationary(kernel), places, values)
    found = likelihood.best_length_scale((0.02, 5.0))
    assert 0.8 * truth < found < 1.25 * truth
    # Variances 1 and 0.25.
    assert 2.5 < likelihood.signal_to_noise(found) < 6.0


class TestRowSample:
    def test_every_row_is_as_likely(self):
        """Early and late rows of a stream are in the sample equally often."""
        counts = np.zeros(40)
        for seed in range(400):
            sample = RowSample(10, seed)
            for part in np.split(np.arange(40), [3, 25]):
                sample.update(part, -part)
            rows, same = sample.rows()
            assert len(rows) == 10
            np.testing.assert_array_equal(rows, -same)
            counts[rows] += 1
        assert np.abs(counts / 400 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 400)

    def test_few_rows_stay_all(self):
        """A stream shorter than the sample stays as it is."""
        sample = RowSample(10, 0)
        sample.update(np.arange(3))
        sample.update(np.arange(3, 7))
        np.testing.assert_array_equal(sample.rows()[0], np.arange(7))
