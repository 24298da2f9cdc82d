"""The export in runtimes other than TensorFlow: the same numbers in onnxruntime and OpenVINO."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from small_models import fit_briefly, small_model
from test_export import KINDS, make_data, requests_of

import keras_lmmvae as lmm

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 1e-3, "atol": 1e-3}
SERVED = ("strings", "slopes", "surface")

each_kind = pytest.mark.parametrize("kind", SERVED)


@pytest.fixture(scope="module")
def models() -> dict[str, lmm.LMMVAE]:
    """A fitted model of each kind."""
    made, data = {}, make_data()
    for kind in SERVED:
        made[kind] = small_model(KINDS[kind][0]())
        fit_briefly(made[kind], data, 40)
    return made


@pytest.fixture(scope="module")
def exports(
    models: dict[str, lmm.LMMVAE], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder of each kind that holds two SavedModels: keys in "files" and in the "graph"."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in SERVED}
    for kind, folder in folders.items():
        models[kind].export(folder / "files")
        models[kind].export(folder / "graph", keys_in_graph=True)
    return folders


def run(code: str, *arguments: Any, **options: Any) -> str:
    """Runs Python code in a process away from this one's TensorFlow."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout


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


TO_ONNX = """
import sys
for package in ("keras_lmmvae", "keras", "tf_keras"):
    sys.modules[package] = None
from tf2onnx import convert
for folder in sys.argv[1:]:
    sys.argv = ["tf2onnx", "--saved-model", folder + "/files", "--output", folder + "/m.onnx"]
    sys.argv += ["--opset", "17", "--signature_def", "serving_default"]
    convert.main()
"""


@pytest.fixture(scope="module")
def converted(exports: dict[str, Path]) -> dict[str, Path]:
    """The folders of `exports`, now with ONNX models that tf2onnx has made of them."""
    run(TO_ONNX, *exports.values())
    return exports


@each_kind
def test_onnxruntime(kind, models, converted):
    """Converted by tf2onnx, strings and integer keys alike."""
    session = onnxruntime.InferenceSession(str(converted[kind] / "m.onnx"))
    for request in requests(kind):
        inputs = {}
        for one in session.get_inputs():
            name = one.name.split(":")[0]
            values = np.asarray(request[name])
            types = {"tensor(string)": object, "tensor(int64)": np.int64}
            inputs[one.name] = values.astype(types.get(one.type, np.float32))
        names = [one.name for one in session.get_outputs()]
        answer = dict(zip(names, session.run(None, inputs), strict=True))
        compare(answer, models[kind], request)


OPENVINO = """
import json, sys
import numpy as np, openvino, openvino_tokenizers
core, answers = openvino.Core(), []
model = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
kinds = {one.get_any_name(): one.get_element_type().to_string() for one in model.inputs}
for request in json.loads(sys.stdin.read()):
    inputs = {
        name: np.array(values, {"i64": np.int64, "f32": np.float32}.get(kinds[name]))
        for name, values in request.items()
    }
    result = model(inputs)
    answers.append({key.get_any_name(): value.tolist() for key, value in result.items()})
print(json.dumps(answers))
"""


@each_kind
def test_openvino(kind, models, exports):
    """Read as it is, keys in the graph; in a process away from TensorFlow's libraries."""
    asked = [within_32_bits(request) for request in requests(kind)]
    plain = [{k: np.asarray(v).tolist() for k, v in one.items()} for one in asked]
    answers = json.loads(run(OPENVINO, exports[kind] / "graph", input=json.dumps(plain)))
    for request, answer in zip(asked, answers, strict=True):
        compare(answer, models[kind], request)


@each_kind
def test_keys_in_the_graph_need_no_assets(kind, models, exports):
    """One folder with keys as files, one without; both load."""
    count = sum(len(term.vocabularies()) for term in models[kind].random_effects)
    assert len(list((exports[kind] / "files" / "assets").iterdir())) == count
    assert not list((exports[kind] / "graph" / "assets").iterdir())
