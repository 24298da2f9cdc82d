"""Metrics against dense NumPy computations."""

import numpy as np
import pytest

from keras_lmmvae.metrics import mse, noise_floor, oracle_mse
from keras_lmmvae.simulation import (
    Simulation,
    simulate_categorical,
    simulate_longitudinal,
    simulate_spatial,
    simulate_spatial_categorical,
    split,
)
from keras_lmmvae.simulation.blup import EffectBlock, blup, level_design

COMMON = {"n": 120, "num_features": 5, "latent_dim": 2, "noise_variance": 0.7, "seed": 1}


def tiny_simulations() -> dict[str, Simulation]:
    factors = {"cardinalities": (8, 12, 15), "effect_variances": (3.0, 0.3, 1.0)}
    return {
        "nested": simulate_categorical(**COMMON, **factors),
        "crossed": simulate_categorical(**COMMON, **factors, order="crossed"),
        "no effect": simulate_categorical(**COMMON, cardinalities=(8,), effect_variances=(0.0,)),
        "longitudinal": simulate_longitudinal(
            **COMMON, num_subjects=10, effect_variances=(3.0, 1.0, 2.0)
        ),
        "spatial": simulate_spatial(**COMMON, num_locations=30),
        "spatial_categorical": simulate_spatial_categorical(
            **COMMON, num_locations=30, cardinalities=(6, 9), effect_variances=(3.0, 1.0)
        ),
    }


SIMULATIONS = tiny_simulations()


def marginal_covariance(simulation: Simulation, feature: int) -> np.ndarray:
    """Dense covariance (n, n) of Z @ B in one feature, from the definitions."""
    data, n = simulation.data, simulation.num_rows
    total = np.zeros((n, n))
    for name, variance in simulation.effect_variance.items():
        same_level = data[name][:, None] == data[name][None, :]
        if name == "location":
            difference_x = data["lon"][:, None] - data["lon"]
            difference_y = data["lat"][:, None] - data["lat"]
            scale = simulation.settings["squared_length_scale"]
            kernel = np.exp(-(difference_x**2 + difference_y**2) / (2 * scale))
            total += variance[0, feature] * kernel
        elif name == "subject":
            sd = np.sqrt(variance[:, feature])
            correlation = np.array([[1.0, 0.3, 0.3], [0.3, 1.0, 0.0], [0.3, 0.0, 1.0]])
            basis = np.stack([np.ones(n), data["t"], data["t"] ** 2], axis=1) * sd
            total += same_level * (basis @ correlation @ basis.T)
        else:
            total += same_level * variance[0, feature]
    return total


def dense_oracle(simulation: Simulation, train: np.ndarray, test: np.ndarray) -> float:
    """Kriging with the marginal covariance of the training rows, feature by feature."""
    residual = simulation.data["x"].astype(float) - simulation.signal
    errors = []
    for feature in range(simulation.num_features):
        covariance = marginal_covariance(simulation, feature)
        noisy = covariance[np.ix_(train, train)] + simulation.noise_variance * np.eye(len(train))
        weights = np.linalg.solve(noisy, residual[train, feature])
        errors.append(residual[test, feature] - covariance[np.ix_(test, train)] @ weights)
    absorbed = simulation.noise_variance * simulation.latent_dim / simulation.num_features
    return np.mean(np.square(errors)) - absorbed


SPLITS = [
    *[(name, "rows", None) for name in SIMULATIONS],
    ("crossed", "groups", "group_1"),
    ("longitudinal", "groups", "subject"),
    ("longitudinal", "future", "t"),
    ("spatial", "groups", "location"),
    ("spatial_categorical", "groups", "location"),
]


@pytest.mark.parametrize(("name", "kind", "on"), SPLITS)
def test_oracle_equals_dense_kriging(name, kind, on):
    """BLUPs by conjugate gradients equal kriging with the dense marginal covariance."""
    simulation = SIMULATIONS[name]
    train, test = split(simulation.data, kind, on=on, seed=2)
    expected = dense_oracle(simulation, train, test)
    assert oracle_mse(simulation, train, test) == pytest.approx(expected, rel=1e-7)


def test_oracle_of_rows_without_effects_is_the_floor():
    """Without effects, the oracle is the noise of the test rows minus the latents' part."""
    simulation = SIMULATIONS["no effect"]
    train, test = split(simulation.data, seed=2)
    noise = simulation.data["x"][test] - simulation.signal[test]
    expected = np.mean(np.square(noise)) - 0.7 * 2 / 5
    assert oracle_mse(simulation, train, test) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("simulation", "kind", "on", "expected"),
    [
        (
            simulate_categorical(
                n=20_000,
                num_features=20,
                cardinalities=(200, 600, 1000),
                effect_variances=(0.3,) * 3,
                latent_dim=2,
                seed=1,
            ),
            "rows",
            None,
            0.9 + 0.07,
        ),
        (
            simulate_longitudinal(
                n=20_000, num_features=20, num_subjects=2000, effect_variances=(3.0,) * 3, seed=1
            ),
            "future",
            "t",
            0.95 + 0.86,
        ),
        (
            simulate_spatial(n=20_000, num_features=20, num_locations=2000, seed=1),
            "groups",
            "location",
            0.95 + 0.0,
        ),
    ],
    ids=["categorical", "longitudinal", "spatial"],
)
def test_oracle_of_the_paper_laws(simulation, kind, on, expected):
    """The noise floor plus the error of estimating B, with a fifth of the paper's rows."""
    train, test = split(simulation.data, kind, on=on, seed=1)
    assert oracle_mse(simulation, train, test) == pytest.approx(expected, abs=0.1)


def test_blup_of_one_factor_is_the_shrunken_mean():
    """One factor: sum(r) / (n_l + noise_variance / effect_variance); empty levels get 0."""
    rng = np.random.default_rng(3)
    codes, residual = rng.integers(0, 4, 50), rng.normal(size=(50, 2))
    variance, noise = np.array([0.5, 2.0]), np.array([1.0, 3.0])
    block = EffectBlock(level_design(codes, 6), 1 / variance[:, None, None])
    (effects,) = blup([block], residual, noise)
    for level in range(6):
        rows = residual[codes == level]
        expected = rows.sum(axis=0) / (len(rows) + noise / variance)
        np.testing.assert_allclose(effects[level, 0], expected, rtol=1e-10)


def test_blup_warns_when_the_steps_do_not_suffice():
    rng = np.random.default_rng(4)
    blocks = [
        EffectBlock(level_design(rng.integers(0, 20, 100), 20), np.ones((1, 1, 1)))
        for _ in range(2)
    ]
    with pytest.warns(RuntimeWarning, match=r"not exact: after 2 steps .* above 1\.0e-09"):
        blup(blocks, rng.normal(size=(100, 1)), 1.0, max_iterations=2)


def test_level_design_is_levels_times_basis():
    """Row i is e[code] (x) basis, by a dense loop. Code -1 is an empty row."""
    codes, basis = np.array([1, -1, 0, 1]), np.arange(8.0).reshape(4, 2) + 1
    dense = np.zeros((4, 3 * 2))
    for row, code in enumerate(codes):
        if code >= 0:
            dense[row, 2 * code : 2 * code + 2] = basis[row]
    np.testing.assert_array_equal(level_design(codes, 3, basis).toarray(), dense)


def test_mse_ignores_missing_cells_only():
    """NaN in x is left out. NaN in the reconstruction of an observed cell is not."""
    x = np.array([[1.0, np.nan], [2.0, 4.0]])
    assert mse(x, [[0.0, 9.0], [2.0, 2.0]]) == pytest.approx(5 / 3)
    assert np.isnan(mse(x, [[np.nan, 9.0], [2.0, 2.0]]))


def test_mse_is_summed_in_float64():
    """The mean is not computed in float32, which would be inexact for many cells."""
    x = np.full((2000, 1000), 0.1, np.float32)
    assert mse(x, np.zeros_like(x)) == pytest.approx(float(np.float32(0.1)) ** 2, rel=1e-12)


def test_mse_errors():
    with pytest.raises(
        ValueError, match=r"same shape\. Received: x=.* \(1, 2\) .*, xhat=.* \(1, 1\)"
    ):
        mse([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match=r"one observed cell.*Received: x=array of shape \(1, 1\)"):
        mse([[np.nan]], [[1.0]])


def test_noise_floor():
    assert noise_floor(2.0, 5, 20) == pytest.approx(1.5)
    with pytest.raises(ValueError, match=r"Received: latent_dim=3, num_features=2"):
        noise_floor(1.0, 3, 2)
    with pytest.raises(ValueError, match=r"at least 0\. Received: noise_variance=-1\.0"):
        noise_floor(-1.0, 1, 2)
