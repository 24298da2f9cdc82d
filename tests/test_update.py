"""`update_random_effects`: rows that come after training, with the networks frozen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from small_models import DenseTerm, codes_of, dense_blup, fit_briefly, known_model, small_model

import keras_lmmvae as lmm

NOISE = np.array([0.5, 1.0, 2.0])
VARIANCE = np.array([1.5, 0.3, 1.0])
PSI = np.array([[1.0, -0.3], [-0.3, 0.5]])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
Data = dict[str, np.ndarray]


def make_data(seed: int, stores: range, n: int = 120) -> Data:
    """Rows of some stores; the effect of a store is the same whatever the seed."""
    rng = np.random.default_rng(9)
    effects = rng.normal(size=(20, 3)) * np.sqrt(VARIANCE)
    cities = rng.normal(size=(5, 3))
    rng = np.random.default_rng(seed)
    store, city = rng.integers(stores.start, stores.stop, n), rng.integers(0, 5, n)
    x = effects[store] + cities[city] + rng.normal(size=(n, 3)) * np.sqrt(NOISE)
    names = np.array([f"store {number:02d}" for number in store])
    return {"x": x, "store": names, "city": city, "t": rng.uniform(-1.0, 2.0, n)}


OLD, NEW = make_data(0, range(10)), make_data(1, range(5, 15))
BOTH = {name: np.concatenate([OLD[name], NEW[name]]) for name in OLD}


def exact(data: Data, slopes: bool = False) -> pd.DataFrame:
    """The dense BLUP of all rows; features less the mean of the old rows, as the model's."""
    basis = np.stack([np.ones(len(data["t"])), data["t"]], axis=1) if slopes else None
    term = DenseTerm.of_levels(data["store"], VARIANCE, basis, PSI if slopes else None)
    mean, _ = dense_blup(data["x"] - OLD["x"].mean(axis=0), [term], NOISE)
    levels = np.unique(data["store"])
    index = pd.MultiIndex.from_product([levels, ["intercept", "t"]]) if slopes else levels
    return pd.DataFrame(mean, index)


def known(term: lmm.RandomIntercept, data: Data = OLD) -> lmm.LMMVAE:
    """A model at known variances whose effects are those of the old rows."""
    psi = {"store": PSI} if isinstance(term, lmm.RandomSlopes) else None
    model = known_model([term], data, NOISE, {"store": VARIANCE}, psi)
    model.update_random_effects(data, keep_history=False)
    return model


def compare(model: lmm.LMMVAE, expected: pd.DataFrame) -> None:
    table = model.random_effects_table("store")
    np.testing.assert_allclose(table.loc[expected.index], expected, **CLOSE)


class TestOneTerm:
    @pytest.mark.parametrize("slopes", [False, True])
    @pytest.mark.parametrize("kind", ["dict", "dataset"])
    def test_new_rows_join_the_old_ones(self, slopes, kind):
        """Old rows, then new rows with new levels: the BLUP of all rows together."""
        term = lmm.RandomSlopes("store", time="t") if slopes else lmm.RandomIntercept("store")
        model = known(term)
        compare(model, exact(OLD, slopes))
        new = tf.data.Dataset.from_tensor_slices(NEW).batch(32) if kind == "dataset" else NEW
        model.update_random_effects(new)
        compare(model, exact(BOTH, slopes))

    def test_updates_add_up(self):
        """Rows that come in three parts are the rows at once; standard deviations too."""
        model = known(lmm.RandomIntercept("store"))
        for part in np.array_split(np.arange(120), 3):
            model.update_random_effects({name: column[part] for name, column in NEW.items()})
        compare(model, exact(BOTH))
        deviation = model.random_effects_table("store", std=True)
        counts = pd.Series(BOTH["store"]).value_counts()[deviation.index].to_numpy()
        expected = np.sqrt(1 / (counts[:, None] / NOISE + 1 / VARIANCE))
        np.testing.assert_allclose(deviation, expected, rtol=1e-4)

    def test_without_history(self):
        """`keep_history=False`: as solved from the new rows alone; levels without rows are 0."""
        model = known(lmm.RandomIntercept("store"))
        model.update_random_effects(NEW, keep_history=False)
        compare(model, exact(NEW))
        table = model.random_effects_table("store")
        gone = sorted(set(OLD["store"]) - set(NEW["store"]))
        np.testing.assert_allclose(table.loc[gone], 0.0, atol=1e-6)
        deviation = model.random_effects_table("store", std=True).loc[gone]
        np.testing.assert_allclose(
            deviation, np.sqrt(VARIANCE) * np.ones((len(gone), 1)), rtol=1e-4
        )

    def test_new_levels(self):
        """New keys follow the old ones; unknown before, they are known afterwards."""
        model = known(lmm.RandomIntercept("store"))
        before = model.predictive(NEW)
        is_new = ~np.isin(NEW["store"], OLD["store"])
        np.testing.assert_array_equal(before.contributions["store"][is_new], 0.0)
        model.update_random_effects(NEW)
        levels = model.random_effects_table("store").index.tolist()
        assert levels == [f"store {number:02d}" for number in range(15)]
        after = model.predictive(NEW)
        assert (np.abs(after.contributions["store"][is_new]) > 0).all()
        assert (after.standard_deviation[is_new] < before.standard_deviation[is_new]).all()

    def test_null_keys_are_no_levels(self):
        """Rows without a key add nothing."""
        model = known(lmm.RandomIntercept("store"))
        rows = {"x": NEW["x"][:3] + 50.0, "store": np.array(["", None, np.nan], object)}
        model.update_random_effects(rows)
        compare(model, exact(OLD))
        assert len(model.random_effects_table("store")) == 10


class TestSeveralTerms:
    def test_all_rows_at_once_are_exact(self):
        """`keep_history=False` with all rows: the joint BLUP of both terms, with new levels."""
        terms = [lmm.RandomIntercept("store"), lmm.RandomIntercept("city")]
        model = known_model(terms, OLD, NOISE, {"store": VARIANCE, "city": 1.0})
        model.update_random_effects(BOTH, keep_history=False)
        dense = [
            DenseTerm.of_levels(BOTH["store"], VARIANCE),
            DenseTerm.of_levels(BOTH["city"], 1.0),
        ]
        mean, _ = dense_blup(BOTH["x"] - OLD["x"].mean(axis=0), dense, NOISE)
        stores = codes_of(BOTH["store"])[1]
        np.testing.assert_allclose(model.random_effects_table("store"), mean[:stores], **CLOSE)
        np.testing.assert_allclose(model.random_effects_table("city"), mean[stores:], **CLOSE)

    def test_new_rows_move_the_effects_towards_the_truth(self):
        """With history: nearer to the joint BLUP of all rows than the old rows alone were."""
        terms = [lmm.RandomIntercept("store"), lmm.RandomIntercept("city")]
        model = known_model(terms, OLD, NOISE, {"store": VARIANCE, "city": 1.0})
        model.update_random_effects(OLD, keep_history=False)
        dense = [
            DenseTerm.of_levels(BOTH["store"], VARIANCE),
            DenseTerm.of_levels(BOTH["city"], 1.0),
        ]
        mean, _ = dense_blup(BOTH["x"] - OLD["x"].mean(axis=0), dense, NOISE)
        shared = mean[:10]
        before = np.abs(model.random_effects_table("store")[:10] - shared).to_numpy().mean()
        model.update_random_effects(NEW)
        after = np.abs(model.random_effects_table("store")[:10] - shared).to_numpy().mean()
        assert after < 0.5 * before


class TestFittedModel:
    @pytest.fixture
    def model(self) -> lmm.LMMVAE:
        model = small_model([lmm.RandomIntercept("store"), lmm.RandomIntercept("city")])
        fit_briefly(model, OLD, 40, epochs=2)
        return model

    def test_everything_works_afterwards(self, model, tmp_path):
        """Networks and variances stay; prediction, evaluation and further training go on."""
        weights = [np.copy(weight) for weight in model.trainable_weights]
        components = model.variance_components()
        model.predict(OLD, verbose=0)
        model.update_random_effects(NEW)
        for old, weight in zip(weights, model.trainable_weights, strict=True):
            np.testing.assert_array_equal(old, weight)
        pd.testing.assert_frame_equal(model.variance_components(), components)
        prediction = model.predict(NEW, verbose=0)
        np.testing.assert_allclose(prediction, model.reconstruct(NEW), rtol=1e-4, atol=1e-4)
        assert np.isfinite(model.evaluate(NEW, verbose=0)).all()
        before = int(model.optimizer.iterations)
        history = model.fit(BOTH, epochs=2, batch_size=40, verbose=0, validation_data=NEW).history
        assert np.isfinite(history["val_loss"]).all()
        assert int(model.optimizer.iterations) == before + 12
        assert len(model.random_effects_table("store")) == 15

    def test_same_rows_again_change_nothing(self, model):
        """The training rows without history: the effects of the fit."""
        tables = [model.random_effects_table(name) for name in ("store", "city")]
        model.update_random_effects(OLD, keep_history=False)
        for name, table in zip(("store", "city"), tables, strict=True):
            np.testing.assert_allclose(model.random_effects_table(name), table, atol=0.02)

    def test_helps_on_new_rows(self, model):
        """Half of the rows of new stores: the other half is reconstructed better."""
        first, second = (
            {n: c[part] for n, c in NEW.items()} for part in (slice(60), slice(60, 120))
        )
        before = lmm.metrics.mse(second["x"], model.reconstruct(second))
        model.update_random_effects(first)
        assert lmm.metrics.mse(second["x"], model.reconstruct(second)) < 0.95 * before


class TestErrors:
    def test_not_fitted(self):
        """There is nothing to update in a model that was not fitted."""
        model = small_model([lmm.RandomIntercept("store")])
        with pytest.raises(ValueError, match=r"call `model.adapt\(data\)` first. Received"):
            model.update_random_effects(OLD)
        model.adapt(OLD)
        with pytest.raises(ValueError, match=r"call `model.fit\(data\)` first. Received"):
            model.update_random_effects(OLD)

    def test_wrong_models(self):
        """Amortized effects come from an encoder; a plain VAE has none."""
        model = small_model([lmm.RandomIntercept("store")], posterior="amortized")
        model.adapt(OLD)
        model.fitted.assign(1.0)
        with pytest.raises(
            ValueError, match="conjugate posterior.* Received: posterior='amortized'"
        ):
            model.update_random_effects(OLD)
        model = small_model([])
        model.adapt(OLD)
        model.fitted.assign(1.0)
        with pytest.raises(ValueError, match="no random effects to update. Received: terms=0"):
            model.update_random_effects(OLD)

    @pytest.mark.parametrize("kind", ["dict", "dataset"])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": NEW["x"][:, :2]}, "must have the 3 columns.*Received: columns=2"),
            ({"store": np.arange(120)}, "keys of column 'store' must be strings.*Received"),
            ({"x": np.full((120, 3), np.inf)}, "must be finite.*Received: row=0, column=0"),
            ({"store": np.array(["a\nb"] * 120)}, "line breaks. Received: key="),
        ],
    )
    def test_bad_rows_change_nothing(self, change, message, kind):
        """An error leaves levels and effects as they were."""
        model = known(lmm.RandomIntercept("store"))
        before = model.random_effects_table("store")
        rows = {**NEW, **change}
        if kind == "dataset":
            rows = tf.data.Dataset.from_tensor_slices(rows).batch(50)
        with pytest.raises(ValueError, match=message):
            model.update_random_effects(rows)
        pd.testing.assert_frame_equal(model.random_effects_table("store"), before)
