"""Bad input: always a ValueError that says what is wrong, where, and what was received."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
from keras_lmmvae.validation import as_keys

ROWS = 80
ADAPT_FIRST = r"call `model\.adapt\(data\)` first\. Received: num_features=0"
FIT_FIRST = r"call `model\.fit\(data\)` first\. Received: is_fitted=False"


def make_data(n: int = ROWS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 8, n)
    return {
        "x": rng.normal(size=(n, 3)) + group[:, None],
        "store": np.array([f"s{number}" for number in group]),
        "item": rng.integers(0, 5, n),
        "t": rng.uniform(size=n),
        "lon": rng.integers(0, 5, n) * 10.0,
        "lat": rng.integers(0, 4, n) * 10.0,
    }


def make_terms() -> list:
    return [
        lmm.RandomIntercept("store"),
        lmm.RandomSlopes("item", time="t"),
        lmm.SpatialEffect(("lon", "lat"), metric="haversine"),
    ]


def changed(name: str, value: Any) -> dict[str, Any]:
    return {**make_data(), name: value}


def with_cell(value: float, row: int = 2, column: int = 1) -> np.ndarray:
    x = make_data()["x"]
    x[row, column] = value
    return x


def with_value(name: str, value: Any, row: int = 3) -> np.ndarray:
    column = make_data()[name].astype(object if isinstance(value, str) else float)
    column[row] = value
    return column


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    return make_data()


@pytest.fixture(scope="module")
def model(data) -> lmm.LMMVAE:
    model = small_model(make_terms())
    fit_briefly(model, data, 40)
    return model


# What no method takes: name -> (data, gist of the message).
BAD_ROWS: dict[str, tuple[Callable[[], Any], str]] = {
    "no dict": (lambda: make_data()["x"], r"must be a dict of arrays.*Received: type="),
    "None": (lambda: None, r"must be a dict of arrays.*Received: type=.*NoneType"),
    "data frame": (
        lambda: pd.DataFrame({"a": [1.0], "store": ["s1"]}),
        r"from_dataframe.*Received: columns=\['a', 'store'\]",
    ),
    "no features": (
        lambda: {n: c for n, c in make_data().items() if n != "x"},
        r"lack the column\(s\) \['x'\].*Received: columns=\['store'",
    ),
    "missing columns": (
        lambda: {n: c for n, c in make_data().items() if n not in ("store", "lat")},
        r"lack the column\(s\) \['store', 'lat'\].*Received: columns=\['x'",
    ),
    "unequal lengths": (
        lambda: changed("t", make_data()["t"][:-1]),
        r"same number of rows. Received: lengths=.*'t': 79",
    ),
    "no rows": (
        lambda: {n: c[:0] for n, c in make_data().items()},
        r"have no rows.*Received: rows=0",
    ),
    "text features": (
        lambda: changed("x", np.full((ROWS, 3), "high")),
        r"'x' must be numeric.*Received: x=array of shape \(80, 3\)",
    ),
    "mixed features": (
        lambda: changed("x", [["a", 1.0, 2.0]] * ROWS),
        r"'x' must be numeric.*Received: x=",
    ),
    "vector of features": (
        lambda: changed("x", make_data()["x"][:, 0]),
        r"matrix of shape \(rows, features\). Received: x=array of shape \(80,\)",
    ),
    "infinite feature": (
        lambda: changed("x", with_cell(-np.inf)),
        r"must be finite in float32.*Received: row=2, column=1, value=-inf",
    ),
    "too large feature": (
        lambda: changed("x", with_cell(1e39)),
        r"must be finite in float32.*Received: row=2, column=1, value=1e\+39",
    ),
    "fractional keys": (
        lambda: changed("item", with_value("item", 0.5)),
        r"keys of column 'item' must be strings or whole numbers. Received: key=0.5",
    ),
    "mixed keys": (
        lambda: changed("store", with_value("store", "7")[:-1].tolist() + [7]),
        r"keys of column 'store' must be all strings or all whole numbers.*Received: kind='mixed",
    ),
    "dates as keys": (
        lambda: changed("store", pd.date_range("2020", periods=ROWS)),
        r"keys of column 'store' must be all strings or all whole.*Received: kind='datetime64'",
    ),
    "text as time": (
        lambda: changed("t", np.full(ROWS, "noon")),
        r"column 't' must be a numeric vector.*Received: kind='string', first='noon'",
    ),
    "infinite time": (
        lambda: changed("t", with_value("t", np.inf)),
        r"column 't' must be finite.*Received: row=3, value=inf",
    ),
    "longitude out of range": (
        lambda: changed("lon", with_value("lon", 180.5)),
        r"'lon', the longitude, must lie in \[-180, 180\].*Received: row=3, value=180.5",
    ),
    "latitude out of range": (
        lambda: changed("lat", with_value("lat", -91.0)),
        r"'lat', the latitude, must lie in \[-90, 90\].*Received: row=3, value=-91.0",
    ),
    "unbatched dataset": (
        lambda: tf.data.Dataset.from_tensor_slices(make_data()),
        r"`dataset.batch\(...\)`. Received: shape=",
    ),
    "dataset of arrays": (
        lambda: tf.data.Dataset.from_tensor_slices(make_data()["x"]).batch(40),
        r"must yield dicts with the columns \['x', 'store', 'item', 't', 'lon', 'lat'\]. Received",
    ),
    "dataset without a column": (
        lambda: tf.data.Dataset.from_tensor_slices({"x": make_data()["x"]}).batch(40),
        r"must yield dicts with the columns.*Received: element=",
    ),
    "dataset with targets": (
        lambda: tf.data.Dataset.from_tensor_slices((make_data(), make_data()["x"])).batch(40),
        r"must yield dicts.*Received: element=",
    ),
}

# What a fitted model does not take on top of that.
BAD_NEW_ROWS: dict[str, tuple[Callable[[], Any], str]] = {
    "too few features": (
        lambda: changed("x", make_data()["x"][:, :2]),
        r"must have the 3 columns that the model was adapted to. Received: columns=2",
    ),
    "too many features": (
        lambda: changed("x", np.ones((ROWS, 4))),
        r"must have the 3 columns that the model was adapted to. Received: columns=4",
    ),
    "dataset of other width": (
        lambda: tf.data.Dataset.from_tensor_slices(changed("x", np.ones((ROWS, 4)))).batch(40),
        r"must have the 3 columns that the model was adapted to. Received: columns=4",
    ),
    "integers for strings": (
        lambda: changed("store", np.arange(ROWS)),
        r"keys of column 'store' must be strings, as those.*Received: kind='integers', first=0",
    ),
    "strings for integers": (
        lambda: changed("item", make_data()["store"]),
        r"keys of column 'item' must be integers, as those.*Received: kind='strings', first='s",
    ),
}

METHODS: dict[str, Callable[[lmm.LMMVAE, Any], Any]] = {
    "fit": lambda model, data: model.fit(data, batch_size=40, verbose=0),
    "validation": lambda model, data: model.fit(
        make_data(), batch_size=40, validation_data=data, verbose=0
    ),
    "evaluate": lambda model, data: model.evaluate(data, verbose=0),
    "predict": lambda model, data: model.predict(data, verbose=0),
    "call": lambda model, data: model(data),
    "encode": lambda model, data: model.encode(data),
    "reconstruct": lambda model, data: model.reconstruct(data),
    "predictive": lambda model, data: model.predictive(data),
    "log_likelihood": lambda model, data: model.log_likelihood(data),
    "update": lambda model, data: model.update_random_effects(data),
}


class TestRows:
    @pytest.mark.parametrize("case", BAD_ROWS)
    def test_adapt(self, case):
        """`adapt` refuses bad rows, and can be called again with good ones."""
        make, message = BAD_ROWS[case]
        model = small_model(make_terms())
        with pytest.raises(ValueError, match=message):
            model.adapt(make())
        model.adapt(make_data())
        assert model.random_effects[0].num_levels == 8

    @pytest.mark.parametrize("case", [*BAD_ROWS, *BAD_NEW_ROWS])
    def test_methods_of_a_fitted_model(self, model, case):
        """Every method that takes rows gives the same error, before it does anything."""
        make, message = {**BAD_ROWS, **BAD_NEW_ROWS}[case]
        iterations = int(model.optimizer.iterations)
        for name, method in METHODS.items():
            if case == "None" and name == "validation":
                continue  # no validation data
            with pytest.raises(ValueError, match=message):
                method(model, make())
        assert int(model.optimizer.iterations) == iterations

    def test_keys_of_another_type_in_a_dataset(self, model, data):
        """Also a pipeline says which keys are of the wrong type."""
        dataset = tf.data.Dataset.from_tensor_slices({**data, "item": data["store"]}).batch(40)
        with pytest.raises(ValueError, match=r"keys of column 'item' must be integers.*Received"):
            model.predict(dataset, verbose=0)

    def test_missing_values_are_no_errors(self, model, data):
        """NaN cells, null and unknown keys, unknown positions and times: predictions."""
        rows = {name: column[:4].copy() for name, column in data.items()}
        rows["x"][0, 0] = np.nan
        rows["x"][1] = np.nan
        rows["store"] = np.array([None, "", "unknown", np.nan], object)
        rows["item"] = np.array([999, np.nan, 1, 2])
        rows["t"][2] = np.nan
        rows["lon"][3] = np.nan
        assert np.isfinite(model.predict(rows, verbose=0)).all()
        assert np.isfinite(model.predictive(rows).standard_deviation).all()
        assert np.isfinite(model.log_likelihood(rows)).all()


class TestAdapt:
    def adapt(self, terms: list, **columns: Any) -> None:
        small_model(terms).adapt({**make_data(), **columns})

    def test_twice(self, model, data):
        """Sizes are learned once."""
        with pytest.raises(ValueError, match=r"adapted already.*Received: num_features=3"):
            model.adapt(data)

    def test_rows_without_any_cell(self):
        """A row of NaN says nothing: drop it."""
        x = make_data()["x"]
        x[[4, 7]] = np.nan
        with pytest.raises(ValueError, match=r"one observed cell.*Received: rows=2, first=4"):
            self.adapt([], x=x)

    def test_columns_without_any_cell(self):
        """A feature that is never observed."""
        x = make_data()["x"]
        x[:, 2] = np.nan
        with pytest.raises(ValueError, match=r"one observed cell.*Received: empty_columns=\[2\]"):
            self.adapt([], x=x)

    @pytest.mark.parametrize("value", [0.0, 5.0, 1e7])
    def test_constant_features(self, value):
        """A feature that does not vary has no scale; also over the batches of a dataset."""
        x = make_data()["x"]
        x[:, 1] = value
        message = r"Features must vary.*Received: constant_columns=\[1\]"
        with pytest.raises(ValueError, match=message):
            self.adapt([], x=x)
        with pytest.raises(ValueError, match=message):
            small_model([]).adapt(tf.data.Dataset.from_tensor_slices({"x": x}).batch(30))

    def test_singleton_levels(self):
        """Levels with one row each cannot be told from noise."""
        message = r"All levels of column 'item' have a single row.*Received: levels=80"
        for term in (lmm.RandomIntercept("item"), lmm.RandomSlopes("item", time="t")):
            with pytest.raises(ValueError, match=message):
                self.adapt([term], item=np.arange(ROWS))

    def test_no_keys_at_all(self):
        """A column of null keys."""
        with pytest.raises(ValueError, match=r"'store' holds no keys.*Received: levels=0"):
            self.adapt([lmm.RandomIntercept("store")], store=np.full(ROWS, None))

    def test_one_place(self):
        """A surface over one place."""
        with pytest.raises(ValueError, match=r"two distinct places.*Received: places=1"):
            self.adapt([lmm.SpatialEffect(("lon", "lat"))], lon=np.ones(ROWS), lat=np.ones(ROWS))

    def test_constant_time(self):
        """A slope over a time that stands still."""
        with pytest.raises(ValueError, match=r"\['t'\] do not vary.*Received: value=3.0"):
            self.adapt([lmm.RandomSlopes("item", time="t")], t=np.full(ROWS, 3.0))

    def test_key_types_change_between_batches(self, data):
        """One column, one type of keys: also within the batches of `adapt`."""
        model = small_model([lmm.RandomIntercept("store")])
        term = model.random_effects[0]
        term.update_state(term.conform({"store": as_keys("store", ["a", "b"])}))
        with pytest.raises(ValueError, match=r"must be strings.*Received: kind='integers'"):
            term.update_state(term.conform({"store": as_keys("store", [1, 2])}))

    def test_dataset_without_end(self, data):
        """One pass over an endless dataset would never end."""
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(40).repeat()
        with pytest.raises(ValueError, match=r"without end.*Received: cardinality='infinite'"):
            small_model(make_terms()).adapt(dataset)


class TestOrder:
    @pytest.mark.parametrize("name", [name for name in METHODS if name != "validation"])
    def test_not_adapted(self, name, data):
        """Every method says that `adapt` comes first."""
        model = small_model(make_terms())
        model.compile("adam")
        with pytest.raises(ValueError, match=ADAPT_FIRST):
            METHODS[name](model, data)

    @pytest.mark.parametrize("name", [n for n in METHODS if n not in ("fit", "validation", "call")])
    def test_not_fitted(self, name, data):
        """An adapted model without effects and networks answers nothing."""
        model = small_model(make_terms())
        model.adapt(data)
        model.compile("adam")
        with pytest.raises(ValueError, match=FIT_FIRST):
            METHODS[name](model, data)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda model: model.random_effects_table("store"),
            lambda model: model.variance_components(),
            lambda model: model.decode(np.zeros((2, 1))),
        ],
    )
    def test_tables_of_an_unfitted_model(self, ask, data):
        """The same for what needs no rows."""
        model = small_model(make_terms())
        with pytest.raises(ValueError, match=ADAPT_FIRST):
            ask(model)
        model.adapt(data)
        with pytest.raises(ValueError, match=FIT_FIRST):
            ask(model)

    def test_not_compiled(self, data):
        """As in Keras: `compile` comes before `fit`."""
        model = small_model([])
        model.adapt(data)
        with pytest.raises(ValueError, match=r"call `compile\(\)`"):
            model.fit(data, batch_size=40, verbose=0)


class TestFit:
    @pytest.mark.parametrize("name", ["loss", "loss_weights", "metrics", "weighted_metrics"])
    def test_compile_takes_no_loss(self, name):
        """The loss is the negative ELBO."""
        with pytest.raises(ValueError, match=rf"negative ELBO.*Received: given=\['{name}'\]"):
            small_model([]).compile("adam", **{name: ["mse"]})

    def test_targets(self, model, data):
        """The features are their own target, in training, validation and evaluation."""
        message = r"`y` must be None.*Received: y=.*ndarray"
        with pytest.raises(ValueError, match=message):
            model.fit(data, data["x"], batch_size=40)
        with pytest.raises(ValueError, match=message):
            model.evaluate(data, data["x"])
        with pytest.raises(ValueError, match=message):
            model.fit(data, batch_size=40, validation_data=(data, data["x"]))

    @pytest.mark.parametrize(("batch_size", "received"), [(None, 32), (21, 21)])
    def test_fewer_rows_than_a_batch(self, model, data, batch_size, received):
        """Not one batch would be full."""
        few = {name: column[:20] for name, column in data.items()}
        message = rf"fewer rows than `batch_size`.*Received: rows=20, batch_size={received}"
        with pytest.raises(ValueError, match=message):
            model.fit(few, batch_size=batch_size, verbose=0)

    @pytest.mark.parametrize(
        "weight", [np.ones(79), -np.ones(ROWS), np.full(ROWS, np.nan), np.ones((ROWS, 1)), [np.inf]]
    )
    def test_sample_weight(self, model, data, weight):
        """One finite, non-negative number a row."""
        message = r"`sample_weight` must be 80 finite non-negative.*Received: sample_weight="
        with pytest.raises(ValueError, match=message):
            model.fit(data, sample_weight=weight, batch_size=40, verbose=0)
        with pytest.raises(ValueError, match=message):
            model.evaluate(data, sample_weight=weight, verbose=0)

    def test_arguments_of_arrays_with_a_dataset(self, model, data):
        """Weights and splits need to know the rows."""
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(40)
        with pytest.raises(ValueError, match=r"with arrays, not with a dataset.*Received"):
            model.fit(dataset, sample_weight=np.ones(ROWS), verbose=0)
        with pytest.raises(ValueError, match=r"not with a dataset.*Received: validation_split=0.5"):
            model.fit(dataset, validation_split=0.5, verbose=0)

    @pytest.mark.parametrize("share", [1.0, -0.5, 2.0])
    def test_validation_split(self, model, data, share):
        """A share between 0 and 1."""
        with pytest.raises(ValueError, match=rf"\(0, 1\).*Received: validation_split={share}"):
            model.fit(data, validation_split=share, batch_size=40, verbose=0)

    def test_dataset_without_end(self, model, data):
        """An endless dataset needs a number of steps, or an end."""
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(40).repeat()
        with pytest.raises(ValueError, match=r"steps_per_epoch.*Received: steps_per_epoch=None"):
            model.fit(dataset, verbose=0)
        for method in ("encode", "reconstruct", "predictive", "log_likelihood"):
            with pytest.raises(ValueError, match=r"without end.*Received: cardinality="):
                getattr(model, method)(dataset)
        with pytest.raises(ValueError, match=r"without end.*Received: cardinality="):
            model.update_random_effects(dataset)

    def test_several_devices(self, data):
        """One copy of the effects is updated: not under a strategy with replicas."""
        devices = tf.config.list_logical_devices("CPU")
        if len(devices) < 2:
            strategy = type("Strategy", (), {"num_replicas_in_sync": 2})()
        else:
            strategy = tf.distribute.MirroredStrategy(devices[:2])
        model = small_model([])
        model.adapt(data)
        model.compile("adam")
        model._distribute_strategy = strategy
        with pytest.raises(ValueError, match=r"on one device. Received: num_replicas=2"):
            model.fit(data, batch_size=40, verbose=0)


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"latent_dim": 0}, r"`latent_dim`, expected an integer.*Received: latent_dim=0"),
            ({"latent_dim": 1.5}, r"`latent_dim`, expected an integer.*Received: latent_dim=1.5"),
            ({"hidden_units": (8, -1)}, r"`hidden_units`.*Received: hidden_units=-1"),
            ({"hidden_units": 8}, r"`hidden_units` must be a sequence.*Received: hidden_units=8"),
            ({"hidden_units": "88"}, r"`hidden_units` must be a sequence.*hidden_units='88'"),
            (
                {"posterior": "exact"},
                r"`posterior`.*\['conjugate', 'amortized'\].*posterior='exact'",
            ),
            ({"kl_weight": -1.0}, r"`kl_weight`.*Received: kl_weight=-1.0"),
            ({"kl_weight": np.nan}, r"`kl_weight`.*Received: kl_weight=nan"),
            ({"effects_kl_weight": 0.0}, r"`effects_kl_weight`.*Received: effects_kl_weight=0.0"),
            (
                {"effects_kl_reduction": "batch"},
                r"\['level', 'row'\].*effects_kl_reduction='batch'",
            ),
            ({"noise_variance": 0.0}, r"`noise_variance`.*Received: noise_variance=0.0"),
            ({"noise_variance": "big"}, r"`noise_variance`.*Received: noise_variance='big'"),
        ],
    )
    def test_out_of_range(self, options, message):
        """What the argument must be, and what it was."""
        with pytest.raises(ValueError, match=message):
            small_model([], **options)

    def test_terms(self):
        """Terms are terms, with names of their own."""
        with pytest.raises(ValueError, match=r"random_effects.*Received: element='store'"):
            small_model(["store"])
        twice = [lmm.RandomIntercept("store"), lmm.RandomSlopes("store", time="t")]
        with pytest.raises(ValueError, match=r"one name.*Received: names=\['store', 'store'\]"):
            small_model(twice)
        alike = [lmm.RandomIntercept("a b"), lmm.RandomIntercept("a_b")]
        with pytest.raises(ValueError, match=r"special characters only.*\['a b', 'a_b'\]"):
            small_model(alike)
        with pytest.raises(ValueError, match=r"unknown kernel.*'rbf'.*Received: kernel='cubic'"):
            lmm.SpatialEffect(("lon", "lat"), kernel="cubic")

    def test_reports(self, model, data):
        """Tables of terms that are not there, deviations that do not exist, odd numbers."""
        message = r"no term 'shop'.*\['store', 'item', 'lon_lat'\].*Received: name='shop'"
        with pytest.raises(ValueError, match=message):
            model.random_effects_table("shop")
        with pytest.raises(ValueError, match=message):
            model.coefficient_covariance("shop")
        with pytest.raises(ValueError, match=r"`num_samples`.*Received: num_samples=-1"):
            model.log_likelihood(data, num_samples=-1)
        amortized = small_model([lmm.RandomIntercept("store")], posterior="amortized")
        amortized.adapt(data)
        amortized.fitted.assign(1.0)
        with pytest.raises(ValueError, match=r"no standard deviations.*posterior='amortized'"):
            amortized.random_effects_table("store", std=True)

    def test_decoder_of_another_width(self, data):
        """A given decoder is asked for the model's latent dimension; its width may be anything."""
        decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        with pytest.raises(ValueError, match="2"):
            small_model([], latent_dim=3, decoder=decoder).adapt(data)

    def test_data_frame(self):
        """`from_dataframe`: the names that are not there."""
        frame = pd.DataFrame({"a": [1.0, 2.0], "store": ["x", "y"], "text": ["u", "v"]})
        terms = [lmm.RandomIntercept("store")]
        with pytest.raises(ValueError, match=r"lack the column\(s\) \['b'\].*Received: columns="):
            lmm.from_dataframe(frame, ["a", "b"], terms)
        with pytest.raises(ValueError, match=r"must be numeric.*Received: columns=\['text'\]"):
            lmm.from_dataframe(frame, ["a", "text"], terms)
