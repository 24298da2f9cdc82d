"""Training and prediction: conventional Keras behaviour, and the ELBO's parts in closed form."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from reference import log_density, normal_kl, segment_mean
from small_models import (
    DenseTerm,
    constant_decoder,
    dense_blup,
    fit_briefly,
    known_model,
    small_model,
)

import keras_lmmvae as lmm
from keras_lmmvae.elbo import cubature_mean, latent_kl
from keras_lmmvae.rows import EFFECTS, FOLD, Pass, Rows, take_rows, with_folds

tfd = tfp.distributions

HISTORY = {"loss", "reconstruction_loss", "latent_kl", "effects_kl", "mse"}


def make_data(n: int = 240, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows on a curve in three dimensions, moved by their store, their city and their place."""
    rng = np.random.default_rng(0)
    stores, cities = rng.normal(size=(12, 3)), rng.normal(size=(6, 3))
    rng = np.random.default_rng(seed)
    store, city, place = rng.integers(0, 12, n), rng.integers(0, 6, n), rng.integers(0, 9, n)
    latent = rng.normal(size=n)
    x = np.stack([2 * latent, latent**2, np.sin(2 * latent)], axis=1)
    x = 10 + x + stores[store] + cities[city] + 0.3 * rng.normal(size=(n, 3))
    east, north = place % 3 * 1.0, place // 3 * 1.0
    t = rng.uniform(0.0, 1.0, n)
    return {"x": x, "store": store, "city": city, "t": t, "east": east, "north": north}


def terms() -> list:
    return [lmm.RandomIntercept("store"), lmm.RandomIntercept("city")]


def one_term() -> list:
    return [lmm.RandomIntercept("store")]


def batches(data: dict[str, np.ndarray], size: int = 60) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(data).batch(size)


def fitted(
    given: list, data: dict[str, np.ndarray] | None = None, compiled: Any = None, **options: Any
) -> tuple[lmm.LMMVAE, dict[str, list[float]]]:
    """A model after two epochs, and its history; options of the model and of `fit`.

    Eight steps take less time than their tracing: they are eager unless `compiled` is given.
    """
    data = make_data() if data is None else data
    names = ("posterior", "shared_encoder", "effects_kl_reduction", "dtype", "seed", "latent_dim")
    model = small_model(given, **{name: options.pop(name) for name in names if name in options})
    model.adapt(data)
    compiled = {"run_eagerly": "epochs" not in options} if compiled is None else compiled
    model.compile(keras.optimizers.Adam(0.01), **compiled)
    options = {"epochs": 2, "batch_size": 60, "verbose": 0, **options}
    return model, model.fit(data, **options).history


def rows_of_a_step(
    model: lmm.LMMVAE, data: dict[str, np.ndarray], training: bool, count: int = 12
) -> dict[str, np.ndarray]:
    """What a step of training or of evaluation says of single rows, with the rows' errors.

    Every row is a batch of its own, and the model's state is put back after it.
    """
    rows, state, found = with_folds(model.encode_data(data)), model.get_weights(), []
    for number in range(count):
        row = take_rows(rows, number, number + 1)
        error = _error_of_a_step(model, row, training)
        model.reset_metrics()
        logs = (model.train_step if training else model.test_step)(row)
        found.append({name: float(value) for name, value in logs.items()} | {"error": error})
        model.set_weights(state)
    return {name: np.stack([row[name] for row in found]) for name in found[0]}


def _error_of_a_step(model: lmm.LMMVAE, row: Rows, training: bool) -> np.ndarray:
    """`x - f(u) - Z B` of a row, `(p,)`, with the draw of `u` that the step will make."""
    if not training:
        return model.infer(row).error.numpy()[0]
    seen = model.infer(row, model.mixed_model.out_of_fold_parts(model.mixed_model.own_fold(row)))
    generator = keras.random.SeedGenerator(0)
    generator.state.assign(model.seed_generator.state)
    draw = keras.random.normal(seen.latent_mean.shape, seed=generator)
    decoded = seen.decoded(seen.latent_mean + seen.latent_std * draw)
    return (row["x"] - decoded - seen.contribution).numpy()[0]


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    return make_data()


@pytest.fixture(scope="module")
def model(data) -> lmm.LMMVAE:
    """Two crossed factors, ten epochs."""
    return fitted(terms(), data, epochs=10)[0]


class TestData:
    def test_dataset_equals_arrays(self, data):
        """Unshuffled arrays and a dataset of the same batches give the same training."""
        results = []
        for make in (dict, batches):
            model = small_model(one_term())
            model.adapt(make(data))
            model.compile("adam")
            options = {"batch_size": 60, "shuffle": False} if make is dict else {}
            history = model.fit(make(data), epochs=2, verbose=0, **options).history
            results.append([*map(history.get, sorted(HISTORY)), model.reconstruct(data)])
        for arrays, dataset in zip(*results, strict=True):
            np.testing.assert_allclose(arrays, dataset, rtol=1e-4)

    def test_dataset_without_end(self, data):
        """`steps_per_epoch` cuts an endless dataset: two passes of four steps."""
        model = small_model(one_term())
        model.adapt(data)
        model.compile("adam")
        history = model.fit(batches(data).repeat(), epochs=2, steps_per_epoch=4, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        assert int(model.optimizer.iterations) == 8

    def test_validation_with_unseen_levels(self, data):
        """Unseen and null levels in validation data are new rows like others."""
        unseen = {**data, "store": data["store"] + 6}
        model, _ = fitted(one_term(), data)
        options = {"epochs": 2, "batch_size": 60, "verbose": 0}
        for validation in (unseen, (unseen,), batches(unseen)):
            history = model.fit(data, validation_data=validation, **options).history
            assert set(history) == HISTORY | {f"val_{name}" for name in HISTORY}
            assert np.isfinite([history[name] for name in history]).all()
            assert history["val_effects_kl"] == [0.0, 0.0]

    def test_validation_weights(self, data):
        """Validation rows of weight 0 do not count."""
        weights = np.repeat([1.0, 0.0], 120)
        wild = {**data, "x": np.where(weights[:, None] > 0, data["x"], 1e6)}
        _, history = fitted(one_term(), data, validation_data=(wild, None, weights))
        assert max(history["val_mse"]) < 100.0

    def test_validation_split(self, data):
        """The last rows are held out: their levels' effects never see them."""
        wild = {**data, "x": data["x"].copy()}
        wild["x"][192:] += 1000.0
        model = small_model(one_term())
        model.adapt(data)
        model.compile("adam")
        options = {"validation_split": 0.2, "batch_size": 48, "verbose": 0}
        history = model.fit(wild, **options).history
        assert history["val_mse"][-1] > 1e5 > history["mse"][-1]
        assert np.abs(model.random_effects_table("store")).max(axis=None) < 100.0

    def test_zero_weights_leave_rows_out(self, data):
        """`sample_weight` 0: neither networks nor effects see the row."""
        weights = np.repeat([1.0, 0.0], 120)
        wild = {**data, "x": np.where(weights[:, None] > 0, data["x"], data["x"] + 1000.0)}
        model = small_model(one_term())
        model.adapt(data)
        model.compile("adam")
        history = model.fit(wild, sample_weight=weights, batch_size=60, epochs=2, verbose=0)
        assert history.history["mse"][-1] < 100.0
        assert np.abs(model.random_effects_table("store")).max(axis=None) < 100.0

    def test_missing_cells(self, data):
        """NaN cells are no error anywhere; their reconstructions are finite."""
        missing = {**data, "x": data["x"].copy()}
        missing["x"][np.random.default_rng(0).uniform(size=(240, 3)) < 0.2] = np.nan
        missing["x"][:, 0] = data["x"][:, 0]
        model, history = fitted(terms(), missing, validation_data=missing)
        assert np.isfinite([history[name] for name in history]).all()
        assert np.isfinite(model.reconstruct(missing)).all()
        assert np.isfinite(model.log_likelihood(missing)).all()
        # Cells that are not there do not count for the likelihood: one cell left, one density.
        only = {**data, "x": np.where(np.arange(3) == 0, data["x"], np.nan)}
        variance = model.variance_given_latent(model.encode_data(only))[:, 0]
        scale = np.sqrt(variance) * np.asarray(model.feature_scale)[0]
        highest = -np.log(math.sqrt(2 * math.pi) * scale)
        found = model.log_likelihood(only)
        assert (found < highest + 1e-4).all()
        assert found.mean() > highest.mean() - 1.5  # two more cells would cost more


class TestModes:
    def test_history_and_progress(self, data):
        """Ten epochs lower the loss; the history has the ELBO's parts and their sum."""
        _, history = fitted(terms(), data, epochs=10)
        assert set(history) == HISTORY
        assert history["loss"][-1] < history["loss"][0]
        assert history["mse"][-1] < history["mse"][0]
        parts = [history[name] for name in ("reconstruction_loss", "latent_kl", "effects_kl")]
        np.testing.assert_allclose(history["loss"], np.sum(parts, axis=0), rtol=1e-5)

    def test_seed_fixes_everything(self, data):
        """One seed, one result, to the bit; another seed, another one."""
        models = [fitted(terms(), data, seed=seed, compiled={})[0] for seed in (3, 3, 4)]
        results = [model.reconstruct(data) for model in models]
        np.testing.assert_array_equal(results[0], results[1])
        assert np.abs(results[0] - results[2]).max() > 1e-3

    def test_compiled_equals_eager(self, data):
        """XLA, graph and eager steps: the same training up to their random draws."""
        losses = {}
        modes = {"xla": {"jit_compile": True}, "eager": {"run_eagerly": True}, "graph": {}}
        for mode, compiled in modes.items():
            given = [lmm.RandomSlopes("store", time="t"), lmm.RandomIntercept("city")]
            model, history = fitted(given, data, compiled=compiled)
            losses[mode] = history["loss"]
            prediction = model.predict(data, verbose=0)
            np.testing.assert_allclose(prediction, model.reconstruct(data), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(losses["xla"], losses["graph"], rtol=0.05)
        np.testing.assert_allclose(losses["eager"], losses["graph"], rtol=0.05)

    @pytest.mark.parametrize("posterior", ["conjugate", "amortized"])
    def test_half_precision(self, data, posterior):
        """ "mixed_bfloat16": dense layers compute in bfloat16, effects and variances in float32."""
        given = [lmm.RandomIntercept("store"), lmm.SpatialEffect(("east", "north"))]
        model, history = fitted(
            given, data, dtype="mixed_bfloat16", posterior=posterior, compiled={}
        )
        assert model.networks.encoder.trunk.layers[0].compute_dtype == "bfloat16"
        assert {v.dtype for v in model.variables} <= {"float32", "int64", "uint32", "int32"}
        assert np.isfinite(history["loss"]).all()
        prediction = model.predict(data, verbose=0)
        assert prediction.dtype == np.float32
        # 8 bits of mantissa in the networks, whose part of a row is about 1 to 5.
        np.testing.assert_allclose(prediction, model.reconstruct(data), atol=0.1)
        effects = model.predictive(data).contributions["store"]
        table = model.random_effects_table("store").to_numpy()
        np.testing.assert_allclose(effects, table[data["store"]], rtol=1e-5, atol=1e-6)

    def test_loss_scaling(self, data):
        """The optimizer of "mixed_float16" scales the loss; steps are those of a plain one."""
        compiled = {"auto_scale_loss": True}
        model, history = fitted(one_term(), data, dtype="mixed_float16", compiled=compiled)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert np.isfinite(history["loss"]).all()
        _, plain = fitted(one_term(), data)
        np.testing.assert_allclose(history["loss"], plain["loss"], rtol=0.05)


class TestCallbacks:
    def test_early_stopping_restores_the_best_weights(self, data):
        """The networks are those of the best epoch; the effects are solved given these."""

        class Spoil(keras.callbacks.Callback):
            """Makes every epoch after the second one worse than all before."""

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                if epoch == 1:
                    self.best = self.model.networks.decoder.get_weights()
                if epoch >= 1:
                    noise = [w + 3.0 for w in self.model.networks.decoder.get_weights()]
                    self.model.networks.decoder.set_weights(noise)

        spoil = Spoil()
        stop = keras.callbacks.EarlyStopping(
            monitor="val_loss", patience=2, restore_best_weights=True
        )
        model, history = fitted(
            one_term(), data, epochs=20, callbacks=[spoil, stop], validation_data=data
        )
        assert len(history["loss"]) == 3
        for actual, best in zip(model.networks.decoder.get_weights(), spoil.best, strict=True):
            np.testing.assert_array_equal(actual, best)
        assert lmm.metrics.mse(data["x"], model.reconstruct(data)) < 2 * history["mse"][0]

    def test_checkpoints_can_be_loaded(self, data, tmp_path):
        """`ModelCheckpoint`: whole models and weights, usable without further training."""
        whole = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
        weights = keras.callbacks.ModelCheckpoint(
            tmp_path / "last.weights.h5", save_weights_only=True
        )
        model, _ = fitted(one_term(), data, callbacks=[whole, weights])
        first = keras.saving.load_model(tmp_path / "1.keras")
        assert np.isfinite(first.reconstruct(data)).all()
        last = keras.saving.load_model(tmp_path / "2.keras")
        for name, weight in zip(
            model.networks.decoder.weights, last.networks.decoder.weights, strict=True
        ):
            np.testing.assert_array_equal(name, weight)
        again = small_model(one_term())
        again.adapt(data)
        again.load_weights(tmp_path / "last.weights.h5")
        np.testing.assert_allclose(again.reconstruct(data), last.reconstruct(data), rtol=1e-6)

    def test_backup_and_restore_resumes(self, data, tmp_path):
        """An interrupted fit goes on where it stopped: epochs, optimizer, effects, variances."""

        class Interrupt(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                if epoch == 2:
                    raise KeyboardInterrupt

        def backup() -> keras.callbacks.Callback:
            return keras.callbacks.BackupAndRestore(tmp_path / "backup")

        model = small_model(one_term())
        model.adapt(data)
        model.compile("adam")
        options = {"batch_size": 60, "verbose": 0}
        with pytest.raises(KeyboardInterrupt):
            model.fit(data, epochs=4, callbacks=[backup(), Interrupt()], **options)
        interrupted = model.variance_components()
        assert np.isfinite(model.reconstruct(data)).all()

        class Look(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                if epoch == 2:
                    self.components = self.model.variance_components()
                    self.iterations = int(self.model.optimizer.iterations)

        again, look = small_model(one_term()), Look()
        again.adapt(data)
        again.compile("adam")
        history = again.fit(data, epochs=4, callbacks=[backup(), look], **options)
        assert history.epoch == [2, 3]
        assert look.iterations == 8
        np.testing.assert_array_equal(look.components, interrupted)
        assert int(again.optimizer.iterations) == 16


class TestPlain:
    def test_no_random_effects_is_a_plain_vae(self, data):
        """Without terms: it trains, and its effects are nothing."""
        model, history = fitted([], data, epochs=10)
        assert history["loss"][-1] < history["loss"][0]
        assert history["effects_kl"] == [0.0] * 10
        assert model.variance_components().index.tolist() == ["noise"]
        np.testing.assert_array_equal(model.reconstruct(data), model.reconstruct(data, False))
        assert model.predictive(data).contributions == {}

    @pytest.mark.parametrize("training", [False, True])
    def test_zero_effects_are_no_effects(self, data, training):
        """Terms whose tables and variances are 0 leave every part of the ELBO as it is."""
        plain, mixed = small_model([]), small_model(terms())
        for model in (plain, mixed):
            model.adapt(data)
            model.compile(keras.optimizers.SGD(0.0))
        mixed.networks.set_weights(plain.networks.get_weights())
        for effects in mixed.mixed_model.effects:
            effects.effect_variance.assign(np.full(3, 1e-12))
        parts = [rows_of_a_step(model, data, training) for model in (plain, mixed)]
        for name in sorted(HISTORY):
            np.testing.assert_allclose(parts[1][name], parts[0][name], rtol=1e-5, atol=1e-5)


class TestAmortized:
    """The paper's inference."""

    @pytest.mark.parametrize("reduction", ["level", "row"])
    @pytest.mark.parametrize("shared", [False, True])
    def test_fits_and_predicts(self, data, reduction, shared):
        """Both reductions of the KL, with one trunk and with two."""
        model, history = fitted(
            terms(), data, posterior="amortized", effects_kl_reduction=reduction,
            shared_encoder=shared, epochs=5,
        )  # fmt: skip
        assert np.isfinite([history[name] for name in history]).all()
        assert history["loss"][-1] < history["loss"][0]
        assert min(history["effects_kl"]) > 0
        np.testing.assert_allclose(
            model.predict(data, verbose=0), model.reconstruct(data), rtol=1e-4, atol=1e-4
        )
        num_dense = len([w for w in model.trainable_weights if "kernel" in w.name])
        assert num_dense == (8 if not shared else 7)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: [lmm.RandomSlopes("store", time="t", degree=2)],
            lambda: [lmm.SpatialEffect(("east", "north"), length_scale=1.0)],
            lambda: [lmm.SpatialEffect(("east", "north")), lmm.RandomIntercept("store")],
        ],
    )
    def test_other_terms(self, data, make):
        """Slopes and surfaces, unseen levels and places."""
        model, history = fitted(make(), data, posterior="amortized")
        assert np.isfinite(history["loss"]).all()
        elsewhere = {**data, "store": data["store"] + 100, "east": data["east"] + 0.5}
        assert np.isfinite(model.reconstruct(elsewhere)).all()

    def test_table_is_the_mean_of_the_codes(self, data):
        """B of a level is the mean over all its rows of the encoder's code means."""
        model, _ = fitted(one_term(), data, posterior="amortized")
        ((codes, _),) = model.effects_fit.codes(model.encode_data(data))
        expected = segment_mean(codes.numpy()[:, 0], data["store"], 12) * np.asarray(
            model.feature_scale
        )
        table = model.random_effects_table("store")
        np.testing.assert_allclose(table, expected, rtol=1e-4, atol=1e-5)
        unseen = model.predictive({**data, "store": data["store"] + 100})
        np.testing.assert_array_equal(unseen.contributions["store"], 0.0)

    def test_kl_by_row_and_by_level(self, data):
        """By row: KL of the row's code; by level: the same over the level's number of rows."""
        by_row, _ = fitted(
            one_term(), data, posterior="amortized", effects_kl_reduction="row", epochs=1
        )
        rows = by_row.encode_data(data)
        ((mean, log_var),) = by_row.effects_fit.codes(rows)
        kl = tfd.kl_divergence(tfd.Normal(mean, tf.exp(log_var / 2)), tfd.Normal(0.0, 1.0))
        expected = np.sum(kl, axis=(1, 2))
        actual = by_row.effects_fit.training_effects(rows).kl
        np.testing.assert_allclose(actual, expected, rtol=1e-4)
        by_level = small_model(one_term(), posterior="amortized")
        by_level.adapt(data)
        by_level.effects_fit.begin(Pass(by_level.encode_data(data)), is_fitted=False)
        by_level.effects_encoder.set_weights(by_row.effects_encoder.get_weights())
        expected = expected / np.bincount(data["store"])[data["store"]]
        actual = by_level.effects_fit.training_effects(rows).kl
        np.testing.assert_allclose(actual, expected, rtol=1e-4)


class TestElbo:
    def test_latent_kl(self):
        """KL(q(u) || p(u)) is that of the dense multivariate normals; 0 where q = p."""
        rng = np.random.default_rng(0)
        mean, log_var = rng.normal(size=(2, 5, 3)).astype(np.float32)
        actual = latent_kl(tf.constant(mean), tf.constant(log_var))
        dense = tfd.MultivariateNormalDiag(mean, np.exp(log_var / 2))
        prior = tfd.MultivariateNormalDiag(np.zeros(3, np.float32), np.ones(3, np.float32))
        np.testing.assert_allclose(actual, tfd.kl_divergence(dense, prior), rtol=1e-5)
        expected = [
            normal_kl(m, np.diag(np.exp(v)), np.eye(3)) for m, v in zip(mean, log_var, strict=True)
        ]
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        np.testing.assert_array_equal(latent_kl(tf.zeros((2, 3)), tf.zeros((2, 3))), 0.0)

    def test_evaluate_is_the_mean_of_the_parts(self, model, data):
        """`evaluate`: loss = reconstruction_loss + latent_kl; "mse" is that of `reconstruct`."""
        result = model.evaluate(data, verbose=0, return_dict=True)
        assert result["loss"] == pytest.approx(result["reconstruction_loss"] + result["latent_kl"])
        assert result["mse"] == pytest.approx(
            lmm.metrics.mse(data["x"], model.reconstruct(data)), rel=1e-4
        )
        dataset = model.evaluate(batches(data), verbose=0, return_dict=True)
        for name in result:
            assert dataset[name] == pytest.approx(result[name], rel=1e-4, abs=1e-6)
        weighted = model.evaluate(
            data, sample_weight=np.arange(240) < 120, verbose=0, return_dict=True
        )
        half = {name: column[:120] for name, column in data.items()}
        expected = model.evaluate(half, verbose=0, return_dict=True)
        for name in result:
            assert weighted[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)

    def test_evaluate_is_the_elbo(self, data):
        """With a linear decoder the expectation over q(u) is exact: as many draws give it."""
        decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(data["x"].shape[1])])
        model = small_model(one_term(), decoder=decoder, latent_dim=2)
        fit_briefly(model, data, 60)
        rows, draws = model.encode_data(data), 3_000
        seen, variance = model.infer(rows), model.variance_given_latent(rows)
        noise = np.random.default_rng(0).normal(size=(draws, *seen.latent_mean.shape))
        latent = seen.latent_mean + seen.latent_std * noise.astype(np.float32)
        decoded = tf.reshape(seen.decoded(tf.reshape(latent, (-1, 2))), (draws, *data["x"].shape))
        error = rows["x"] - seen.contribution - decoded
        squares = tf.square(error) / variance + tf.math.log(2 * np.pi * variance)
        density = -0.5 * tf.reduce_sum(squares, axis=2) - model.log_units(None)
        result = model.evaluate(data, verbose=0, return_dict=True)
        by_draw = tf.reduce_mean(density, axis=1).numpy()
        tolerance = 5 * by_draw.std() / np.sqrt(draws)
        assert result["reconstruction_loss"] == pytest.approx(-by_draw.mean(), abs=tolerance)
        assert tolerance < 0.02

    def test_cubature_is_exact_for_cubic_functions(self):
        """Its mean over a correlated Gaussian is that of very many draws."""
        root = np.array([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]], np.float32)
        posterior = tfd.MultivariateNormalTriL(np.array([[0.4, -1.0, 2.0]], np.float32), root)

        def cubic(latent: tf.Tensor) -> tf.Tensor:
            a, b, c = tf.unstack(latent, axis=-1)
            return a**3 + 2.0 * a * b * c - b**2 + c

        draws = posterior.sample(400_000, seed=1)
        found = cubature_mean(cubic, posterior).numpy()[0]
        assert found == pytest.approx(float(tf.reduce_mean(cubic(draws))), abs=0.08)

    def test_weights_of_the_kl_terms(self, data):
        """loss = reconstruction_loss + kl_weight * latent_kl + effects_kl_weight * effects_kl."""
        model = small_model(one_term(), kl_weight=0.25, effects_kl_weight=3.0)
        model.adapt(data)
        model.compile("adam")
        history = model.fit(data, epochs=1, batch_size=60, verbose=0).history
        expected = (
            history["reconstruction_loss"][0]
            + 0.25 * history["latent_kl"][0]
            + 3.0 * history["effects_kl"][0]
        )
        assert history["loss"][0] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("given", ["equal", "precision", "fixed"])
    def test_feature_weights(self, data, given):
        """The training likelihood has the mean noise variance, each feature's own, or the given.

        log Normal(error; 0, variance) per row, in the features' units.
        """
        options = {"noise_variance": 0.5} if given == "fixed" else {"feature_weights": given}
        model = small_model(one_term(), **options)
        model.adapt(data)
        scale = np.asarray(model.feature_scale)
        if given == "fixed":
            np.testing.assert_allclose(model.noise_variance, 0.5 / scale**2, rtol=1e-5)
        else:
            model.noise_variance.assign([0.1, 0.3, 0.8])
        own = np.asarray(model.noise_variance)
        variance = np.full(3, 0.4, np.float32) if given == "equal" else own
        model.compile(keras.optimizers.SGD(0.0))
        for training in (True, False):
            parts = rows_of_a_step(model, data, training)
            if not training:
                variance = own + 1.0  # an effect variance of 1: the level has no rows yet
            density = tfd.Normal(0.0, scale * np.sqrt(variance)).log_prob(parts["error"] * scale)
            if not training:  # what is not known of the latent counts, too
                seen = model.infer(take_rows(model.encode_data(data), 0, 12))
                density -= 0.5 * seen.latent_variance / variance
            np.testing.assert_allclose(
                -parts["reconstruction_loss"], np.sum(density, axis=1), rtol=1e-4
            )

    def test_effects_kl_of_all_rows(self, model, data):
        """Summed over the training rows: KL(q || p) of every level of both folds and terms."""
        rows = with_folds(model.encode_data(data))
        actual = np.sum(model.effects_fit.training_effects(rows).kl)
        noise, expected = np.asarray(model.noise_variance), 0.0
        for term, effects in model.mixed_model.pairs():
            counts = np.zeros((2, term.num_levels))
            np.add.at(counts, (rows[FOLD].numpy(), rows[EFFECTS][term.label]["codes"].numpy()), 1)
            variance = np.asarray(effects.effect_variance)
            for fold, level in np.argwhere(counts):
                for f in range(3):
                    covariance = 1 / (counts[fold, level] / noise[f] + 1 / variance[f])
                    mean = effects.folds.effects[fold, level, :, f].numpy()
                    expected += normal_kl(mean, np.eye(1) * covariance, np.eye(1) * variance[f])
        assert actual == pytest.approx(expected, rel=1e-3)

    def test_tempered_effects(self, data):
        """`effects_kl_weight` w: effects are shrunken as if the noise variance were w-fold."""
        model = known_model(one_term(), data, 1.0, {"store": 2.0}, effects_kl_weight=5.0)
        model.update_random_effects(data, keep_history=False)
        dense = DenseTerm.of_levels(data["store"], 2.0)
        mean, _ = dense_blup(data["x"] - data["x"].mean(axis=0), [dense], 5.0)
        np.testing.assert_allclose(model.random_effects_table("store"), mean, rtol=1e-4, atol=1e-4)


class TestLikelihood:
    def test_constant_decoder_is_exact(self, data):
        """f = 0 and q(u) = p(u): the bound is the density of the row given the effects.

        In the features' units; known levels add their posterior variance to the noise.
        """
        model = known_model(one_term(), data, 0.5, {"store": 2.0})
        for head in (model.networks.encoder.mean_head, model.networks.encoder.log_var_head):
            head.set_weights([np.zeros_like(weight) for weight in head.get_weights()])
        model.update_random_effects(data, keep_history=False)
        centred = data["x"] - data["x"].mean(axis=0)
        dense = DenseTerm.of_levels(data["store"], 2.0)
        mean, covariance = dense_blup(centred, [dense], 0.5)
        variance = 0.5 + np.diagonal(covariance, axis1=1, axis2=2).T[data["store"]]
        error = centred - mean[data["store"]]
        expected = np.sum(-0.5 * (error**2 / variance + np.log(2 * np.pi * variance)), axis=1)
        np.testing.assert_allclose(model.log_likelihood(data), expected, rtol=1e-4)
        np.testing.assert_allclose(model.log_likelihood(data, num_samples=3), expected, rtol=1e-4)

    @pytest.mark.parametrize("latent_dim", [1, 2])
    def test_linear_gaussian_is_exact(self, data, latent_dim):
        """A linear decoder with its exact posterior: the bound is tight, probabilistic PCA.

        log p(x) = log Normal(x; mean, W W' + noise)
        """
        linear = keras.Sequential([keras.Input((latent_dim,)), keras.layers.Dense(3)])
        identity = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
        model = small_model([], latent_dim=latent_dim, decoder=linear, encoder=identity)
        model.adapt(data)
        noise = np.array([0.3, 0.1, 0.4])
        weight = np.random.default_rng(0).normal(size=(latent_dim, 3)) * 0.6
        linear.layers[-1].set_weights([weight, np.zeros(3)])
        precision = np.eye(latent_dim) + (weight / noise) @ weight.T
        # q(u) is diagonal: exact where W' inv(noise) W is.
        values, rotation = np.linalg.eigh(precision)
        weight = rotation.T @ weight
        linear.layers[-1].set_weights([weight, np.zeros(3)])
        model.noise_variance.assign(noise)
        encoder = model.networks.encoder
        encoder.mean_head.set_weights([(weight / noise).T / values, np.zeros(latent_dim)])
        encoder.log_var_head.set_weights([np.zeros((3, latent_dim)), -np.log(values)])
        model.fitted.assign(1.0)
        scale = np.diag(np.asarray(model.feature_scale, np.float64))
        covariance = scale @ (weight.T @ weight + np.diag(noise)) @ scale
        centred = data["x"] - data["x"].mean(axis=0)
        expected = [log_density(row, covariance) for row in centred]
        np.testing.assert_allclose(model.log_likelihood(data), expected, rtol=1e-4, atol=1e-3)
        sampled = model.log_likelihood(data, num_samples=4)
        np.testing.assert_allclose(sampled, expected, rtol=1e-4, atol=1e-3)

    def test_importance_weights_tighten_the_bound(self, model, data, monkeypatch):
        """Averaged over rows and draws: ELBO <= importance-weighted bound, which grows with the
        samples; the bound without draws is the ELBO up to its quadrature, 0.1 nats a row.

        One sample is the ELBO. Means over 20 seeds have standard errors of about 0.003.
        """
        means = {}
        for samples in (1, 5, 50):
            values = []
            for seed in range(20):
                monkeypatch.setattr(model, "seed", seed)
                values.append(model.log_likelihood(data, num_samples=samples).mean())
            means[samples] = np.mean(values)
        assert means[1] < means[5] < means[50] + 0.002
        assert model.log_likelihood(data).mean() == pytest.approx(means[1], abs=0.1)

    def test_samples_are_fixed_by_the_seed(self, model, data):
        """Two calls give the same numbers."""
        one, other = (model.log_likelihood(data, num_samples=3) for _ in range(2))
        np.testing.assert_array_equal(one, other)


class TestPrediction:
    def test_views_agree(self, model, data):
        """encode, decode, reconstruct, predict, predictive and the call are one model."""
        reconstruction = model.reconstruct(data)
        prediction = model.predictive(data)
        latent = model.encode(data)
        assert latent.shape == (240, 1)
        close = {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(model.predict(data, verbose=0), reconstruction, **close)
        np.testing.assert_allclose(model.predict(batches(data), verbose=0), reconstruction, **close)
        np.testing.assert_allclose(model(data), reconstruction, **close)
        np.testing.assert_allclose(model.reconstruct(batches(data)), reconstruction, **close)
        np.testing.assert_allclose(prediction.mean, reconstruction, **close)
        np.testing.assert_allclose(model.decode(latent), prediction.population, **close)
        population = model.reconstruct(data, include_effects=False)
        np.testing.assert_allclose(population, prediction.population, **close)
        parts = prediction.contributions
        np.testing.assert_allclose(
            population + parts["store"] + parts["city"], reconstruction, **close
        )
        table = model.random_effects_table("store").to_numpy()[data["store"]]
        np.testing.assert_allclose(parts["store"], table, **close)

    def test_rows_do_not_see_each_other(self, model, data):
        """A prediction is the same alone and among others, in any order."""
        order = np.random.default_rng(0).permutation(240)[:7]
        some = {name: column[order] for name, column in data.items()}
        np.testing.assert_allclose(
            model.reconstruct(some), model.reconstruct(data)[order], rtol=1e-4, atol=1e-4
        )

    def test_standard_deviation(self, data):
        """Noise, and what is not known of the effects: posterior variance of a known level,
        prior variance of an unseen one, nothing for a null key."""
        noise, effect = np.array([0.5, 1.0, 2.0]), np.array([2.0, 0.3, 1.0])
        named = {**data, "store": data["store"].astype(str)}
        model = known_model(one_term(), named, noise, {"store": effect})
        model.update_random_effects(named, keep_history=False)
        dense = DenseTerm.of_levels(named["store"], effect)
        _, covariance = dense_blup(data["x"], [dense], noise)
        known = np.diagonal(covariance, axis1=1, axis2=2)[:, 4]
        key = str(np.unique(named["store"])[4])
        rows = {"x": data["x"][:4], "store": np.array([key, "unseen", None, ""], object)}
        expected = np.sqrt(noise + np.stack([known, effect, np.zeros(3), np.zeros(3)]))
        prediction = model.predictive(rows)
        np.testing.assert_allclose(prediction.standard_deviation, expected, rtol=1e-4)
        np.testing.assert_array_equal(prediction.contributions["store"][1:], 0.0)

    def test_unseen_level_of_slopes(self, data):
        """The prior variance of an unseen subject grows with the time as phi' Psi phi."""
        psi = np.array([[1.0, -0.2], [-0.2, 0.5]])
        model = known_model(
            [lmm.RandomSlopes("store", time="t")], data, 0.5, {"store": 2.0}, {"store": psi}
        )
        t = np.array([0.0, 1.0, 3.0])
        rows = {"x": data["x"][:3], "store": np.full(3, 999), "t": t}
        phi = np.stack([np.ones(3), t], axis=1)
        expected = np.sqrt(0.5 + 2.0 * np.einsum("ni,ij,nj->n", phi, psi, phi))
        actual = model.predictive(rows).standard_deviation
        np.testing.assert_allclose(actual, np.tile(expected[:, None], 3), rtol=1e-4)

    def test_coverage_of_simulated_rows(self):
        """95 % of new rows lie within 1.96 predictive standard deviations, known levels or not.

        2,400 cells, of which those of one level share its error; bounds 95 +- 4 %.
        """
        rng = np.random.default_rng(0)
        store = rng.integers(0, 60, 1200)
        x = rng.normal(size=(80, 4))[store] + rng.normal(size=(1200, 4))
        train = {"x": x[:600], "store": store[:600]}
        model = small_model(one_term(), decoder=constant_decoder(4))
        model.adapt(train)
        model.compile("adam")
        model.fit(train, batch_size=600, verbose=0)
        prediction = model.predictive({"x": x[600:], "store": store[600:]})
        inside = np.abs(x[600:] - prediction.mean) < 1.96 * prediction.standard_deviation
        assert inside.mean() == pytest.approx(0.95, abs=0.04)
        fresh = rng.normal(size=(600, 4)) + rng.normal(size=(600, 4))
        prediction = model.predictive({"x": fresh, "store": np.arange(1000, 1600)})
        inside = np.abs(fresh - prediction.mean) < 1.96 * prediction.standard_deviation
        assert inside.mean() == pytest.approx(0.95, abs=0.04)


def test_amortized_surface_answers():
    """An amortized posterior has no posterior variances, of surfaces neither."""
    rng = np.random.default_rng(0)
    rows = {"x": rng.normal(size=(300, 4)), "lon": rng.uniform(size=300)}
    rows |= {"lat": rng.uniform(size=300)}
    surface = lmm.SpatialEffect(("lon", "lat"), num_inducing=20)
    model = lmm.LMMVAE(1, [surface], hidden_units=(8,), posterior="amortized", seed=0)
    model.adapt(rows)
    model.compile("adam")
    model.fit(rows, epochs=1, batch_size=100, verbose=0)
    assert np.isfinite(model.log_likelihood(rows)).all()
    np.testing.assert_array_equal(model.term_effects("lon_lat", rows)[1], 0.0)


def test_length_scale_is_learned_again_after_the_networks():
    """The end of a fit finds the length scale of what the networks leave, wherever it was."""
    rng = np.random.default_rng(1)
    places = rng.uniform(size=(300, 2))
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    root = np.linalg.cholesky(np.exp(-0.5 * (distance / 0.2) ** 2) + 1e-6 * np.eye(300))
    x = root @ rng.normal(size=(300, 6)) + rng.normal(size=(300, 1)) * np.linspace(2, 3, 6)
    rows = {"x": x + 0.3 * rng.normal(size=x.shape), "lon": places[:, 0], "lat": places[:, 1]}
    surface = lmm.SpatialEffect(("lon", "lat"), num_inducing=64, name="place")
    model = small_model([surface], activation="linear")
    model.adapt(rows)
    (term,) = model.random_effects
    model.compile("adam", run_eagerly=True)
    model.fit(rows, epochs=2, batch_size=100, verbose=0)
    before, error = term.fitted_length_scale, model.reconstruct(rows) - x
    assert before == pytest.approx(0.2, rel=0.25)
    term.set_scaled_length_scale(3.0)
    model.fit(rows, epochs=3, initial_epoch=2, batch_size=100, verbose=0)
    assert term.fitted_length_scale == pytest.approx(before, rel=0.1)
    assert np.square(model.reconstruct(rows) - x).mean() < 1.1 * np.square(error).mean()
