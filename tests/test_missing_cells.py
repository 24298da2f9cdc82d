"""Cells may be missing in any pattern: variances, intervals and updates are right by feature."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import DenseTerm, codes_of, constant_decoder, dense_blup, known_model, small_model

import keras_lmmvae as lmm
from keras_lmmvae.rows import FOLD, Pass, with_folds

NOISE = np.array([0.5, 1.0, 2.0])
VARIANCE = np.array([1.5, 0.4, 3.0])
CLOSE = {"rtol": 1e-3, "atol": 1e-4}

Data = dict[str, np.ndarray]


def make_data(seed: int = 0, n: int = 240) -> Data:
    """Rows of twelve stores. Cells are missing by chance, by store, and in whole features."""
    rng = np.random.default_rng(seed)
    store = rng.integers(0, 12, n)
    x = rng.normal(size=(12, 3))[store] * np.sqrt(VARIANCE) + rng.normal(size=(n, 3))
    x[:, 0] = np.where(rng.uniform(size=n) < 0.6, np.nan, x[:, 0])
    x[:, 1] = np.where(store % 4 == 0, np.nan, x[:, 1])
    return {"x": x, "store": store, "t": rng.uniform(-2.0, 2.0, n)}


def complete(data: Data) -> Data:
    return {**data, "x": np.where(np.isnan(data["x"]), 0.0, data["x"])}


def centred(data: Data) -> np.ndarray:
    return data["x"] - np.nanmean(data["x"], axis=0)


def known(data: Data, **options: Any) -> lmm.LMMVAE:
    terms = [lmm.RandomIntercept("store")]
    return known_model(terms, data, NOISE, {"store": VARIANCE}, **options)


def panel(share: float, levels: int = 300, rows: int = 10, num_features: int = 10) -> Data:
    """Levels of variance 1 with noise of variance 1; cells are missing in half of the features."""
    rng = np.random.default_rng(0)
    store = np.repeat(np.arange(levels), rows)
    effects = rng.normal(size=(levels, num_features))
    x = effects[store] + rng.normal(size=(len(store), num_features))
    missing = rng.uniform(size=x.shape) < share
    missing[:, num_features // 2 :] = False
    return {"x": np.where(missing, np.nan, x), "store": store, "effects": effects}


class TestDesign:
    def test_shares_of_cells_are_those_of_the_rows(self):
        """Sums of weights over a level's observed cells, over the mean of its features."""
        data = make_data()
        weights = np.random.default_rng(1).choice([0.0, 1.0, 2.5], len(data["x"]))
        model = known(data)
        rows = with_folds({**model.encode_data(data), "weight": weights.astype(np.float32)})
        model.mixed_model.equations(Pass(rows))
        effects, fold = model.mixed_model.of("store"), rows[FOLD].numpy()
        cells = np.isfinite(data["x"]) * weights[:, None]
        for table, chosen in (
            (effects.folds.cell_share[0], fold == 0),
            (effects.folds.cell_share[1], fold == 1),
            (effects.table.cell_share, fold >= 0),
        ):
            sums = np.stack([cells[chosen & (data["store"] == k)].sum(axis=0) for k in range(12)])
            np.testing.assert_allclose(table, sums / sums.mean(axis=1, keepdims=True), rtol=1e-5)

    def test_slopes_by_the_traces(self):
        """With more basis functions the share is that of the traces of the Gram matrices."""
        data = make_data()
        model = small_model([lmm.RandomSlopes("store", time="t")], decoder=constant_decoder(3))
        model.adapt(data)
        rows = with_folds(model.encode_data(data))
        model.mixed_model.equations(Pass(rows))
        (term,) = model.random_effects
        basis = term.basis_of(rows["_effects"]["store"]).numpy()
        cells = np.isfinite(data["x"]) * np.square(basis).sum(axis=1, keepdims=True)
        sums = np.stack([cells[data["store"] == level].sum(axis=0) for level in range(12)])
        share = model.mixed_model.of("store").table.cell_share
        trace = np.array([
            (np.isfinite(data["x"]).mean(axis=1) * np.square(basis).sum(axis=1))[
                data["store"] == level
            ].sum()
            for level in range(12)
        ])  # fmt: skip
        np.testing.assert_allclose(share, sums / trace[:, None], rtol=1e-4)

    def test_complete_rows_keep_no_shares(self):
        """Where no cell is missing the tables are as small as before, for datasets too."""
        data = complete(make_data())
        del data["t"]
        for given in (data, tf.data.Dataset.from_tensor_slices(data).batch(60)):
            model = small_model([lmm.RandomIntercept("store")])
            model.adapt(given)
            model.compile("adam")
            model.fit(given, epochs=0, verbose=0)
            assert not model.mixed_model.has_missing_cells
            assert not hasattr(model.mixed_model.of("store").table, "cell_share")


class TestPosterior:
    def test_deviations_are_those_of_the_dense_posterior(self):
        """Means and standard deviations of an intercept, also of levels without any cell."""
        data = make_data()
        model = known(data)
        model.update_random_effects(data, keep_history=False)
        mean, covariance = dense_blup(
            centred(data), [DenseTerm.of_levels(data["store"], VARIANCE)], NOISE
        )
        np.testing.assert_allclose(model.random_effects_table("store"), mean, **CLOSE)
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
        found = model.random_effects_table("store", std=True).to_numpy()
        np.testing.assert_allclose(found, deviation, **CLOSE)
        without = np.flatnonzero(codes_of(data["store"])[0][np.isfinite(data["x"][:, 1])])
        assert len(without) < len(data["x"])
        np.testing.assert_allclose(found[0, 1], np.sqrt(VARIANCE[1]), rtol=1e-3)

    def test_old_and_new_rows_are_all_rows(self):
        """An update with further rows is the posterior given all of them."""
        data = make_data()
        first, second = (
            {k: v[part] for k, v in data.items()} for part in (np.s_[:150], np.s_[150:])
        )
        model, whole = known(data), known(data)
        model.update_random_effects(first, keep_history=False)
        model.update_random_effects(second)
        whole.update_random_effects(data, keep_history=False)
        for std in (False, True):
            np.testing.assert_allclose(
                model.random_effects_table("store", std=std),
                whole.random_effects_table("store", std=std),
                **CLOSE,
            )

    def test_known_surface_is_conditioned_by_feature(self):
        """`condition` on further rows of a surface starts at what each feature's cells told."""
        rng = np.random.default_rng(3)
        place = rng.integers(0, 9, 120)
        data = {"x": rng.normal(size=(120, 3)), "east": place % 3 * 1.0, "north": place // 3 * 1.0}
        data["x"][:, 0] = np.where(rng.uniform(size=120) < 0.5, np.nan, data["x"][:, 0])
        terms = [lmm.SpatialEffect(("east", "north"), length_scale=1.0)]
        model = known_model(terms, data, NOISE, {"east_north": VARIANCE})
        model.update_random_effects(data, keep_history=False)
        row = {name: values[:1] for name, values in data.items()}
        alone = {**row, "x": np.full((1, 3), np.nan)}
        found = model.condition(alone, on="east_north")
        mean, deviation = model.term_effects("east_north", row)
        np.testing.assert_allclose(found.effects, mean, **CLOSE)
        np.testing.assert_allclose(found.standard_deviation, deviation, rtol=0.01)


class TestVariances:
    @pytest.mark.parametrize(("share", "within"), [(0.5, 0.15), (0.8, 0.15), (0.9, 0.25)])
    def test_variances_and_intervals_at_any_share(self, share, within):
        """The variance is found in both halves of the features, and 90 % intervals cover it."""
        data = panel(share)
        effects = data.pop("effects")
        model = small_model([lmm.RandomIntercept("store")], decoder=constant_decoder(10))
        model.adapt(data)
        model.compile("adam")
        model.fit(data, epochs=0, verbose=0)
        variance = model.variance_components().loc["store"].to_numpy()
        table = model.random_effects_table("store").to_numpy()
        deviation = model.random_effects_table("store", std=True).to_numpy()
        is_covered = np.abs(table - effects) < 1.645 * deviation
        for half in (np.s_[:5], np.s_[5:]):
            assert abs(variance[half].mean() - 1.0) < within
            assert 0.86 < is_covered[:, half].mean() < 0.94


class TestLater:
    """A model that was adapted to complete rows, and meets missing cells later."""

    def fitted(self, data: Data, adapted_to: Data) -> lmm.LMMVAE:
        model = small_model([lmm.RandomIntercept("store")], normalize=False)
        model.adapt(adapted_to)
        model.compile("adam")
        model.fit(data, epochs=2, batch_size=60, verbose=0)
        return model

    def test_fit_makes_the_shares(self):
        """The fit is the one of a model that knew before."""
        data = make_data()
        later, before = self.fitted(data, complete(data)), self.fitted(data, data)
        for std in (False, True):
            np.testing.assert_allclose(
                later.random_effects_table("store", std=std),
                before.random_effects_table("store", std=std),
                rtol=1e-4,
                atol=1e-5,
            )
        # A sum of terms of size 1 in float32 may be near 0.
        close = {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(later.predict(data, verbose=0), later.reconstruct(data), **close)

    def test_a_second_fit_takes_them(self):
        """Steps traced for complete rows are traced anew."""
        data = make_data()
        model = self.fitted(complete(data), complete(data))
        model.predict(data, verbose=0)
        model.fit(data, epochs=1, batch_size=60, verbose=0)
        assert model.mixed_model.has_missing_cells
        np.testing.assert_allclose(model.predict(data, verbose=0), model.reconstruct(data), 1e-4)

    def test_update_takes_them(self):
        """New rows may lack cells; more rows never make an effect less certain.

        Without a latent a feature learns nothing from rows that lack its cell.
        """
        data = make_data()
        model = self.fitted(complete(data), complete(data))
        model.update_random_effects(data)
        head = model.networks.decoder.head
        head.set_weights([np.zeros_like(weight) for weight in head.get_weights()])
        model.update_random_effects(complete(data), keep_history=False)
        before = model.random_effects_table("store", std=True)
        model.update_random_effects(data)
        after = model.random_effects_table("store", std=True)
        assert (after <= before * (1.0 + 1e-5)).all(axis=None)
        # Store 0 has no cell of feature 1 in the new rows.
        np.testing.assert_allclose(after.iloc[0, 1], before.iloc[0, 1], rtol=1e-4)


class TestPrediction:
    def test_variance_of_the_latent_of_a_linear_decoder(self):
        """Var(x[f]) = noise + sum{ W[k, f]^2 std_k^2 : k = 1 ... d }, exactly."""
        rng = np.random.default_rng(0)
        head = keras.layers.Dense(4)
        decoder = keras.Sequential([keras.Input((2,)), head])
        model = small_model([], latent_dim=2, decoder=decoder, noise_variance=0.3)
        data = {"x": rng.normal(size=(50, 4))}
        model.adapt(data)
        model.fitted.assign(1.0)
        seen = model.infer(model.encode_data(data))
        weights = model.networks.decode(np.eye(2, dtype=np.float32)).numpy()
        weights -= model.networks.decode(np.zeros((2, 2), np.float32)).numpy()
        expected = np.square(seen.latent_std.numpy()) @ np.square(weights)
        np.testing.assert_allclose(seen.latent_variance, expected, rtol=1e-4)
        scale = np.square(model.feature_scale)
        found = np.square(model.predictive(data).standard_deviation)
        np.testing.assert_allclose(found, 0.3 + expected * scale, rtol=1e-4)

    def test_curved_decoder_by_draws(self):
        """Where the decoder bends it is the second moment of draws, within a tenth."""
        rng = np.random.default_rng(0)
        keras.utils.set_random_seed(0)
        decoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(16, "tanh")])
        model = small_model([], latent_dim=3, decoder=decoder)
        data = {"x": rng.normal(size=(20, 4))}
        model.adapt(data)
        seen = model.infer(model.encode_data(data))
        draws = [
            seen.decoded(seen.latent_mean + 0.3 * rng.normal(size=(20, 3)).astype(np.float32))
            for _ in range(4000)
        ]
        narrow = dataclasses.replace(seen)
        narrow.__dict__["latent"] = (
            seen.latent_mean,
            tf.fill((20, 3), np.float32(2.0 * np.log(0.3))),
        )
        expected = np.mean(np.square(draws - seen.population.numpy()), axis=0)
        np.testing.assert_allclose(narrow.latent_variance, expected, rtol=0.1)

    def test_missing_cells_are_covered(self):
        """90 % intervals of cells that were taken out cover them; without the latent they do not.

        One latent moves all features alike; half of the cells of new rows are missing.
        """
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2400, 1)) * np.linspace(1.0, 2.0, 6) + rng.normal(size=(2400, 6))
        model = small_model([], hidden_units=(32,))
        missing = rng.uniform(size=x.shape) < 0.5
        given = np.where(missing, np.nan, x)
        keep = np.isfinite(given).any(axis=1)
        train, test = {"x": given[:2000][keep[:2000]]}, {"x": given[2000:]}
        model.adapt(train)
        model.compile(keras.optimizers.Adam(0.005))
        model.fit(train, epochs=25, batch_size=100, verbose=0)
        prediction = model.predictive(test)
        error = np.abs(x[2000:] - prediction.mean)[missing[2000:]]
        deviation = prediction.standard_deviation[missing[2000:]]
        given_latent = np.sqrt(model.variance_given_latent(model.encode_data(test)))
        without = (given_latent * np.asarray(model.feature_scale))[missing[2000:]]
        assert 0.86 < np.mean(error < 1.645 * deviation) < 0.94
        assert np.mean(error < 1.645 * without) < 0.86


def test_saved_and_exported(tmp_path: Path):
    """The shares are in the file, and served deviations are those of Python."""
    data = make_data()
    del data["t"]
    model = small_model([lmm.RandomIntercept("store")])
    model.adapt(data)
    model.compile("adam")
    model.fit(data, epochs=1, batch_size=60, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.mixed_model.has_missing_cells
    model.export(tmp_path / "served")
    served = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    answer = served(x=tf.constant(data["x"], tf.float32), store=tf.constant(data["store"]))
    expected = model.predictive(data).standard_deviation
    np.testing.assert_array_equal(again.predictive(data).standard_deviation, expected)
    np.testing.assert_allclose(answer["standard_deviation"], expected, rtol=1e-4)
