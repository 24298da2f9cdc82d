"""Ask a SavedModel in a process that cannot import TensorFlow, Keras or this package."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["find_library_dir", "run_in_c_process"]

_SCRIPT = Path(__file__).with_name("c_api.py")


def find_library_dir() -> Path:
    """Returns the folder of the installed TensorFlow's C libraries, without importing it.

    Raises:
        ModuleNotFoundError: If TensorFlow is not installed.
    """
    found = importlib.util.find_spec("tensorflow")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "TensorFlow's C libraries are missing, expected an installed package `tensorflow`. "
            f"Received: spec={found}"
        )
    return Path(found.submodule_search_locations[0])


def run_in_c_process(
    model_dir: str | os.PathLike[str],
    requests: Sequence[Mapping[str, Any]],
    *,
    library_dir: str | os.PathLike[str] | None = None,
    repeat: int = 0,
    timeout: float = 300.0,
) -> list[dict[str, Any]]:
    """Answers requests through TensorFlow's C API in an isolated Python process.

    The process runs `c_api.py` with `-S -I`: it sees the standard library and no installed
    package, loads the model once and answers the requests in their order, on the CPU, as the
    memory of a GPU may be held by the caller.

    Args:
        model_dir: Folder of the SavedModel.
        requests: Each `{"inputs": {name: values}}` with an optional `"signature"`, which is
            `"serving_default"` if absent. Values are nested lists, arrays or eager tensors.
        library_dir: Folder of TensorFlow's C libraries. Defaults to the installed TensorFlow's.
        repeat: If positive, the number of timed runs of each request.
        timeout: Seconds after which the process is ended.

    Returns:
        responses: One dict for each request: `"signature"`, and by the name of each output
            `"outputs"` (nested lists), `"dtypes"` and `"shapes"`. With `repeat` also
            `"latency_ms"`, the percentiles `"p50"` and `"p99"` in milliseconds.

    Raises:
        RuntimeError: If the process fails, with the error that it reports.
        subprocess.TimeoutExpired: If it takes longer than `timeout`.

    Example:
        >>> responses = run_in_c_process(path, [{"inputs": {"x": x}}])  # doctest: +SKIP
    """
    command = [sys.executable, "-S", "-I", os.fspath(_SCRIPT)]
    command += ["--libraries", os.fspath(library_dir or find_library_dir())]
    command += ["--model", os.fspath(model_dir), "--repeat", str(repeat)]
    process = subprocess.run(
        command,
        input=json.dumps(list(requests), default=_plain).encode(),
        capture_output=True,
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        timeout=timeout,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(
            "The process without TensorFlow's Python failed, expected exit code 0. "
            f"Received: exit code={process.returncode}, error={_error(process)}"
        )
    responses: list[dict[str, Any]] = json.loads(process.stdout)
    return responses


def _error(process: subprocess.CompletedProcess[bytes]) -> str:
    """Returns the error that the script reports, or what a crash leaves."""
    response = json.loads(process.stdout or b"null")
    if isinstance(response, dict) and "error" in response:
        return str(response["error"])
    return process.stderr.decode(errors="replace").strip()


def _plain(value: Any) -> Any:
    """Returns what `json` can write for an eager tensor, an array or bytes."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    value = value.numpy() if hasattr(value, "numpy") else value
    return value.tolist() if hasattr(value, "tolist") else value
