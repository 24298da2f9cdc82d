"""`with_levels_of`: groups that training did not see, described by their own rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import DenseTerm, dense_blup, fit_briefly, known_model, small_model

import keras_lmmvae as lmm

NOISE = np.array([0.5, 1.0, 2.0])
VARIANCE = np.array([1.5, 0.3, 1.0])
PSI = np.array([[1.0, -0.3], [-0.3, 0.5]])
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
Data = dict[str, np.ndarray]


def make_data(seed: int, stores: range, cities: range, n: int = 150) -> Data:
    """Rows of some stores and cities, whose effects are the same whatever the seed."""
    rng = np.random.default_rng(5)
    effects, of_cities = rng.normal(size=(40, 3)) * np.sqrt(VARIANCE), rng.normal(size=(12, 3))
    rng = np.random.default_rng(seed)
    store = rng.integers(stores.start, stores.stop, n)
    city = rng.integers(cities.start, cities.stop, n)
    x = effects[store] + of_cities[city] + rng.normal(size=(n, 3)) * np.sqrt(NOISE)
    names = np.array([f"store {number:02d}" for number in store])
    return {"x": x + 3.0, "store": names, "city": city, "t": rng.uniform(-1.0, 2.0, n)}


OLD = make_data(0, range(10), range(5))
# Half of the stores and cities are known: their rows are new ones all the same.
NEW = make_data(1, range(5, 15), range(3, 8))
IS_NEW = ~np.isin(NEW["store"], OLD["store"])


def known(term: lmm.RandomIntercept) -> lmm.LMMVAE:
    """A model at known variances whose effects are those of the old rows."""
    psi = {"store": PSI} if isinstance(term, lmm.RandomSlopes) else None
    model = known_model([term], OLD, NOISE, {"store": VARIANCE}, psi)
    model.update_random_effects(OLD, keep_history=False)
    return model


@pytest.fixture(scope="module")
def trained() -> lmm.LMMVAE:
    """A model with a decoder that is in use."""
    model = small_model([lmm.RandomIntercept("store"), lmm.RandomIntercept("city")])
    fit_briefly(model, OLD, 50, epochs=5)
    return model


def state(model: lmm.LMMVAE) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(weight).copy() for weight in model.weights]


class TestExact:
    @pytest.mark.parametrize("slopes", [False, True])
    @pytest.mark.parametrize("has_missing_cells", [False, True])
    def test_is_condition_level_by_level(self, slopes, has_missing_cells):
        """With one term: effects and standard deviations of `condition`, all levels at once."""
        term = lmm.RandomSlopes("store", time="t") if slopes else lmm.RandomIntercept("store")
        model, new = known(term), {**NEW, "x": NEW["x"].copy()}
        if has_missing_cells:
            # Whole rows but for one cell: exact for slopes, too, where shares are not.
            new["x"][3, 1] = np.nan
        copy = model.with_levels_of(new)
        means = copy.random_effects_table("store")
        deviations = copy.random_effects_table("store", std=True)
        for level in np.unique(new["store"][IS_NEW]):
            rows = {name: column[new["store"] == level] for name, column in new.items()}
            expected = model.condition(rows, on="store")
            np.testing.assert_allclose(means.loc[[level]], expected.effects, **CLOSE)
            if slopes and has_missing_cells:
                continue  # Posterior variances take the features' Gram matrices as multiples.
            found = deviations.loc[[level]]
            np.testing.assert_allclose(found, expected.standard_deviation, **CLOSE)

    def test_two_terms_are_solved_jointly(self):
        """`fit(epochs=0)`: the BLUP of new stores and new cities, known effects taken out."""
        model = small_model([lmm.RandomIntercept("store"), lmm.RandomIntercept("city")])
        fit_briefly(model, OLD, 50, epochs=0)
        values = NEW["x"] - model.reconstruct(NEW, include_effects=False)
        components, terms, expected = model.variance_components(), [], {}
        for name in ("store", "city"):
            table = model.random_effects_table(name)
            values -= table.reindex(NEW[name]).fillna(0.0).to_numpy()
            is_new = ~np.isin(NEW[name], OLD[name])
            fresh = np.unique(NEW[name][is_new])
            design = (NEW[name][:, None] == fresh).astype(float)
            variance = components.loc[name].to_numpy()
            terms.append(DenseTerm(design, np.eye(len(fresh)), variance))
            expected[name] = fresh
        mean, _ = dense_blup(values, terms, components.loc["noise"].to_numpy())
        copy, start = model.with_levels_of(NEW), 0
        for name, fresh in expected.items():
            assert len(fresh) > 2
            found = copy.random_effects_table(name).loc[fresh]
            np.testing.assert_allclose(
                found, mean[start : start + len(fresh)], rtol=1e-3, atol=1e-4
            )
            start += len(fresh)

    def test_update_is_the_same_where_no_level_is_known(self):
        """New stores only, one term: the levels that `update_random_effects` would add."""
        rows = {name: column[IS_NEW] for name, column in NEW.items()}
        model = known(lmm.RandomIntercept("store"))
        copy = model.with_levels_of(rows)
        model.update_random_effects(rows)
        for std in (False, True):
            expected = model.random_effects_table("store", std)
            np.testing.assert_allclose(copy.random_effects_table("store", std), expected, **CLOSE)


class TestNothingElseChanges:
    def test_known_levels(self, trained):
        """Their effects are the same to the last bit, and so is what the copy says of them."""
        copy = trained.with_levels_of(NEW)
        for (term, old), (_, new) in zip(
            trained.mixed_model.pairs(), copy.mixed_model.pairs(), strict=True
        ):
            for one, other, axis in ((old.table, new.table, 0), (old.folds, new.folds, 1)):
                for name in ("effects", "gram", "count", "eigenvalues"):
                    kept = np.take(getattr(other, name), range(old.num_levels), axis)
                    np.testing.assert_array_equal(kept, getattr(one, name), err_msg=term.label)
        found, expected = copy.predictive(OLD), trained.predictive(OLD)
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.standard_deviation, expected.standard_deviation)
        np.testing.assert_array_equal(copy.encode(OLD), trained.encode(OLD))
        assert copy.variance_components().equals(trained.variance_components())

    def test_the_model(self, trained):
        """Neither its weights nor its levels change; nor do they if the data are refused."""
        before, levels = state(trained), trained.random_effects_table("store").index.tolist()
        trained.with_levels_of(NEW)
        with pytest.raises(ValueError, match="must be strings"):
            trained.with_levels_of({**NEW, "store": np.arange(150)})
        with pytest.raises(ValueError, match="Received: "):
            trained.with_levels_of({**NEW, "x": NEW["x"][:, :2]})
        for one, other in zip(state(trained), before, strict=True):
            np.testing.assert_array_equal(one, other)
        assert trained.random_effects_table("store").index.tolist() == levels

    def test_the_copy_shares_nothing(self, trained):
        """The copy may be updated, and the model does not see it."""
        before, copy = state(trained), trained.with_levels_of(NEW)
        copy.update_random_effects(NEW)
        copy.noise_variance.assign([9.0, 9.0, 9.0])
        for one, other in zip(state(trained), before, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_no_new_level(self, trained):
        """Training rows once more: they do not count twice."""
        for one, other in zip(state(trained.with_levels_of(OLD)), state(trained), strict=True):
            np.testing.assert_array_equal(one, other)


class TestUse:
    def test_rows_of_new_groups_are_reconstructed(self, trained):
        """The errors of their rows come down, those of known groups stay."""
        copy = trained.with_levels_of(NEW)
        before = np.square(NEW["x"] - trained.reconstruct(NEW))
        after = np.square(NEW["x"] - copy.reconstruct(NEW))
        assert after[IS_NEW].mean() < 0.8 * before[IS_NEW].mean()
        fully_known = ~IS_NEW & np.isin(NEW["city"], OLD["city"])
        assert fully_known.any()
        np.testing.assert_allclose(after[fully_known], before[fully_known], rtol=1e-4, atol=1e-4)

    def test_dataset(self, trained):
        """Rows in batches say what they say at once, within the solver's tolerance."""
        batches = tf.data.Dataset.from_tensor_slices(NEW).batch(64)
        found, expected = trained.with_levels_of(batches), trained.with_levels_of(NEW)
        for name in ("store", "city"):
            table = expected.random_effects_table(name)
            np.testing.assert_allclose(found.random_effects_table(name), table, atol=1e-3)

    def test_saved(self, trained, tmp_path):
        """The copy is a model like others: a file keeps its levels."""
        copy = trained.with_levels_of(NEW)
        copy.save(tmp_path / "copy.keras")
        again = keras.saving.load_model(tmp_path / "copy.keras")
        for include in ("within", "total"):
            found, expected = (m.encode(NEW, include=include) for m in (again, copy))
            np.testing.assert_array_equal(found, expected)

    def test_missing_cells_in_one_term(self, trained, tmp_path):
        """Cells missing for the first time, new levels in one term only: a file keeps them."""
        rows = {**NEW, "city": OLD["city"], "x": np.where(NEW["x"] > 5.0, np.nan, NEW["x"])}
        rows["x"][:, 0] = NEW["x"][:, 0]
        copy = trained.with_levels_of(rows)
        copy.save(tmp_path / "copy.keras")
        again = keras.saving.load_model(tmp_path / "copy.keras")
        found, expected = again.predictive(rows), copy.predictive(rows)
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.standard_deviation, expected.standard_deviation)
        assert np.isfinite(found.standard_deviation).all()
        np.testing.assert_array_equal(copy.encode(OLD), trained.encode(OLD))

    def test_missing_keys(self):
        """Rows without a key tell nothing of any level."""
        keys: Any = NEW["store"].astype(object)
        rows = {**NEW, "store": np.where(IS_NEW, keys, None)}
        model = known(lmm.RandomIntercept("store"))
        table = model.with_levels_of(rows).random_effects_table("store")
        expected = model.with_levels_of(NEW).random_effects_table("store")
        np.testing.assert_allclose(table, expected, **CLOSE)
        assert len(table) == len(expected) == 15


class TestErrors:
    def test_amortized(self):
        model = small_model([lmm.RandomIntercept("store")], posterior="amortized")
        fit_briefly(model, OLD, 50)
        with pytest.raises(ValueError, match="Only the conjugate .* posterior='amortized'"):
            model.with_levels_of(NEW)

    def test_no_random_effects(self):
        model = small_model()
        fit_briefly(model, {"x": OLD["x"]}, 50)
        with pytest.raises(ValueError, match=r"no random effects to update\. Received: terms=0"):
            model.with_levels_of({"x": NEW["x"]})

    def test_not_fitted(self):
        model = small_model([lmm.RandomIntercept("store")])
        model.adapt(OLD)
        with pytest.raises(ValueError, match="not fitted yet"):
            model.with_levels_of(NEW)
