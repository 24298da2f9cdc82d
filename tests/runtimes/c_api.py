"""Asks a SavedModel through TensorFlow's C API, in a process that sees no installed package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

__all__ = ["ask", "run"]

SCRIPT = Path(__file__).with_name("c_api_script.py")

Request = Mapping[str, Any]


def ask(folder: str | Path, requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Answers requests through the C API.

    Args:
        folder: Folder of the SavedModel.
        requests: Dicts with "inputs" and, unless it is "serving_default", "signature".

    Returns:
        One dict for each request, with nested lists by the name of the output.

    Raises:
        RuntimeError: If TensorFlow reports an error or the process dies.
    """
    answers: list[dict[str, Any]] = run(folder, requests)["answers"]
    return answers


def run(folder: str | Path, requests: Sequence[Request], repeat: int = 1) -> dict[str, Any]:
    """Answers requests through the C API, `repeat` times each; errors as for `ask`.

    The script knows the standard library only. It is told the names of the tensors, which are
    read from the SavedModel here.

    Returns:
        "answers" as from `ask`, "seconds" of every run of each request, and "modules", the names
        of all Python modules that the process had loaded when it had answered.
    """
    message = SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes())
    signatures = dict(message.meta_graphs[0].signature_def)
    calls = []
    for request in requests:
        signature = signatures[request.get("signature", "serving_default")]
        known, inputs = dict(signature.inputs), request["inputs"].items()
        feeds = [_feed(known[name], values) for name, values in inputs]
        fetches = {name: info.name for name, info in signature.outputs.items()}
        calls.append({"feeds": feeds, "fetches": fetches})
    job = {"libraries": _libraries(), "model": str(folder), "calls": calls, "repeat": repeat}
    process = subprocess.run(
        [sys.executable, "-S", "-I", str(SCRIPT)],
        input=json.dumps(job, default=bytes.decode).encode(),
        capture_output=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        timeout=300,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(process.stderr.decode(errors="replace"))
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def _feed(info: Any, values: Any) -> dict[str, Any]:
    """Values of one input in row-major order, of the type that the signature states."""
    dtype = tf.dtypes.as_dtype(info.dtype)
    array = np.asarray(values, object if dtype == tf.string else dtype.as_numpy_dtype)
    shape = array.shape
    if not array.size:  # An empty list does not tell its width, the signature does.
        shape = tuple(max(dim.size, 0) for dim in info.tensor_shape.dim)
    return {
        "tensor": info.name,
        "dtype": dtype.name,
        "shape": shape,
        "values": array.ravel().tolist(),
    }


def _libraries() -> list[str]:
    """TensorFlow's two C libraries in the order of loading."""
    folder = Path(tf.__file__).parent
    stems = ("libtensorflow_framework", "libtensorflow_cc")
    return [str(max(folder.glob(f"{stem}.*"))) for stem in stems]
