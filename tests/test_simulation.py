"""Simulated data: distributions and reproducibility."""

import numpy as np
import pytest

from keras_lmmvae.simulation import (
    Simulation,
    simulate_categorical,
    simulate_longitudinal,
    simulate_spatial,
    simulate_spatial_categorical,
)
from keras_lmmvae.simulation.simulation import (
    draw_level_codes,
    draw_signal,
    rbf_kernel,
    rbf_root,
)

SMALL = {
    simulate_categorical: {"cardinalities": (20, 30), "effect_variances": (0.3, 3.0)},
    simulate_longitudinal: {"num_subjects": 30},
    simulate_spatial: {"num_locations": 40},
    simulate_spatial_categorical: {"num_locations": 40, "cardinalities": (20,)},
}
COLUMNS = {
    simulate_categorical: ["group_0", "group_1"],
    simulate_longitudinal: ["subject", "t"],
    simulate_spatial: ["lon", "lat", "location"],
    simulate_spatial_categorical: ["lon", "lat", "location", "group_0"],
}


def small(function, **options) -> Simulation:
    return function(**{"n": 300, "num_features": 7, "seed": 1, **SMALL[function], **options})


def assert_mean(values, expected, *, sd):
    """The mean of independent draws is within 5 standard errors of its expectation."""
    assert np.mean(values) == pytest.approx(expected, abs=5 * sd / np.sqrt(np.size(values)))


def assert_variance(values, expected):
    """Mean square of centred normal draws: its standard error is variance * sqrt(2 / count)."""
    assert_mean(np.square(values) / expected, 1.0, sd=np.sqrt(2.0))


@pytest.mark.parametrize("function", SMALL)
class TestEveryStructure:
    def test_columns_and_shapes(self, function):
        """x is float32 (n, p); every effect has levels x terms x p; keys are int64."""
        simulation = small(function, latent_dim=2)
        data = simulation.data
        assert list(data) == ["x", *COLUMNS[function]]
        assert data["x"].shape == simulation.signal.shape == (300, 7)
        assert data["x"].dtype == np.float32
        assert simulation.latent.shape == (300, 2)
        assert (simulation.num_rows, simulation.num_features, simulation.latent_dim) == (300, 7, 2)
        assert function.__name__ == f"simulate_{simulation.structure}"
        for name, effects in simulation.effects.items():
            assert data[name].dtype == np.int64
            assert data[name].min() >= 0
            assert data[name].max() < len(effects)
            assert simulation.contribution[name].shape == (300, 7)
            assert simulation.effect_variance[name].shape == effects.shape[1:]

    def test_x_is_the_sum_of_its_parts(self, function):
        """x - signal - sum of the contributions is the noise, of the stated variance."""
        simulation = small(function, n=3000, noise_variance=0.5)
        noise = simulation.data["x"] - simulation.signal - sum(simulation.contribution.values())
        assert_mean(noise, 0.0, sd=np.sqrt(0.5))
        assert_variance(noise, 0.5)

    def test_contribution_is_the_row_of_effects(self, function):
        """contribution[i] = sum over terms of basis[i, m] * effects[level[i], m]."""
        simulation = small(function)
        for name, effects in simulation.effects.items():
            for row in (0, 123, 299):
                t = simulation.data["t"][row] if name == "subject" else 0.0
                basis = np.array([t**m for m in range(effects.shape[1])])
                expected = basis @ effects[simulation.data[name][row]]
                np.testing.assert_allclose(simulation.contribution[name][row], expected, rtol=1e-12)

    def test_seed_decides_all(self, function):
        """The same seed gives the same simulation, another seed another one."""
        first, again, other = small(function), small(function), small(function, seed=2)
        for name in first.data:
            np.testing.assert_array_equal(first.data[name], again.data[name])
            assert not np.array_equal(first.data[name], other.data[name])
        np.testing.assert_array_equal(first.signal, again.signal)

    def test_settings_rebuild_it(self, function):
        """The settings are the arguments of the call, and the repr shows them."""
        simulation = small(function)
        rebuilt = function(**simulation.settings)
        np.testing.assert_array_equal(simulation.data["x"], rebuilt.data["x"])
        assert "n=300" in repr(simulation)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n": 0}, r"`n`, expected an integer of at least 1\. Received: n=0"),
            ({"n": 2.5}, r"`n`, expected an integer of at least 1\. Received: n=2\.5"),
            ({"latent_dim": 0}, r"`latent_dim`, expected an integer .*\. Received: latent_dim=0"),
            (
                {"noise_variance": 0.0},
                r"`noise_variance`, expected a finite number above 0\. .* noise_variance=0\.0",
            ),
        ],
    )
    def test_bad_arguments(self, function, options, message):
        with pytest.raises(ValueError, match=message):
            small(function, **options)


def test_signal_is_the_paper_formula():
    """f_j(u) = sum{ u_l W_jl cos(u_l W_jl) }, by a slow loop over the same draws."""
    latent, signal = draw_signal(np.random.default_rng(3), 6, 4, 2)
    rng = np.random.default_rng(3)
    u, W, mean = rng.standard_normal((6, 2)), rng.standard_normal((4, 2)), rng.uniform(-10, 10, 4)
    for i in range(6):
        for j in range(4):
            terms = [u[i, l] * W[j, l] * np.cos(u[i, l] * W[j, l]) for l in range(2)]  # noqa: E741
            assert signal[i, j] == pytest.approx(mean[j] + sum(terms), rel=1e-12)
    np.testing.assert_array_equal(latent, u)


def test_latent_and_mean_moments():
    """u ~ Normal(0, I); the feature means are Uniform(-10, 10), as u W cos(u W) has mean 0."""
    simulation = simulate_categorical(
        n=4000, num_features=400, cardinalities=(5,), effect_variances=(0.3,), latent_dim=2, seed=5
    )
    assert_mean(simulation.latent, 0.0, sd=1.0)
    assert_variance(simulation.latent, 1.0)
    mean = simulation.signal.mean(axis=0)
    assert_mean(mean, 0.0, sd=20 / np.sqrt(12))
    assert_mean(np.square(mean), 100 / 3, sd=100 * np.sqrt(1 / 5 - 1 / 9))


def test_level_sizes_follow_their_weights():
    """Sizes are multinomial with weights Poisson(3) + 1: relative variance 3/16 + 1/mean."""
    sizes = np.bincount(draw_level_codes(np.random.default_rng(1), 400_000, 4000))
    relative = np.square(sizes / 100 - 1)
    assert len(sizes) == 4000
    assert_mean(relative, 3 / 16 + 1 / 100, sd=relative.std())


@pytest.mark.parametrize("order", ["nested", "crossed"])
def test_order_of_the_labels(order):
    """Nested: every factor is sorted along the rows. Crossed: they do not correlate."""
    data = small(simulate_categorical, n=5000, order=order).data
    first, second = data["group_0"], data["group_1"]
    assert np.all(np.diff(first) >= 0) == np.all(np.diff(second) >= 0) == (order == "nested")
    correlation = np.corrcoef(first, second)[0, 1]
    assert correlation > 0.9 if order == "nested" else abs(correlation) < 5 / np.sqrt(5000)


@pytest.mark.parametrize("nominal", [0.0, 0.3, 1.0, 3.0])
def test_true_variance_of_a_nominal_one(nominal):
    """A nominal variance v means (Poisson(v) + 1) * min(v, 1) in each feature."""
    simulation = simulate_categorical(
        n=10, num_features=2000, cardinalities=(50,), effect_variances=(nominal,), seed=2
    )
    variance = simulation.effect_variance["group_0"][0]
    scale = min(nominal, 1.0)
    assert_mean(variance, (nominal + 1) * scale, sd=np.sqrt(nominal) * scale + 1e-12)
    if nominal:
        counts = variance / scale
        np.testing.assert_allclose(counts, np.round(counts))
        assert_variance(simulation.effects["group_0"][:, 0], variance)
    else:
        assert not simulation.effects["group_0"].any()


def test_longitudinal_covariance_is_literal():
    """Effects of a subject have the given variances, correlation 0.3 with the intercept, else 0."""
    variances = (3.0, 1.0, 0.3)
    simulation = simulate_longitudinal(
        n=2000, num_features=50, num_subjects=2000, effect_variances=variances, seed=4
    )
    np.testing.assert_array_equal(simulation.effect_variance["subject"].T, [variances] * 50)
    scaled = simulation.effects["subject"] / np.sqrt(variances)[:, None]  # (q, M, p)
    expected = np.array([[1.0, 0.3, 0.3], [0.3, 1.0, 0.0], [0.3, 0.0, 1.0]])
    for a in range(3):
        for b in range(3):
            product = scaled[:, a] * scaled[:, b]
            assert_mean(product, expected[a, b], sd=np.sqrt(1 + expected[a, b] ** 2))
    t = simulation.data["t"]
    assert_mean(t, 0.5, sd=np.sqrt(1 / 12))
    assert 0 <= t.min() < 0.01
    assert 0.99 < t.max() <= 1


def test_spatial_effects_have_the_kernel_covariance():
    """The mean product of effects at two locations is exp(-distance**2 / (2 s))."""
    simulation = simulate_spatial(
        n=200, num_features=4000, num_locations=12, squared_length_scale=0.3, seed=6
    )
    data = simulation.data
    places = np.unique(data["location"])
    first = [np.flatnonzero(data["location"] == place)[0] for place in places]
    coordinates = np.stack([data["lon"], data["lat"]], axis=1)[first]
    assert np.abs(coordinates).max() <= 1
    scaled = simulation.effects["location"][:, 0] / np.sqrt(simulation.effect_variance["location"])
    scaled = scaled[places]  # (L, p)
    for a in range(len(places)):
        for b in range(a + 1):
            expected = np.exp(-np.sum((coordinates[a] - coordinates[b]) ** 2) / 0.6)
            assert_mean(scaled[a] * scaled[b], expected, sd=np.sqrt(1 + expected**2))


@pytest.mark.parametrize("squared_length_scale", [3.0, 0.3, 0.01])
@pytest.mark.parametrize("tolerance", [1e-12, 1e-8])
def test_kernel_root_is_exact_to_its_tolerance(squared_length_scale, tolerance):
    """|K - A @ A'| <= tolerance at a low rank, with a repeated location."""
    coordinates = np.random.default_rng(7).uniform(-1, 1, (400, 2))
    coordinates[-1] = coordinates[0]
    root = rbf_root(coordinates, squared_length_scale, tolerance=tolerance)
    error = rbf_kernel(coordinates, coordinates, squared_length_scale) - root @ root.T
    assert np.abs(error).max() <= tolerance + 1e-13
    assert root.shape[1] < (400 if squared_length_scale < 0.1 else 180)


def test_spatial_law_at_full_number_of_locations_is_fast_to_draw():
    """The root of 10,000 locations has a rank below 250."""
    coordinates = np.random.default_rng(8).uniform(-1, 1, (10_000, 2))
    assert rbf_root(coordinates, 0.3).shape[1] < 250


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (
            simulate_categorical,
            {"cardinalities": (3,)},
            r"one for each of them\. .*cardinalities=\(3,\), effect_variances=\(0\.3, 3\.0\)",
        ),
        (simulate_categorical, {"order": "random"}, r"`order` must be one of .*order='random'"),
        (
            simulate_longitudinal,
            {"correlation": 0.8},
            r"below 0\.707 in absolute.*correlation=0\.8",
        ),
        (
            simulate_longitudinal,
            {"effect_variances": (-1.0,)},
            r"of at least 0\. .*variances=-1\.0",
        ),
        (simulate_longitudinal, {"effect_variances": ()}, r"at least one value.*variances=\(\)"),
        (simulate_categorical, {"cardinalities": (3, 0)}, r"`cardinalities`, .* cardinalities=0"),
        (simulate_spatial, {"effect_variance": -0.1}, r"of at least 0\. .*effect_variance=-0\.1"),
        (simulate_spatial, {"squared_length_scale": -1.0}, r"above 0\. .*length_scale=-1\.0"),
    ],
)
def test_bad_arguments_of_a_structure(function, options, message):
    with pytest.raises(ValueError, match=message):
        small(function, **options)
