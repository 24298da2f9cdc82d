"""Rows whose effects are hidden from the networks: the argument `effects_dropout`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
from keras_lmmvae.rows import FEATURES, Rows, with_folds

SHARE = 0.3


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    store = rng.integers(0, 30, 2_000).astype(object)
    x = rng.normal(size=(30, 4))[store.astype(int)] + rng.normal(size=(2_000, 4))
    store[::10] = None
    return {"x": x, "store": store, "t": rng.normal(size=2_000)}


@pytest.fixture(scope="module")
def model(data: dict[str, np.ndarray]) -> lmm.LMMVAE:
    terms = [lmm.RandomSlopes("store", time="t")]
    model = small_model(terms, effects_dropout=SHARE)
    fit_briefly(model, data, 500)
    return model


def encoded(model: lmm.LMMVAE, data: dict[str, np.ndarray]) -> Rows:
    rows: Rows = with_folds(model.encode_data(data))
    return rows


def test_hidden_rows_have_the_prior(model, data):
    """About the given share contributes nothing, with the prior's variance; others none."""
    rows = encoded(model, data)
    effects = model.effects_fit.training_effects(rows)
    hidden = effects.is_hidden.numpy()
    assert hidden.mean() == pytest.approx(SHARE, abs=4 * np.sqrt(SHARE * (1 - SHARE) / 2_000))
    own = model.mixed_model.own_fold(rows)
    expected = model.mixed_model.out_of_fold_parts(own)["store"].numpy()
    expected[hidden] = 0.0
    np.testing.assert_allclose(effects.parts["store"], expected)
    (term,), (part,) = model.random_effects, model.mixed_model.effects
    basis = term.basis(rows["_effects"]["store"]).numpy()
    psi = part.coefficient_covariance.numpy()
    prior = np.einsum("bi,ij,bj->b", basis, psi, basis)[:, None] * part.effect_variance.numpy()
    prior[~hidden] = 0.0
    prior[::10] = 0.0  # rows without a key have no effects to hide
    np.testing.assert_allclose(effects.variance, prior, rtol=1e-4, atol=1e-6)
    again = model.effects_fit.training_effects(rows).is_hidden.numpy()
    assert (again != hidden).any()


def test_hidden_rows_teach_no_effects(model, data):
    """A step leaves the levels and the noise as they are where all rows are hidden."""
    rows, fit = encoded(model, data), model.effects_fit
    state = model.get_weights()
    effects = fit.training_effects(rows)
    error = tf.ones_like(rows[FEATURES])
    for is_hidden, moves in ((tf.ones_like(effects.is_hidden), False), (None, True)):
        given = type(effects)(effects.parts, effects.kl, effects.own, 0.0, is_hidden)
        before = [np.asarray(w) for w in (*model.mixed_model.weights, model.noise_variance)]
        fit.after_gradient(rows, given, error, error)
        after = [np.asarray(w) for w in (*model.mixed_model.weights, model.noise_variance)]
        # The noise variance is a running mean, of itself here: exact but for rounding.
        same = all(np.allclose(a, b, rtol=1e-6) for a, b in zip(before, after, strict=True))
        assert same != moves
    model.set_weights(state)


def test_loss_is_that_of_the_prior_predictive(data):
    """A hidden row is scored with the prior's variance beside the noise."""
    one = {name: column[:200] for name, column in data.items()}
    model = small_model([lmm.RandomIntercept("store")], effects_dropout=0.999)
    model.adapt(one)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    rows = encoded(model, one)
    before = model.networks_noise_variance().numpy()
    prior = model.mixed_model.prior_variance(rows).numpy()
    generator = keras.random.SeedGenerator(0)
    generator.state.assign(model.seed_generator.state)
    hidden = keras.random.uniform((200,), seed=generator).numpy() < 0.999
    assert hidden.all()
    seen = model.infer(rows, {"store": tf.zeros_like(rows[FEATURES])})
    draw = keras.random.normal(seen.latent_mean.shape, seed=generator)
    error = (rows[FEATURES] - seen.decoded(seen.latent_mean + seen.latent_std * draw)).numpy()
    variance = before + prior
    density = -0.5 * (error**2 / variance + np.log(2 * np.pi * variance)).sum(axis=1)
    expected = -(density - float(model.log_units(None))).mean()
    logs = model.train_step(rows)
    assert float(logs["reconstruction_loss"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_both_compile_modes(data, jit_compile):
    """A compiled step draws its hidden rows anew."""
    model = small_model([lmm.RandomIntercept("store")], effects_dropout=SHARE)
    model.adapt(data)
    model.compile("adam", jit_compile=jit_compile)
    history = model.fit(data, batch_size=500, epochs=2, verbose=0, calibration_split=0.0)
    assert np.isfinite(history.history["loss"]).all()


def test_saved_and_checked(model, tmp_path):
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").effects_dropout == SHARE
    with pytest.raises(ValueError, match="invalid value for `effects_dropout`"):
        small_model(effects_dropout=1.0)
    with pytest.raises(ValueError, match=r"goes with posterior='conjugate'.*effects_dropout=0.2"):
        small_model(effects_dropout=0.2, posterior="amortized")
