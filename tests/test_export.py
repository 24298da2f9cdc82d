"""An exported model answers requests as `predict` does, in a process without this package."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from runtimes.c_api import ask
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
from keras_lmmvae.export import publish, saved_model
from keras_lmmvae.export.saved_model import ServingModule
from keras_lmmvae.validation import NULL_INTEGER

# What runs in TensorFlow only, or is not the same twice.
UNPORTABLE = ("Random", "Cholesky", "MatrixInverse", "MatrixSolve", "SelfAdjointEig", "Svd", "Qr")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ROWS = 120
NAMES = np.array(["œuvre", "数据", "two words", "0", "x" * 40])

KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "plain": (lambda: [], ()),
    "integers": (lambda: [lmm.RandomIntercept("store")], ("store",)),
    "strings": (
        lambda: [lmm.RandomIntercept("name", name="a name"), lmm.RandomIntercept("store")],
        ("name", "store"),
    ),
    "slopes": (lambda: [lmm.RandomSlopes("name", time="t", degree=2)], ("name", "t")),
    "surface": (lambda: [lmm.SpatialEffect(("east", "north"))], ("east", "north")),
    "globe": (lambda: [lmm.SpatialEffect(("lon", "lat"), metric="haversine")], ("lon", "lat")),
}


def make_data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    group, place = rng.integers(0, 5, ROWS), rng.integers(0, 9, ROWS)
    x = rng.normal(size=(5, 3))[group] + rng.normal(size=(ROWS, 3)) + [100.0, 0.0, -5.0]
    x[::10, 0] = np.nan
    return {
        "x": x,
        "store": group * 3 - 4,
        "name": NAMES[group],
        "t": rng.uniform(0.0, 4.0, ROWS),
        "east": place * 1.5,
        "north": place % 3 * 1.0,
        "lon": place * 30.0 - 120.0,
        "lat": place * 8.0 - 30.0,
    }


def requests_of(columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Known rows with missing cells; unknown and null keys and positions; one row."""
    data = {name: column for name, column in make_data().items() if name in ("x", *columns)}
    if "store" in data:
        data["store"] = data["store"].astype(np.int64)
    odd = {name: column[:6].copy() for name, column in data.items()}
    unusual = {
        "store": [-4, -1, 999, NULL_INTEGER, 8, 2**62],
        "name": ["œuvre", "unseen", "", "two words", "0", "é" * 30],
        "t": [0.0, 9.0, np.nan, 1.0, 2.0, -1.0],
        "east": [0.0, 0.7, np.nan, 1e4, 3.0, 1.5],
        "north": [0.0, 0.3, 1.0, -1e4, np.nan, 1.0],
        "lon": [-120.0, -119.0, np.nan, 180.0, -180.0, 0.0],
        "lat": [-30.0, -31.0, 0.0, 90.0, -90.0, 1.0],
    }
    for name in columns:
        odd[name] = np.array(unusual[name])
    one = {name: column[:1] for name, column in data.items()}
    return [data, odd, one]


def expected_of(model: lmm.LMMVAE, request: dict[str, Any]) -> dict[str, np.ndarray]:
    rows = model.encode_data(request)
    mean, log_var = model.infer(rows).latent
    return {
        "standard_deviation": model.predictive(request).standard_deviation,
        "reconstruction": model.predict(request, verbose=0),
        "latent_mean": mean.numpy(),
        "latent_log_var": log_var.numpy(),
    }


def nested(request: dict[str, Any]) -> dict[str, Any]:
    """As sent: floats in float32."""
    return {
        name: np.asarray(v, np.float32) if np.asarray(v).dtype.kind == "f" else v
        for name, v in request.items()
    }


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory) -> tuple[str, lmm.LMMVAE, Path]:
    """Kind, model and folder of its SavedModel."""
    make, _ = KINDS[request.param]
    model, data = small_model(make()), make_data()
    fit_briefly(model, data, 40)
    folder = tmp_path_factory.mktemp(request.param) / "model" / "1"
    model.export(folder)
    return request.param, model, folder


class TestAnswers:
    def test_other_process_equals_predict(self, exported):
        """Both signatures through TensorFlow's C API: the numbers of `predict` and `encode`."""
        kind, model, folder = exported
        requests = requests_of(KINDS[kind][1])
        signatures = ("serving_default", "encode")
        sent = [
            {"inputs": nested(request), "signature": signature}
            for request in requests
            for signature in signatures
        ]
        responses = iter(ask(folder, sent))
        for request in requests:
            expected = expected_of(model, request)
            served, encoded = next(responses), next(responses)
            known = {f"known_{term.name}" for term in model.random_effects}
            outputs = {"reconstruction", "standard_deviation", "latent_mean"}
            assert set(served) == outputs | known
            assert set(encoded) == {"latent_mean", "latent_log_var"}
            for response in (served, encoded):
                for name in set(response) - known:
                    np.testing.assert_allclose(
                        response[name], expected[name], err_msg=name, **CLOSE
                    )

    def test_decode(self, exported):
        """`f(u) + Z B` of any latent: with the row's own latent, its reconstruction."""
        kind, model, folder = exported
        signatures = tf.saved_model.load(str(folder)).signatures
        for request in requests_of(KINDS[kind][1]):
            latent = model.encode(request)
            inputs = {**{k: v for k, v in request.items() if k != "x"}, "latent": latent}
            answer = signatures["decode"](**as_tensors(signatures["decode"], inputs))
            expected = model.reconstruct(request)
            np.testing.assert_allclose(answer["reconstruction"], expected, **CLOSE)

    def test_anomaly_score(self, exported):
        """Mean over the observed cells of squared error over the variance given the latent."""
        kind, model, folder = exported
        score = tf.saved_model.load(str(folder)).signatures["anomaly_score"]
        for request in requests_of(KINDS[kind][1]):
            answer = score(**as_tensors(score, request))
            variance = model.variance_given_latent(model.encode_data(request))
            deviation = np.sqrt(variance) * np.asarray(model.feature_scale)
            error = (request["x"] - model.reconstruct(request)) / deviation
            np.testing.assert_allclose(answer["score"], np.nanmean(error**2, axis=1), rtol=1e-3)
            squares = np.where(np.isnan(error), 0.0, error**2)
            np.testing.assert_allclose(answer["squared_residual"], squares, rtol=1e-2, atol=1e-4)

    def test_an_outlier_scores_high(self, exported):
        """A row ten standard deviations off in one feature; and that feature is named."""
        kind, model, folder = exported
        score = tf.saved_model.load(str(folder)).signatures["anomaly_score"]
        request = {
            name: column[1:40].copy() for name, column in requests_of(KINDS[kind][1])[0].items()
        }
        request["x"] = np.nan_to_num(request["x"], nan=100.0)
        request["x"][5, 2] += 10.0 * np.asarray(model.feature_scale)[2]
        answer = score(**as_tensors(score, request))
        assert np.argmax(answer["score"]) == 5
        assert np.argmax(answer["squared_residual"][5]) == 2

    def test_random_effects(self, exported):
        """Mean and deviation of each term's effect; no features are sent."""
        kind, model, folder = exported
        signatures = tf.saved_model.load(str(folder)).signatures
        for term in model.random_effects:
            effects = signatures[f"random_effects_{term.name}"]
            for request in requests_of(KINDS[kind][1]):
                own = {name: request[name] for name in term.columns}
                answer = effects(**as_tensors(effects, own))
                mean, deviation = model.term_effects(term.label, request)
                np.testing.assert_allclose(answer["mean"], mean, **CLOSE)
                np.testing.assert_allclose(answer["standard_deviation"], deviation, **CLOSE)
        if len(model.random_effects) == 1:
            assert "random_effects" in signatures

    def test_known_says_which_levels_the_model_knows(self, exported):
        """False for unknown and for null keys, and where a number is missing."""
        kind, model, folder = exported
        answer = tf.saved_model.load(str(folder)).signatures["serving_default"]
        odd = requests_of(KINDS[kind][1])[1]
        known = answer(**as_tensors(answer, odd))
        expected = {
            "plain": {},
            "integers": {"store": [1, 1, 0, 0, 1, 0]},
            "strings": {"a_name": [1, 0, 0, 1, 1, 0], "store": [1, 1, 0, 0, 1, 0]},
            "slopes": {"name": [1, 0, 0, 1, 1, 0]},
            "surface": {"east_north": [1, 1, 0, 1, 0, 1]},
            "globe": {"lon_lat": [1, 1, 0, 1, 1, 1]},
        }[kind]
        for name, flags in expected.items():
            np.testing.assert_array_equal(known[f"known_{name}"], np.array(flags, bool))

    def test_any_batch_size(self, exported):
        """No row, one row, all rows: row by row the same answer, and the same one twice."""
        kind, model, folder = exported
        answer = tf.saved_model.load(str(folder)).signatures["serving_default"]
        data = requests_of(KINDS[kind][1])[0]
        whole = answer(**as_tensors(answer, data))
        again = answer(**as_tensors(answer, data))
        for name in whole:
            np.testing.assert_array_equal(whole[name], again[name])
        for stop in (0, 1, 7):
            part = {name: column[:stop] for name, column in data.items()}
            result = answer(**as_tensors(answer, part))
            for name in whole:
                assert result[name].shape[0] == stop
                if stop:
                    np.testing.assert_allclose(
                        np.float32(result[name]), np.float32(whole[name][:stop]), **CLOSE
                    )


def as_tensors(answer: Any, request: dict[str, Any]) -> dict[str, tf.Tensor]:
    specs = answer.structured_input_signature[1]
    return {name: tf.constant(value, specs[name].dtype) for name, value in request.items()}


class TestGraph:
    def test_signatures(self, exported):
        """Raw columns in, one input each, any number of rows."""
        kind, _, folder = exported
        signatures = tf.saved_model.load(str(folder)).signatures
        whole = {"serving_default", "encode", "anomaly_score"}
        assert set(signatures) >= whole | {"decode"}
        dtypes = {"store": tf.int64, "name": tf.string}
        shapes = {"x": [None, 3], "latent": [None, 1]}
        for signature in (*whole, "decode"):
            specs = signatures[signature].structured_input_signature[1]
            first = "latent" if signature == "decode" else "x"
            assert set(specs) == {first, *KINDS[kind][1]}
            for name, spec in specs.items():
                assert spec.dtype == dtypes.get(name, tf.float32)
                assert spec.shape.as_list() == shapes.get(name, [None])
            for name, spec in signatures[signature].structured_outputs.items():
                assert spec.dtype == (tf.bool if name.startswith("known_") else tf.float32)

    def test_operations_run_anywhere(self, exported):
        """No random numbers and no factorisations: linear algebra is done before.

        Only `condition` of a term with several coefficients solves for them in the graph.
        """
        _, model, folder = exported
        solving = {f"condition_{t.name}" for t in model.random_effects if t.basis_size > 1}
        solving |= {"condition"} if len(model.random_effects) == 1 and solving else set()
        for name, function in tf.saved_model.load(str(folder)).signatures.items():
            graph = function.graph.as_graph_def()
            nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
            found = {node.op for node in nodes}
            unportable = {op for op in found if any(part in op for part in UNPORTABLE)}
            assert unportable <= ({"Cholesky"} if name in solving else set()), name
            if name in ("serving_default", "encode", "decode", "anomaly_score"):
                assert "MatMul" in found

    def test_only_what_answers_need_is_stored(self, exported):
        """Networks, scales and one table per term; neither folds' tables nor an optimizer."""
        _, model, folder = exported
        reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        sizes = [np.prod(shape) for shape in reader.get_variable_to_shape_map().values()]
        kept = [*model.networks.variables, *model.latent_prior.variables]
        for term, effects in model.mixed_model.pairs():
            table = effects.table
            kept += [table.effects, table.eigenvalues, *effects.prior.variables, *term.variables]
            kept += [effects.signal, effects.axes]
            kept += [table.rotation] if term.basis_size > 1 else []
            kept += [table.cell_share] if table.has_missing_cells else []
            # New rows are added to what a surface knows of its places.
            kept += [] if term.has_levels else [table.gram, table.count]
        expected = sum(int(np.prod(variable.shape)) for variable in kept)
        assert sum(sizes) <= expected + 4 * 3 + 10


class TestFolder:
    @pytest.fixture(scope="class")
    def model(self):
        model, data = small_model([lmm.RandomIntercept("name")]), make_data()
        fit_briefly(model, data, 40)
        return model

    def test_failed_export_keeps_the_earlier_one(self, model, tmp_path, monkeypatch):
        """An export that fails leaves the old folder, and nothing beside it."""
        model.export(tmp_path / "model")
        before = (tmp_path / "model" / "saved_model.pb").read_bytes()

        def fail(module: Any, path: str, **kwargs: Any) -> None:
            Path(path).mkdir()
            raise OSError("No space left on device")

        monkeypatch.setattr(saved_model.tf.saved_model, "save", fail)
        with pytest.raises(OSError, match="No space"):
            model.export(tmp_path / "model")
        assert (tmp_path / "model" / "saved_model.pb").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_second_export_replaces_the_first(self, model, tmp_path):
        """The folder holds the last export only; strings and paths are both fine."""
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "old").touch()
        model.export(str(tmp_path / "model"), verbose=False)
        assert not (tmp_path / "model" / "old").exists()
        assert tf.saved_model.contains_saved_model(str(tmp_path / "model"))

    def test_folder_can_be_moved(self, model, tmp_path):
        """Keys are assets of the SavedModel: it needs no file outside of its folder."""
        model.export(tmp_path / "model")
        (tmp_path / "model").rename(tmp_path / "elsewhere")
        request = {"x": [[100.0, 0.0, -5.0]], "name": ["œuvre"]}
        (response,) = ask(tmp_path / "elsewhere", [{"inputs": request}])
        assert response["known_name"] == [True]
        request["name"] = np.array(request["name"])
        np.testing.assert_allclose(response["reconstruction"], model.reconstruct(request), **CLOSE)

    def test_updated_model(self, model, tmp_path):
        """Levels added after training are served."""
        model.update_random_effects({"x": make_data()["x"][:2], "name": ["fresh", "fresh"]})
        model.export(tmp_path / "model")
        answer = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
        result = answer(x=tf.constant([[100.0, 0.0, -5.0]]), name=tf.constant(["fresh"]))
        assert result["known_name"].numpy().tolist() == [True]

    def test_not_fitted(self, tmp_path):
        """Nothing is written for a model that knows nothing."""
        with pytest.raises(ValueError, match=r"call `model.adapt\(data\)` first"):
            small_model([]).export(tmp_path / "model")
        assert not list(tmp_path.iterdir())

    def test_other_formats_are_refused(self, model, tmp_path):
        """Only SavedModels, with the signatures as documented."""
        for options in ({"format": "onnx"}, {"input_signature": []}):
            with pytest.raises(ValueError, match="only export format is 'tf_saved_model'"):
                model.export(tmp_path / "model", **options)


class TestNamesOfInputs:
    """Columns become inputs of the SavedModel, and TensorFlow takes not every name."""

    @staticmethod
    def fitted(*columns: str) -> lmm.LMMVAE:
        data = {"x": make_data()["x"], **{name: make_data()["store"] for name in columns}}
        model = small_model([lmm.RandomIntercept(name) for name in columns])
        model.adapt(data)
        model.fitted.assign(1.0)
        return model

    def test_usual_names(self, tmp_path):
        """The requests go by the columns' own names, whatever they begin with."""
        names = ("1st", "Store-2.x")
        model = self.fitted(*names)
        model.export(tmp_path / "model")
        request = {"x": make_data()["x"][:2], **{name: np.array([-4, 99]) for name in names}}
        (response,) = ask(tmp_path / "model", [{"inputs": nested(request)}])
        assert all(response[f"known_{name}"] == [True, False] for name in names)

    @pytest.mark.parametrize("name", ["my store", "straße", "_store", "class", "self"])
    def test_refused(self, name, tmp_path):
        """An error that names the column, and nothing written; TensorFlow's would name none."""
        model = self.fitted(name)
        message = rf"The column '{name}' cannot be the input of a SavedModel: rename it in the "
        for write in (model.export, partial(publish, model)):
            with pytest.raises(ValueError, match=f"{message}.*Received: column='{name}'"):
                write(tmp_path / "shop" / "1")
        assert not list(tmp_path.iterdir())
        module = ServingModule(model, None)
        with pytest.raises((TypeError, ValueError)):
            tf.saved_model.save(module, str(tmp_path / "raw"), signatures=module.signatures())

    @pytest.mark.parametrize(
        ("names", "column", "other"),
        [
            (("Store", "store"), "store", "Store"),
            (("a.b", "a_b"), "a_b", "a.b"),
            (("X",), "X", "x"),
            (("latent",), "latent", "latent"),
            (("support", "store"), "support", "support"),
            (("store", "support_store", "b"), "support_store", "support_store"),
        ],
    )
    def test_too_much_alike(self, names, column, other, tmp_path):
        """Two inputs of one signature that TensorFlow would take for one."""
        message = f"'{column}' cannot be the input of a SavedModel beside the input '{other}'"
        with pytest.raises(ValueError, match=f"{message}.*Received: column='{column}'"):
            self.fitted(*names).export(tmp_path / "model")
        assert not list(tmp_path.iterdir())
