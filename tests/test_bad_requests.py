"""Bad requests to a served model: a clear error or a documented answer, never a wrong number."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_models import small_model

import keras_lmmvae as lmm
from keras_lmmvae.export import run_in_c_process
from keras_lmmvae.validation import NULL_INTEGER

RNG = np.random.default_rng(0)
STORE = RNG.integers(0, 9, 150)
DATA = {
    "x": RNG.normal(size=(9, 4))[STORE] + RNG.normal(size=(150, 4)),
    "store": STORE,
    "lon": STORE * 10.0,
    "lat": STORE % 3 * 5.0,
}
GOOD: dict[str, Any] = {
    "x": [[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]],
    "store": [0, 3],
    "lon": [0.0, 30.0],
    "lat": [0.0, 5.0],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> tuple[lmm.LMMVAE, Any]:
    model = small_model(
        [lmm.RandomIntercept("store"), lmm.SpatialEffect(("lon", "lat"), metric="haversine")]
    )
    model.adapt(DATA)
    model.compile("adam")
    model.fit(DATA, epochs=1, batch_size=50, verbose=0)
    folder = tmp_path_factory.mktemp("served") / "1"
    model.export(folder)
    return model, folder


def ask(folder: Any, signature: str = "serving_default", **changes: Any) -> dict[str, Any]:
    inputs = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    (answer,) = run_in_c_process(folder, [{"signature": signature, "inputs": inputs}])
    return dict(answer["outputs"])


class TestErrors:
    """What TensorFlow itself says: the name of the input stands in the message."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"store": None}, r"missing or unknown inputs.*'store'"),
            ({"shop": [1, 2]}, r"missing or unknown inputs.*'shop'"),
            ({"x": [[0.0] * 5] * 2}, r"`?x`?.*shape|\[\?,4\]"),
            ({"x": [0.0, 1.0]}, r"`?x`?.*shape|rank"),
            ({"store": ["a", "b"]}, r"store"),
            ({"lon": ["east", "west"]}, r"lon"),
        ],
        ids=["missing", "unknown", "too wide", "a row, not rows", "text for keys", "text"],
    )
    def test_client(self, served, changes, message):
        with pytest.raises(RuntimeError, match=re.compile(message, re.DOTALL)):
            ask(served[1], **changes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"x": np.zeros((2, 5), np.float32)}, r"shape|Shape|dimension"),
            ({"store": np.array([1], np.int64)}, r"input store must have as many rows"),
            ({"lat": np.zeros(3, np.float32)}, r"input lat must have as many rows"),
        ],
        ids=["too wide", "one key for two rows", "three latitudes for two rows"],
    )
    def test_graph(self, served, changes, message):
        """The graph refuses by itself, whatever the client has checked: nothing is broadcast."""
        loaded = tf.saved_model.load(str(served[1]))
        types = {"x": np.float32, "store": np.int64, "lon": np.float32, "lat": np.float32}
        inputs = {
            name: tf.constant(np.asarray(value, types[name]))
            for name, value in {**GOOD, **changes}.items()
        }
        with pytest.raises((tf.errors.InvalidArgumentError, TypeError), match=message):
            loaded.signatures["serving_default"](**inputs)


class TestDocumentedAnswers:
    def test_no_rows(self, served):
        answer = ask(served[1], x=[], store=[], lon=[], lat=[])
        assert answer["reconstruction"] == []
        assert answer["known_store"] == []

    def test_missing_cells_are_imputed(self, served):
        """NaN and infinity are missing cells: a finite answer, the one that Python gives."""
        model, folder = served
        x = np.array([[0.0, np.nan, 2.0, 3.0], [1.0, np.inf, 1.0, -np.inf]])
        answer = ask(folder, x=x.tolist())
        hidden = {**GOOD, "x": np.where(np.isfinite(x), x, np.nan)}
        expected = model.reconstruct({k: np.asarray(v) for k, v in hidden.items()})
        assert np.isfinite(answer["reconstruction"]).all()
        np.testing.assert_allclose(answer["reconstruction"], expected, rtol=1e-4, atol=1e-4)

    def test_row_without_any_cell(self, served):
        """The average row of its group."""
        answer = ask(served[1], x=[[float("nan")] * 4] * 2)
        assert np.isfinite(answer["reconstruction"]).all()
        scores = ask(served[1], "anomaly_score", x=[[float("nan")] * 4] * 2)
        assert scores["score"] == [0.0, 0.0]

    def test_null_and_unknown_keys_are_told_apart(self, served):
        """Both have effect 0; only an unknown key adds the variance of its effect."""
        answer = ask(served[1], "random_effects_store", x=None, lon=None, lat=None,
                     store=[NULL_INTEGER, 10**15])  # fmt: skip
        assert answer["known"] == [False, False]
        assert np.allclose(answer["mean"], 0.0)
        null, unknown = np.array(answer["standard_deviation"])
        np.testing.assert_array_equal(null, 0.0)
        prior = np.sqrt(served[0].variance_components().loc["store"])
        np.testing.assert_allclose(unknown, prior, rtol=1e-4)

    def test_absurd_coordinates(self, served):
        """Off the globe, at 1e30, NaN, infinite: finite answers, no effect of any place."""
        absurd = [500.0, 1e30, float("nan"), float("inf")]
        changes = {name: [value] * 4 for name, value in (("store", 0), ("lat", 2.0))}
        answer = ask(served[1], x=[[0.0, 1.0, 2.0, 3.0]] * 4, lon=absurd, **changes)
        assert np.isfinite(answer["reconstruction"]).all()
        assert np.isfinite(answer["standard_deviation"]).all()
        assert answer["known_lon_lat"][2:] == [False, False]
