"""Bad requests to a served model: a clear error or a documented answer, never a wrong number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from runtimes.c_api import ask as ask_c_api
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
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
    fit_briefly(model, DATA, 50)
    folder = tmp_path_factory.mktemp("served") / "1"
    model.export(folder)
    return model, folder


@pytest.fixture(scope="module")
def loaded(served) -> Any:
    return tf.saved_model.load(str(served[1]))


def ask(folder: Any, signature: str = "serving_default", **changes: Any) -> dict[str, Any]:
    inputs = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    (answer,) = ask_c_api(folder, [{"signature": signature, "inputs": inputs}])
    return answer


class TestErrors:
    """Requests that TensorFlow or the served graph refuses. Nothing is broadcast or cast."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"store": None}, r"missing a required argument: 'store'"),
            ({"shop": [1, 2]}, r"unexpected keyword argument 'shop'"),
            ({"x": [[0.0] * 5] * 2}, r"tensor x \[2,5\] is not compatible with .* \[\?,4\]"),
            ({"x": [[0.0]] * 2}, r"tensor x \[2,1\] is not compatible with .* \[\?,4\]"),
            ({"x": [0.0, 1.0]}, r"tensor x \[2\] is not compatible with .* \[\?,4\]"),
            ({"store": ["a", "b"]}, r"expected to be a int64 tensor but is a string"),
            ({"lon": ["east", "west"]}, r"expected to be a float tensor but is a string"),
            ({"store": [1]}, r"input store must have as many rows"),
            ({"lat": [0.0] * 3}, r"input lat must have as many rows"),
        ],
        ids=[
            *(
                "missing",
                "unknown",
                "too wide",
                "one column",
                "a row, not rows",
                "text for keys",
                "text",
            ),
            *("one key for two rows", "three latitudes for two rows"),
        ],
    )
    def test_refused(self, loaded, changes, message):
        types = {"x": np.float32, "store": np.int64, "lon": np.float32, "lat": np.float32}
        inputs = {}
        for name, value in {**GOOD, **changes}.items():
            if value is not None:
                array = np.asarray(value)
                inputs[name] = tf.constant(array if array.dtype.kind == "U" else
                                           array.astype(types.get(name)))  # fmt: skip
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
