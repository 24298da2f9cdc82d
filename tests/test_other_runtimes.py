"""The export in runtimes other than TensorFlow: the same numbers in onnxruntime and OpenVINO.

    pip install onnx onnxruntime tf2onnx openvino openvino-tokenizers

Left out where they are not installed.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import small_model
from test_export import KINDS, make_data, requests_of

import keras_lmmvae as lmm

CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.fixture(scope="module", params=["strings", "slopes", "surface"])
def model(request) -> tuple[str, lmm.LMMVAE]:
    made, data = small_model(KINDS[request.param][0]()), make_data()
    made.adapt(data)
    made.compile("adam")
    made.fit(data, epochs=1, batch_size=40, verbose=0)
    return request.param, made


def requests(kind: str) -> list[dict[str, Any]]:
    """Known, unknown and null keys, missing cells and positions."""
    return requests_of(KINDS[kind][1])[:2]


def within_32_bits(request: dict[str, Any]) -> dict[str, Any]:
    """OpenVINO computes int64 in 32 bits: other integer keys, the null key too, fail there."""
    if "store" not in request:
        return request
    keys = np.asarray(request["store"])
    return {**request, "store": np.where((keys > -(2**31)) & (keys < 2**31), keys, 999)}


def compare(answer: dict[str, Any], made: lmm.LMMVAE, request: dict[str, Any]) -> None:
    prediction = made.predictive(request)
    np.testing.assert_allclose(answer["reconstruction"], prediction.mean, **CLOSE)
    np.testing.assert_allclose(answer["standard_deviation"], prediction.standard_deviation, **CLOSE)
    codes = made.encode_data(request)["_effects"]
    for term in made.random_effects:
        known = codes[term.label]["codes"].numpy() >= 0
        np.testing.assert_array_equal(answer[f"known_{term.name}"], known)


@needs("onnx", "onnxruntime", "tf2onnx")
def test_onnxruntime(model, tmp_path):
    """Converted by tf2onnx, strings and integer keys alike."""
    import onnxruntime

    kind, made = model
    made.export(tmp_path / "1")
    command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(tmp_path / "1")]
    command += ["--output", str(tmp_path / "m.onnx"), "--opset", "17"]
    command += ["--signature_def", "serving_default"]
    subprocess.run(command, check=True, capture_output=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    for request in requests(kind):
        inputs = {}
        for one in session.get_inputs():
            name = one.name.split(":")[0]
            values = np.asarray(request[name])
            types = {"tensor(string)": object, "tensor(int64)": np.int64}
            inputs[one.name] = values.astype(types.get(one.type, np.float32))
        names = [one.name for one in session.get_outputs()]
        compare(dict(zip(names, session.run(None, inputs), strict=True)), made, request)


OPENVINO = """
import json, sys
import numpy as np, openvino, openvino_tokenizers
core = openvino.Core()
model = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
kinds = {one.get_any_name(): one.get_element_type().to_string() for one in model.inputs}
answers = []
for request in json.loads(sys.stdin.read()):
    inputs = {
        name: np.array(values, {"i64": np.int64, "f32": np.float32}.get(kinds[name]))
        for name, values in request.items()
    }
    result = model(inputs)
    answers.append({key.get_any_name(): value.tolist() for key, value in result.items()})
print(json.dumps(answers))
"""


@needs("openvino", "openvino_tokenizers")
def test_openvino(model, tmp_path):
    """Read as it is, keys in the graph; in a process away from TensorFlow's libraries."""
    kind, made = model
    made.export(tmp_path / "1", keys_in_graph=True)
    asked = [within_32_bits(request) for request in requests(kind)]
    text = json.dumps([{k: np.asarray(v).tolist() for k, v in one.items()} for one in asked])
    command = [sys.executable, "-c", OPENVINO, str(tmp_path / "1")]
    process = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    for request, answer in zip(asked, json.loads(process.stdout), strict=True):
        compare(answer, made, request)


def test_keys_in_the_graph_need_no_assets(model, tmp_path):
    """One folder with keys as files, one without; both load."""
    _, made = model
    made.export(tmp_path / "files")
    made.export(tmp_path / "graph", keys_in_graph=True)
    count = sum(len(term.vocabularies()) for term in made.random_effects)
    assert len(list((tmp_path / "files" / "assets").iterdir())) == count
    assert not list(Path(tmp_path / "graph" / "assets").iterdir())
