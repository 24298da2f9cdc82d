"""Shares of the variance: against closed forms, and against the truth of simulations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import constant_decoder, known_model, small_model

import keras_lmmvae as lmm


def linear_decoder(weights: np.ndarray) -> keras.Model:
    """`f(u) = u @ weights`, which stays so."""
    head = keras.layers.Dense(
        weights.shape[1], kernel_initializer=keras.initializers.Constant(weights), trainable=False
    )
    return keras.Sequential([keras.Input((weights.shape[0],)), head])


@pytest.fixture
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    g = np.arange(200) % 20
    return {"x": rng.normal(size=(200, 3)) * [1.0, 2.0, 5.0], "g": g, "t": rng.uniform(1, 4, 200)}


def test_terms_and_noise_in_closed_form(data: dict[str, Any]) -> None:
    """No latent part: shares are variances over their sum, in the features' own units."""
    effects = np.array([1.0, 2.0, 3.0])
    model = known_model([lmm.RandomIntercept("g")], data, 4.0, {"g": effects})
    shares = model.variance_partition(data)
    assert list(shares.index) == ["latent", "g", "noise"]
    np.testing.assert_allclose(shares.loc["latent"], 0.0, atol=1e-6)
    np.testing.assert_allclose(shares.loc["g"], effects / (effects + 4.0), rtol=1e-5)


def test_slopes_average_over_the_rows(data: dict[str, Any]) -> None:
    """A term with slopes: the mean of z' Psi z over the rows at hand, z = (1, t) as given."""
    psi = np.array([[1.5, -0.2], [-0.2, 0.5]])
    terms = [lmm.RandomSlopes("g", time="t")]
    model = known_model(terms, data, 4.0, {"g": 2.0}, {"g": psi})
    late = {**data, "t": data["t"] + 2.0}
    z = np.stack([np.ones(200), late["t"]], axis=1)
    variance = 2.0 * np.einsum("ni,ij,nj->n", z, psi, z).mean()
    shares = model.variance_partition(late)
    np.testing.assert_allclose(shares.loc["g"], variance / (variance + 4.0), rtol=1e-4)


def test_training_rows_are_remembered(data: dict[str, Any], tmp_path: Path) -> None:
    """Without data, a term's share is that of the training rows, also of a loaded model."""
    model = small_model([lmm.RandomSlopes("g", time="t")], decoder=constant_decoder(3))
    model.adapt(data)
    model.compile()
    model.fit(data, batch_size=50, verbose=0)
    shares = model.variance_partition()
    np.testing.assert_allclose(shares.loc["g"], model.variance_partition(data).loc["g"], rtol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.variance_partition(), shares, rtol=1e-5, atol=1e-7)


def test_rows_without_a_level_do_not_count(data: dict[str, Any]) -> None:
    """Half the keys missing: the share of a row that has a level stays; none at all: 0."""
    keys = data["g"].astype(float)
    model = known_model([lmm.RandomIntercept("g")], data, 4.0, {"g": 2.0})
    half = {**data, "g": np.where(np.arange(200) < 100, np.nan, keys)}
    np.testing.assert_allclose(model.variance_partition(half).loc["g"], 2.0 / 6.0, rtol=1e-5)
    none = {**data, "g": np.full(200, np.nan)}
    np.testing.assert_allclose(model.variance_partition(none).loc["g"], 0.0, atol=1e-12)


def test_latent_of_the_prior_in_closed_form(data: dict[str, Any]) -> None:
    """f(u) = u W: Var(f) = sum of W**2 by feature, here of standardised features.

    10,000 draws: relative standard error sqrt(2 / 10,000) = 0.014; bound: five of them.
    """
    weights = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 2.0]], np.float32)
    options = {"decoder": linear_decoder(weights), "latent_dim": 2, "normalize": False}
    model = small_model([], noise_variance=1.0, **options)
    model.adapt(data)
    model.fitted.assign(1.0)
    variance = np.square(weights).sum(axis=0)
    shares = model.variance_partition()
    ratio = shares.loc["latent"] / shares.loc["noise"]
    np.testing.assert_allclose(ratio, variance, rtol=0.07)
    np.testing.assert_allclose(shares.sum(), 1.0)
    np.testing.assert_array_equal(shares, model.variance_partition())


def test_latent_of_rows_is_that_of_their_posteriors(data: dict[str, Any]) -> None:
    """Law of total variance: Var(E[u | x]) + E[Var(u | x)] over the rows, times W**2.

    50 draws a row, 10,000 in all: bound as above.
    """
    weights = np.array([[1.0, 0.5, 2.0]], np.float32)
    model = small_model([], decoder=linear_decoder(weights), noise_variance=1.0, normalize=False)
    model.adapt(data)
    model.fitted.assign(1.0)
    rows = model.encode_data(data)
    mean, log_var = model.infer(rows).latent
    total = np.var(mean.numpy()) + np.mean(np.exp(log_var.numpy()))
    shares = model.variance_partition(data)
    np.testing.assert_allclose(
        shares.loc["latent"] / shares.loc["noise"], total * weights[0] ** 2, rtol=0.07
    )
    dataset = tf.data.Dataset.from_tensor_slices({"x": data["x"]}).batch(64)
    np.testing.assert_allclose(model.variance_partition(dataset), shares, atol=0.05)


def test_simulation_with_a_true_latent() -> None:
    """Shares of a fitted model, against Var(f(u)), effect variances and noise of the simulation.

    Latent and noise can only be told apart as well as the networks have learned: on average
    over the features within 0.1, by prior and by rows, and correlated with the truth.
    """
    simulation = lmm.simulation.simulate_categorical(
        n=2000, num_features=30, cardinalities=(100,), effect_variances=(1.0,), seed=1
    )
    model = lmm.LMMVAE(1, [lmm.RandomIntercept("group_0")], hidden_units=(64, 32), seed=0)
    model.adapt(simulation.data)
    model.compile()
    model.fit(simulation.data, epochs=25, batch_size=50, verbose=0)
    parts = [simulation.signal.var(axis=0), simulation.effect_variance["group_0"][0], np.ones(30)]
    truth = np.stack(parts) / np.sum(parts, axis=0)
    for rows in (None, simulation.data):
        shares = model.variance_partition(rows).to_numpy()
        np.testing.assert_allclose(shares.mean(axis=1), truth.mean(axis=1), atol=0.1)
        assert np.corrcoef(shares[0], truth[0])[0, 1] > 0.8
        assert np.corrcoef(shares[1], truth[1])[0, 1] > 0.8


def test_errors(data: dict[str, Any]) -> None:
    model = known_model([lmm.RandomIntercept("g")], data, 4.0, {"g": 1.0})
    with pytest.raises(ValueError, match=r"`num_samples`.*at least 1. Received: num_samples=0"):
        model.variance_partition(num_samples=0)
    with pytest.raises(ValueError, match=r"lack the column\(s\) \['g'\]"):
        model.variance_partition({"x": data["x"]})
    amortized = small_model([lmm.RandomIntercept("g")], posterior="amortized")
    amortized.adapt(data)
    amortized.fitted.assign(1.0)
    with pytest.raises(ValueError, match=r"does not learn the variances.*posterior='amortized'"):
        amortized.variance_partition()
