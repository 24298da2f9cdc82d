"""Publishing for TensorFlow Serving: all of it in place, checked, or nothing."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
from keras_lmmvae import cli
from keras_lmmvae.export import Published, answer_requests, publish, publishing
from keras_lmmvae.export.model_card import data_fingerprint, model_card, render_card
from keras_lmmvae.export.publishing import CARD_FILE, read_card
from keras_lmmvae.export.requests import example_columns, example_requests
from keras_lmmvae.export.verification import (
    expected_answers,
    served_answers,
    verify_saved_model,
)
from keras_lmmvae.export.warmup import WARMUP_FILE, read_warmup_requests, write_warmup_requests
from keras_lmmvae.runs import command
from keras_lmmvae.runs.folder import MODEL_FILE, load_run
from keras_lmmvae.validation import NULL_INTEGER

RNG = np.random.default_rng(0)
STORE = RNG.integers(0, 9, 150)
DATA = {
    "x": RNG.normal(size=(9, 4))[STORE] + RNG.normal(size=(150, 4)),
    "store": STORE,
    "city": np.array(["Toledo", "Malmö", "São Paulo"])[STORE % 3],
    "t": RNG.uniform(0.0, 5.0, 150),
    "east": STORE * 1.0,
    "north": STORE % 3 * 1.0,
}
TERMS: dict[str, Any] = {
    "plain": list,
    "intercepts": lambda: [lmm.RandomIntercept("store"), lmm.RandomIntercept("city")],
    "all": lambda: [
        lmm.RandomSlopes("city", time="t", degree=2),
        lmm.SpatialEffect(("east", "north")),
        lmm.RandomIntercept("store"),
    ],
}


def fitted(
    kind: str, data: dict[str, np.ndarray] = DATA, epochs: int = 1, **options: Any
) -> lmm.LMMVAE:
    model = small_model(TERMS[kind](), **options)
    fit_briefly(model, data, 50, epochs=epochs)
    return model


@pytest.fixture(scope="module")
def model() -> lmm.LMMVAE:
    return fitted("all")


@pytest.fixture(scope="module")
def plain() -> lmm.LMMVAE:
    """The model that is exported fastest."""
    return fitted("plain")


@pytest.fixture(scope="module")
def published(model: lmm.LMMVAE, tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(model, tmp_path_factory.mktemp("models") / "shop" / "7")


@pytest.mark.slow
class TestPublish:
    @pytest.mark.parametrize(
        ("kind", "posterior"),
        [
            ("plain", "conjugate"),
            pytest.param("intercepts", "conjugate"),
            pytest.param("all", "amortized"),
        ],
    )
    def test_every_signature_answers(self, kind, posterior, tmp_path):
        """One request a signature, none left out, and the numbers of the Python model."""
        self.check_answers(
            publish(fitted(kind, posterior=posterior), tmp_path / "shop" / "1"),
            can_condition=kind != "plain" and posterior == "conjugate",
        )

    def test_every_signature_of_all_terms_answers(self, published):
        self.check_answers(published, can_condition=True)

    @staticmethod
    def check_answers(published: Published, can_condition: bool) -> None:
        requests = read_warmup_requests(published.folder)
        served = {request["signature"] for request in requests}
        assert {"serving_default", "encode", "decode", "anomaly_score"} <= served
        assert ("condition_store" in served) == can_condition
        assert published.requests == len(requests)
        assert published.largest_difference < 1e-4

    def test_folder(self, published):
        """`BASE/<integer>/saved_model.pb`, with card and warm-up beside it, and nothing else."""
        assert published.folder.parts[-2:] == ("shop", "7")
        assert (published.folder / "saved_model.pb").exists()
        assert (published.folder / WARMUP_FILE).exists()
        assert read_card(published.folder) == json.loads(json.dumps(published.card))
        assert [path.name for path in published.folder.parent.iterdir()] == ["7"]

    def test_next_version(self, plain, tmp_path):
        """Without a number: one more than the largest there."""
        (tmp_path / "shop" / "12").mkdir(parents=True)
        (tmp_path / "shop" / "notes").mkdir()
        assert publish(plain, tmp_path / "shop", warmup=False).folder.name == "13"

    def test_a_version_is_never_replaced(self, plain, tmp_path):
        (tmp_path / "shop" / "1").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"version is there already.*Received: filepath="):
            publish(plain, tmp_path / "shop" / "1")
        assert list((tmp_path / "shop" / "1").iterdir()) == []

    def test_a_version_that_appears_meanwhile_stays(self, plain, tmp_path, monkeypatch):
        """Another process publishes the same version while this one writes."""
        write = publishing.write_saved_model

        def write_late(model: lmm.LMMVAE, folder: Path) -> None:
            write(model, folder)
            (tmp_path / "shop" / "1").mkdir()
            (tmp_path / "shop" / "1" / "theirs").touch()

        monkeypatch.setattr(publishing, "write_saved_model", write_late)
        with pytest.raises(ValueError, match=r"version is there already.*Received: filepath="):
            publish(plain, tmp_path / "shop" / "1", warmup=False)
        assert [path.name for path in (tmp_path / "shop").rglob("*")] == ["1", "theirs"]

    def test_refuses_on_a_mismatch(self, plain, tmp_path, monkeypatch):
        """An export of other weights does not pass for this model's: nothing is published."""
        other, write = fitted("plain", seed=5), publishing.write_saved_model
        monkeypatch.setattr(publishing, "write_saved_model", lambda _, folder: write(other, folder))
        message = r"other numbers.*in output '\w+' of signature 'serving_default'.*Received: "
        with pytest.raises(ValueError, match=message):
            publish(plain, tmp_path / "shop" / "1")
        assert list((tmp_path / "shop").iterdir()) == []

    def test_refuses_a_model_that_does_not_answer(self, plain, tmp_path, monkeypatch):
        """An export without its variables cannot be loaded: nothing is published."""
        write = publishing.write_saved_model

        def write_half(model: lmm.LMMVAE, folder: Path) -> None:
            write(model, folder)
            shutil.rmtree(folder / "variables")

        monkeypatch.setattr(publishing, "write_saved_model", write_half)
        with pytest.raises(ValueError, match=r"does not answer: \w+: .*variables"):
            publish(plain, tmp_path / "shop" / "1")
        assert list((tmp_path / "shop").iterdir()) == []

    def test_not_fitted(self, tmp_path):
        with pytest.raises(ValueError, match=r"call `model.adapt\(data\)` first"):
            publish(small_model([]), tmp_path / "shop" / "1")
        assert not (tmp_path / "shop").exists()

    def test_without_serving_api(self, plain, tmp_path, monkeypatch):
        """An error with the remedy; without warm-up requests the model is published."""
        monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
        with pytest.raises(ImportError, match=r"pip install keras-lmmvae\[serving\]"):
            publish(plain, tmp_path / "shop" / "1")
        assert list((tmp_path / "shop").iterdir()) == []
        published = publish(plain, tmp_path / "shop" / "1", warmup=False)
        assert not (published.folder / WARMUP_FILE).exists()
        assert published.requests == len(example_requests(plain))


@pytest.mark.slow
class TestProcess:
    """The process that answers with TensorFlow, without this package."""

    @pytest.fixture(scope="class")
    def echo(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Signatures: one that returns what it gets, one that ends the process, one too short."""

        def echo(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {name: tf.identity(values) for name, values in columns.items()}

        def die(x: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.control_dependencies([tf.raw_ops.Abort(error_msg="gone")]):
                return {"x": tf.identity(x)}

        x = tf.TensorSpec((None, 2), tf.float32, "x")
        columns = {
            "x": x,
            "key": tf.TensorSpec((None,), tf.int64, "key"),
            "a.name-x": tf.TensorSpec((None,), tf.string, "a.name-x"),
        }
        wide = tf.TensorSpec((None, 4), tf.float32, "x")
        signatures = {
            "echo": tf.function(echo, input_signature=[columns]),
            "die": tf.function(die, input_signature=[x]),
            "encode": tf.function(lambda x: {"other": x}, input_signature=[wide]),
        }
        folder = tmp_path_factory.mktemp("echo")
        tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)
        return folder

    def test_values_arrive_as_they_are(self, echo):
        """Missing and infinite cells, float32 to the last bit, all of int64, any text or name."""
        third = float(np.float32(1.0) / np.float32(3.0))
        x = [[np.nan, np.inf], [-np.inf, third], [float(np.float32(1e-45)), -0.0]]
        keys, names = [NULL_INTEGER, 2**53 + 1, 2**63 - 1], ["", "Malmö 数据", 'a "quote"\n\0']
        arrays = {"x": np.array(x, np.float32), "key": np.array(keys, np.int64)}
        texts = np.array([name.encode() for name in names], object)
        inputs = ({"x": x, "key": keys, "a.name-x": names}, {**arrays, "a.name-x": texts})
        for answer in served_answers(echo, [{"signature": "echo", "inputs": i} for i in inputs]):
            np.testing.assert_array_equal(answer["x"], x)
            assert np.signbit(answer["x"][2][1])
            assert answer["key"] == keys
            assert answer["a.name-x"] == names

    @pytest.mark.parametrize(
        ("signature", "inputs", "message"),
        [
            ("die", {"x": [[0.0, 0.0]]}, r"process died.*gone.*Received: exit_status=-?\d+"),
            ("absent", {}, r"no such signature, expected one of \['die', 'echo', 'enc.*'absent'"),
            ("echo", {"x": []}, r"missing or unknown.*\['a.name-x', 'key', 'x'\].*inputs=\['x'\]"),
        ],
    )
    def test_failures(self, echo, signature, inputs, message):
        """One ValueError, whether the process dies or TensorFlow has nothing to run."""
        with pytest.raises(ValueError, match=f"(?s)exported model does not answer: .*{message}"):
            served_answers(echo, [{"signature": signature, "inputs": inputs}])

    def test_an_output_left_out(self, echo, plain):
        """A signature that answers less than the Python model does not pass."""
        request = {"signature": "encode", "inputs": {"x": np.zeros((2, 4), np.float32)}}
        message = r"leaves out.*'latent_mean' of signature 'encode'.*outputs=\['other'\]"
        with pytest.raises(ValueError, match=message):
            verify_saved_model(plain, echo, [request])

    def test_it_cannot_import_this_package(self, published, tmp_path):
        """After an answer neither the package nor Keras is loaded, nor can they be."""
        request = {"signature": "random_effects_store", "inputs": {"store": [0]}}
        (tmp_path / "requests.json").write_text(json.dumps([request]))
        names = [str(published.folder), "requests.json", "answers.json"]
        code = f"""
import runpy, sys
runpy.run_path({answer_requests.__file__!r})["main"](*{names!r})
assert "tensorflow" in sys.modules
for name in ("keras_lmmvae", "keras_lmmvae.validation", "keras"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(name)
"""
        command = [sys.executable, "-P", "-c", code]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        (answer,) = json.loads((tmp_path / "answers.json").read_text())["answers"]
        assert answer["known"] == [True]

    def test_unknown_signature(self, model):
        with pytest.raises(ValueError, match=r"no such signature.*signature='x'"):
            expected_answers(model, "x", {})


class TestRequests:
    def test_usual_and_unusual_rows(self, model):
        """Two known rows, unseen keys, null keys with a missing cell."""
        columns = example_columns(model)
        assert np.isnan(columns["x"][3, 0])
        assert columns["store"].tolist()[3] == NULL_INTEGER
        assert columns["city"].tolist()[3] == ""
        codes = model.encode_data(columns)["_effects"]
        assert codes["store"]["codes"].numpy().tolist() == [0, 8, -1, -2]
        assert codes["city"]["codes"].numpy().tolist() == [0, 2, -1, -2]
        assert codes["east_north"]["codes"].numpy().tolist() == [0, 0, 0, -2]

    def test_warmup_round_trip(self, model, tmp_path):
        """What TensorFlow Serving will replay is what was asked, bytes and all."""
        requests = example_requests(model)
        write_warmup_requests(tmp_path, requests, "shop")
        again = read_warmup_requests(tmp_path)
        assert [r["signature"] for r in again] == [r["signature"] for r in requests]
        for one, other in zip(requests, again, strict=True):
            assert set(one["inputs"]) == set(other["inputs"])
            for name, values in one["inputs"].items():
                got = other["inputs"][name]
                if got.dtype == object:
                    got = np.array([text.decode() for text in got.ravel()]).reshape(got.shape)
                    assert got.tolist() == np.asarray(values).tolist()
                else:
                    np.testing.assert_array_equal(got, values)


class TestCard:
    def test_facts(self, model):
        card = model_card(model)
        assert card["features"] == 4
        assert [term["kind"] for term in card["terms"]] == [
            "RandomSlopes",
            "SpatialEffect",
            "RandomIntercept",
        ]
        assert card["terms"][2]["levels"] == 9
        assert card["terms"][1]["length_scale"] > 0.0
        assert set(card["icc"]) == {"city", "east_north", "store"}
        assert 0.0 < sum(card["icc"].values()) < 1.0
        assert card["versions"]["keras_lmmvae"] == lmm.__version__
        json.dumps(card)

    def test_icc_of_one_factor(self):
        """Effect variance over effect and noise variance, mean over features."""
        model = small_model([lmm.RandomIntercept("store")])
        fit_briefly(model, DATA, 50)
        table = model.variance_components()
        expected = (table.loc["store"] / table.sum()).mean()
        assert model_card(model)["icc"]["store"] == pytest.approx(expected, rel=1e-5)

    def test_fingerprint_is_of_the_data(self):
        """The same rows in another order: the same; one row less: another."""
        order = np.random.default_rng(1).permutation(150)
        shuffled = {name: values[order] for name, values in DATA.items()}
        fewer = {name: values[:-1] for name, values in DATA.items()}

        def fingerprint(data: dict[str, np.ndarray] = DATA, seed: int = 0) -> str:
            return data_fingerprint(fitted("intercepts", data, seed=seed, epochs=0))

        whole = fingerprint()
        assert fingerprint(fewer) != whole
        assert len(whole) == 64
        assert fingerprint(seed=3) == whole
        assert fingerprint(shuffled) == whole

    def test_markdown(self, model):
        text = render_card(model_card(model))
        assert "RandomIntercept of store: 9 levels; mean variance store" in text
        assert "Data fingerprint" in text
        assert "never seen" in text


def run_main(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["keras-lmmvae", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.slow
class TestCommands:
    @pytest.fixture(scope="class")
    def run(self, model, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("run")
        model.save(folder / MODEL_FILE)
        return folder

    def test_export_then_inspect(self, run, tmp_path, monkeypatch, capsys):
        """From a run to an answer without Python; the same card before and after."""
        target = tmp_path / "shop"
        assert run_main(monkeypatch, "export", str(run), "-o", str(target)) == 0
        printed = " ".join(capsys.readouterr().out.split())
        count = len(read_warmup_requests(target / "1"))
        expected = f"{count} warm-up requests were answered by TensorFlow in a process without "
        assert expected + "keras_lmmvae and Keras." in printed
        assert run_main(monkeypatch, "inspect", str(run)) == 0
        before = capsys.readouterr().out
        assert run_main(monkeypatch, "inspect", str(target / "1")) == 0
        assert capsys.readouterr().out == before
        assert "RandomSlopes of city, t" in before

    def test_errors_are_one_line(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "damaged.keras").write_bytes(b"PK\x03\x04 no")
        for path, message in (("nothing", "There is no model"), ("damaged.keras", "damaged")):
            for arguments in (["export", "-o", str(tmp_path / "m")], ["inspect"]):
                assert run_main(monkeypatch, *arguments, str(tmp_path / path)) == 2
                captured = capsys.readouterr().err
                assert message in captured
                assert "Received: path=" in captured
        assert not (tmp_path / "m").exists()

    def test_foreign_model(self, tmp_path):
        import keras

        other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        other.save(tmp_path / "other.keras")
        with pytest.raises(ValueError, match=r"another kind of model.*model='Sequential'"):
            load_run(tmp_path / "other.keras")

    def test_no_card(self, tmp_path):
        (tmp_path / CARD_FILE).parent.mkdir()
        (tmp_path / CARD_FILE).write_text("{")
        with pytest.raises(ValueError, match="holds no model card"):
            command.inspect(tmp_path, Console(file=io.StringIO()))


def test_grpc_request_of_the_page():
    """The message that docs/serving.md builds: every input of the demo's request, typed."""
    from tensorflow_serving.apis import predict_pb2

    inputs = {"x": [[0.0] * 13] * 3, "easting": [1.0, 2.0, float("nan")], "syear": [1, 2, 3]}
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "houses"
    for name, values in inputs.items():
        dtype = np.int64 if name == "syear" else np.float32
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(values, dtype)))
    again = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert tf.make_ndarray(again.inputs["x"]).shape == (3, 13)
    assert tf.make_ndarray(again.inputs["syear"]).dtype == np.int64
    assert np.isnan(tf.make_ndarray(again.inputs["easting"])[2])
