"""SavedModels answer through TensorFlow's C API as they do through its Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as SavedModelMessage

from keras_lmmvae.export import c_process
from keras_lmmvae.export._protobuf import parse_signatures
from keras_lmmvae.export._tensor import Tensor, TensorSpec
from keras_lmmvae.export.c_api import SavedModel
from keras_lmmvae.export.c_process import find_library_dir, run_in_c_process

SCRIPT = Path(c_process.__file__).with_name("c_api.py")
LIBRARIES = str(find_library_dir())
SHORT = "x" * 22  # the longest string that a TF_TString holds in place
STRINGS = ["", "a", "æøå 数据 🙂", SHORT, SHORT + "y", "long " * 100, "nul\0inside", "unseen"]
NUMBERS = [7, 2**53 + 1, -(2**63), 2**63 - 1, 0]


def build(vocabulary: Path) -> tuple[tf.Module, dict[str, Any]]:
    """A matrix product, two lookups, and endpoints of all types; and their signatures."""
    module = tf.Module()
    module.weight = tf.Variable(tf.reshape(tf.range(12.0), (4, 3)) / 4.0)
    line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    lines = tf.lookup.TextFileInitializer(str(vocabulary), tf.string, line, tf.int64, number)
    module.strings = tf.lookup.StaticHashTable(lines, default_value=-1)
    pairs = tf.lookup.KeyValueTensorInitializer(tf.constant(NUMBERS[:4], tf.int64), range(4))
    module.numbers = tf.lookup.StaticHashTable(pairs, default_value=-1)

    def project(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x @ module.weight}

    def lookup(key: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
        codes = {"key": module.strings.lookup(key), "number": module.numbers.lookup(number)}
        return {**codes, "joined": tf.strings.join([key, b"\xff"]), "same": tf.identity(key)}

    def types(d: tf.Tensor, i: tf.Tensor, flag: tf.Tensor) -> dict[str, tf.Tensor]:
        parts = {"twice": 2.0 * d, "rows": tf.shape(d)[0], "table": tf.strings.as_string(d)}
        return {**parts, "finite": tf.math.is_finite(d), "next": i + 1, "not": ~flag}

    def failing(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"x": tf.reshape(x, (-1, 2))}

    def half(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"x": tf.cast(x, tf.float16)}

    def spec(dtype: tf.DType, *shape: int | None) -> tf.TensorSpec:
        return tf.TensorSpec(shape, dtype)

    specs = [
        (project, [spec(tf.float32, None, 4)]),
        (lookup, [spec(tf.string, None), spec(tf.int64, None)]),
        (types, [spec(tf.float64, None, 2), tf.TensorSpec(None, tf.int32), spec(tf.bool)]),
        (failing, [spec(tf.float32, None)]),
        (half, [spec(tf.float32, None)]),
    ]
    return module, {f.__name__: tf.function(f, input_signature=given) for f, given in specs}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel, without the vocabulary file that it was built from."""
    folder = tmp_path_factory.mktemp("c_api")
    vocabulary = folder / "vocabulary.txt"
    vocabulary.write_text("\n".join(STRINGS[1:6]) + "\n", encoding="utf-8")
    module, functions = build(vocabulary)
    signatures = {"serving_default": functions.pop("project"), **functions}
    tf.saved_model.save(module, str(folder / "model"), signatures=signatures)
    vocabulary.unlink()
    return folder / "model"


def run_script(
    *arguments: str, before: str = "", request: Any = None
) -> subprocess.CompletedProcess[str]:
    """Runs the script inside an isolated interpreter that reports its modules at the end."""
    code = (
        "import atexit, json, runpy, sys, types\n"
        "report = lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
        f"sys.argv = {['c_api.py', *arguments]!r}\n{before}\natexit.register(report)\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    command = [sys.executable, "-S", "-I", "-c", code]
    return subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, check=False
    )


def test_c_process_equals_python(model_dir: Path) -> None:
    """All signatures, types and batch sizes: C API = Python, exactly."""
    rng = np.random.default_rng(0)
    doubles = [[np.nan, np.inf], [-np.inf, 1e300], [0.1, -0.0]]
    cases: list[tuple[str, Any]] = [
        *(("serving_default", {"x": rng.integers(-8, 9, (n, 4)) / 2.0}) for n in (3, 1, 250)),
        ("lookup", {"key": STRINGS, "number": [*NUMBERS, 1, 2, 3]}),
        ("lookup", {"key": [], "number": []}),
        ("types", {"d": doubles, "i": [[[-(2**31)]]], "flag": True}),
        ("types", {"d": doubles[:1], "i": 5, "flag": False}),
    ]
    requests = [{"signature": name, "inputs": inputs} for name, inputs in cases]
    functions = tf.saved_model.load(str(model_dir)).signatures
    responses = run_in_c_process(model_dir, requests)
    for (signature, inputs), response in zip(cases, responses, strict=True):
        specs = functions[signature].structured_input_signature[1]
        feeds = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
        expected = functions[signature](**feeds)
        assert response["signature"] == signature
        assert set(response["outputs"]) == set(expected)
        for name, value in expected.items():
            assert response["dtypes"][name] == value.dtype.name
            assert response["shapes"][name] == value.shape
            actual, wanted = np.reshape(response["outputs"][name], value.shape), value.numpy()
            if value.dtype == tf.string:
                wanted = np.char.decode(wanted.astype(bytes), "utf-8", "surrogateescape")
            np.testing.assert_array_equal(actual, wanted, err_msg=name)
    codes = responses[3]["outputs"]
    assert codes["key"] == [-1, 0, 1, 2, 3, 4, -1, -1]  # lines of the asset
    assert codes["number"] == [0, 1, 2, 3, -1, -1, -1, -1]
    assert codes["same"] == STRINGS


def test_requests_take_arrays_tensors_bytes_and_no_rows(model_dir: Path) -> None:
    """An array, an eager tensor and nested lists are one request; `[]` is a batch of no rows."""
    x = np.arange(8, dtype="float32").reshape(2, 4)
    keys = {"key": np.array([b"a", b"\xff"], dtype=object), "number": np.array([7, 8])}
    requests: list[Any] = [{"inputs": {"x": y}} for y in (x, tf.constant(x), x.tolist(), [])]
    responses = run_in_c_process(model_dir, [*requests, {"signature": "lookup", "inputs": keys}])
    assert responses[0] == responses[1] == responses[2]
    assert (responses[3]["shapes"], responses[3]["outputs"]) == ({"y": [0, 3]}, {"y": []})
    assert responses[4]["outputs"]["same"] == ["a", "\udcff"]


def test_process_loads_no_package(model_dir: Path) -> None:
    """A process that has answered holds no module of any installed package."""
    arguments = ("--libraries", LIBRARIES, "--model", str(model_dir))
    request = {"inputs": {"x": [[1.0, 0.0, 0.0, 0.0]]}}
    process = run_script(*arguments, request=request)
    assert process.returncode == 0, process.stderr
    modules = {name.partition(".")[0] for name in json.loads(process.stderr.splitlines()[-1])}
    assert modules - set(sys.stdlib_module_names) == {"__main__", "c_api_script"}
    assert json.loads(process.stdout)["shapes"] == {"y": [1, 3]}
    stub = "sys.modules['tensorflow'] = types.ModuleType('tensorflow')"
    process = run_script(*arguments, before=stub, request=request)
    assert process.returncode == 1
    assert "not isolated" in json.loads(process.stdout)["error"]


def test_list_equals_signatures_of_protobuf(model_dir: Path) -> None:
    """The hand-written reader finds what the protobuf package finds; null is unknown."""
    message = SavedModelMessage.FromString((model_dir / "saved_model.pb").read_bytes())
    definitions = dict(message.meta_graphs[0].signature_def)

    def describe(info: Any) -> dict[str, Any]:
        shape = tf.TensorShape(info.tensor_shape)
        sizes = None if shape.rank is None else shape.as_list()
        dtype = tf.dtypes.as_dtype(info.dtype).name.replace("float16", "DataType(19)")
        return {"name": info.name, "dtype": dtype, "shape": sizes}

    process = run_script("--libraries", LIBRARIES, "--model", str(model_dir), "--list")
    for name, signature in json.loads(process.stdout).items():
        definition = definitions.pop(name)
        for side, specs in signature.items():
            infos = getattr(definition, side)
            assert specs == {key: describe(info) for key, info in infos.items()}
    assert set(definitions) == {"__saved_model_init_op"}


def test_repeat_adds_latency(model_dir: Path) -> None:
    """`repeat` changes no output and reports ordered percentiles."""
    requests = [{"inputs": {"x": np.ones((2, 4))}}]
    (timed,) = run_in_c_process(model_dir, requests, repeat=20)
    latency = timed.pop("latency_ms")
    assert 0.0 < latency["p50"] <= latency["p99"]
    assert [timed] == run_in_c_process(model_dir, requests)


def test_process_error_reports_cause(model_dir: Path, tmp_path: Path) -> None:
    """The error of the process, TensorFlow's own included, reaches the caller."""
    with pytest.raises(RuntimeError, match=r"exit code=1, error=ValueError: .*\['y'\]"):
        run_in_c_process(model_dir, [{"inputs": {"y": [[1.0]]}}])
    with pytest.raises(RuntimeError, match="Could not find SavedModel"):
        run_in_c_process(tmp_path, [])
    with pytest.raises(RuntimeError, match="ValueError: .*expected a file `libtensorflow_fram"):
        run_in_c_process(model_dir, [], library_dir=tmp_path)


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        ("absent", {}, r"no such signature, expected one of \['failing'.*signature='absent'"),
        ("lookup", {"key": ["a"]}, r"expected exactly \['key', 'number'\].*inputs=\['key'\]"),
        ("serving_default", {"x": [], "z": 1}, r"missing or unknown.*inputs=\['x', 'z'\]"),
        ("serving_default", {"x": [[1.0] * 3]}, r"expected shape \(None, 4\).*shape=\(1, 3\)"),
        ("serving_default", {"x": [[1.0], 2.0]}, r"ragged.*lengths=\[1, None\]"),
        ("serving_default", {"x": [[1.0, 2.0, 3.0, "a"]]}, "expected float32.*value='a'"),
        ("lookup", {"key": [1], "number": [1]}, "expected string. Received: value=1"),
        ("lookup", {"key": ["a"], "number": [True]}, "expected int64. Received: value=True"),
        ("lookup", {"key": ["a"], "number": [2**63]}, "out of range, expected int64"),
        ("half", {"x": [1.0]}, r"not supported, expected one of .*dtype='DataType\(19\)'"),
    ],
)
def test_invalid_request_raises(
    model_dir: Path, signature: str, inputs: dict[str, Any], message: str
) -> None:
    """A wrong request says what was wrong and what was expected."""
    with SavedModel(LIBRARIES, model_dir) as model, pytest.raises(ValueError, match=message):
        model.run(signature, inputs)


def test_failed_or_closed_model(model_dir: Path) -> None:
    """TensorFlow's message becomes the error of one request; a closed model answers none."""
    with SavedModel(LIBRARIES, model_dir) as model:
        with pytest.raises(RuntimeError, match="TF_SessionRun failed. .*multiple of 2"):
            model.run("failing", {"x": [1.0, 2.0, 3.0]})
        assert model.run("failing", {"x": [1.0, 2.0]})["x"].nested() == [[1.0, 2.0]]
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.run("failing", {"x": []})


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (0, 2), (2, 1, 3)])
def test_nested_lists_keep_shape_and_values(shape: tuple[int, ...]) -> None:
    """Reading nested lists inverts writing them, with and without empty axes."""
    nested = np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape).tolist()
    spec = TensorSpec("x:0", "float32", shape)
    tensor = Tensor.from_nested(nested, spec, "x")
    assert tensor.shape == shape
    assert tensor.nested() == nested
    assert Tensor.from_bytes("float32", shape, tensor.to_bytes()) == tensor
    assert Tensor.from_nested(tensor, spec, "x") == tensor


def test_invalid_protobuf_raises() -> None:
    """Bytes that are no message are an error, not a model without signatures."""
    for data, message in (
        (b"\x2a\x05abc", "truncated protobuf message, expected 7 bytes. Received: size=5"),
        (b"\x80" * 11, "whole varint of at most 10 bytes. Received: start=0, size=11"),
        (b"\x2b", "expected wire type 0, 1, 2 or 5. Received: wire_type=3"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_signatures(data)
