"""Serve a SavedModel through the C API of TensorFlow, without TensorFlow's or Keras's Python.

This proves that an exported graph answers by itself: all it needs are TensorFlow's two C
libraries and Python's standard library. It runs as a script in an isolated interpreter that sees
no installed package:

    python3 -S -I c_api.py --libraries DIR --model DIR < request.json > response.json

A request is `{"signature": name, "inputs": {name: nested list}}`, or a list of such objects; a
response, or a list of them, is `{"signature", "outputs", "dtypes", "shapes"}`, of which the last
three are by the name of the output. NaN and infinities are written as Python's `json` writes
them, and bytes that are not UTF-8 as surrogate escapes. An error is the response
`{"error": message}` with exit code 1. `--list` prints the signatures instead of reading requests,
and `--repeat N` runs each request N times more and adds `latency_ms` to its response.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import json
import math
import os
import sys
import time
import types
from collections.abc import Mapping
from typing import Any, final

if not __package__:  # a script: a stand-in package, as the real one would import TensorFlow
    __package__ = "c_api_script"
    sys.modules[__package__] = types.ModuleType(__package__)
    sys.modules[__package__].__path__ = [os.path.dirname(os.path.abspath(__file__))]

from ._c_library import CLibrary, Output
from ._protobuf import Signature, parse_signatures
from ._tensor import Tensor

__all__ = ["SavedModel", "Tensor"]

_FORBIDDEN_MODULES = {"tensorflow", "keras", "numpy", "keras_lmmvae"}
_SHARES = {"p50": 0.5, "p99": 0.99}  # of the runs that take at most this latency


@final
class SavedModel:
    """A SavedModel in a session of TensorFlow's C API; a context manager that closes it.

    Args:
        library_dir: Folder of TensorFlow's two C libraries.
        path: Folder of the SavedModel, of which the tag `serve` is loaded.

    Attributes:
        signatures: Dict of `Signature` by name: a `TensorSpec` for each input and each output.

    Raises:
        ValueError: If a library is missing.
        RuntimeError: If TensorFlow does not load the model.

    Example:
        >>> with SavedModel(library_dir, path) as model:  # doctest: +SKIP
        ...     model.run("serving_default", {"x": [[1.0, 2.0]]})["y"].nested()
    """

    def __init__(self, library_dir: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
        self._library = library = CLibrary(library_dir)
        self._session: int | None = None
        self._graph: int | None = library.call("TF_NewGraph")
        self.signatures: dict[str, Signature] = {}
        try:
            self._load(os.fsencode(path))
        except BaseException:
            self.close()
            raise

    def _load(self, path: bytes) -> None:
        library, tags = self._library, (ctypes.c_char_p * 1)(b"serve")
        options, buffer = library.call("TF_NewSessionOptions"), library.call("TF_NewBuffer")
        try:
            self._session = library.checked(
                "TF_LoadSessionFromSavedModel", options, None, path, tags, 1, self._graph, buffer
            )
            meta_graph = ctypes.string_at(buffer.contents.data, buffer.contents.length)
        finally:
            library.call("TF_DeleteBuffer", buffer)
            library.call("TF_DeleteSessionOptions", options)
        self.signatures = parse_signatures(meta_graph)

    def __enter__(self) -> SavedModel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the session and deletes the graph; a second call does nothing."""
        session, self._session = self._session, None
        graph, self._graph = self._graph, None
        with contextlib.ExitStack() as stack:  # in reverse, each even if another one fails
            if graph is not None:
                stack.callback(self._library.call, "TF_DeleteGraph", graph)
            if session is not None:
                stack.callback(self._library.checked, "TF_DeleteSession", session)
                stack.callback(self._library.checked, "TF_CloseSession", session)

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the outputs of a signature by their names.

        Args:
            signature: Name of the signature.
            inputs: Nested lists, an array or a `Tensor` for each input of the signature.

        Raises:
            ValueError: If the inputs are not exactly those of the signature.
            RuntimeError: If TensorFlow reports an error or the model is closed.
        """
        return self.run_timed(signature, inputs, repeat=1)[0]

    def run_timed(
        self, signature: str, inputs: Mapping[str, Any], *, repeat: int
    ) -> tuple[dict[str, Tensor], list[float]]:
        """Runs one request `repeat` times, at least once; arguments and errors as for `run`.

        Returns:
            outputs: Outputs of the last run.
            latencies: Milliseconds of each run, without the conversion from and to lists. The
                first run of a signature is slower, as TensorFlow then prepares its graph.
        """
        if repeat < 1:
            raise ValueError(f"Expected at least one run. Received: repeat={repeat}")
        found = self._find(signature)
        if set(inputs) != set(found.inputs):
            raise ValueError(
                f"Signature `{signature}` got missing or unknown inputs, expected exactly "
                f"{sorted(found.inputs)}. Received: inputs={sorted(inputs)}"
            )
        sources = self._outputs([spec.name for spec in found.inputs.values()])
        targets = self._outputs([spec.name for spec in found.outputs.values()])
        tensors = [Tensor.from_nested(inputs[key], spec, key) for key, spec in found.inputs.items()]
        latencies = []
        with contextlib.ExitStack() as stack:
            feeds = [stack.enter_context(self._library.written(tensor)) for tensor in tensors]
            for index in range(repeat):
                start = time.perf_counter()
                handles = self._session_run(sources, feeds, targets)
                latencies.append(1e3 * (time.perf_counter() - start))
                with contextlib.ExitStack() as owned:
                    for handle in handles:
                        owned.callback(self._library.call, "TF_DeleteTensor", handle)
                    if index == repeat - 1:
                        values = [self._library.read(handle) for handle in handles]
        return dict(zip(found.outputs, values, strict=True)), latencies

    def _session_run(
        self, sources: ctypes.Array[Output], feeds: list[int], targets: ctypes.Array[Output]
    ) -> list[int]:
        """Returns the handles of the outputs, which the caller must delete."""
        values = (ctypes.c_void_p * len(feeds))(*feeds)
        results = (ctypes.c_void_p * len(targets))()
        self._library.checked(
            *("TF_SessionRun", self._session, None, sources, values, len(feeds)),
            *(targets, results, len(targets), None, 0, None),
        )
        return list(results)

    def _find(self, signature: str) -> Signature:
        if self._session is None:
            raise RuntimeError(f"The model is closed. Received: signature={signature!r}")
        if signature not in self.signatures:
            raise ValueError(
                f"The model has no such signature, expected one of {sorted(self.signatures)}. "
                f"Received: signature={signature!r}"
            )
        return self.signatures[signature]

    def _outputs(self, names: list[str]) -> ctypes.Array[Output]:
        """Returns the operations' outputs that the tensor names `operation:index` mean."""
        outputs = (Output * len(names))()
        for output, name in zip(outputs, names, strict=True):
            operation, _, index = name.rpartition(":")
            found = self._library.call("TF_GraphOperationByName", self._graph, operation.encode())
            if found is None:
                raise ValueError(
                    "The signature names a tensor that the graph lacks, expected "
                    f"`operation:index`. Received: name={name!r}"
                )
            output.operation, output.index = found, int(index)
        return outputs


def _answer(model: SavedModel, request: Any, default: str, repeat: int) -> dict[str, Any]:
    """Returns the response to one decoded request."""
    valid = isinstance(request, dict) and isinstance(request.get("inputs"), dict)
    if not valid:
        raise ValueError(
            "Received an invalid request, expected an object with an object `inputs`. "
            f"Received: request={request!r}"
        )
    signature = request.get("signature", default)
    outputs = model.run(signature, request["inputs"])
    response = {
        "signature": signature,
        "outputs": {name: tensor.nested() for name, tensor in outputs.items()},
        "dtypes": {name: tensor.dtype for name, tensor in outputs.items()},
        "shapes": {name: tensor.shape for name, tensor in outputs.items()},
    }
    if repeat:
        times = sorted(model.run_timed(signature, request["inputs"], repeat=repeat)[1])
        ranks = {name: math.ceil(share * repeat) - 1 for name, share in _SHARES.items()}
        response["latency_ms"] = {name: times[rank] for name, rank in ranks.items()}
    return response


def _respond(options: argparse.Namespace) -> Any:
    """Returns the signatures, or the responses to the requests on standard input."""
    with SavedModel(options.libraries, options.model) as model:
        if options.list:
            return {name: dataclasses.asdict(found) for name, found in model.signatures.items()}
        request = json.loads(sys.stdin.buffer.read())
        requests = request if isinstance(request, list) else [request]
        responses = [_answer(model, item, options.signature, options.repeat) for item in requests]
    loaded = _FORBIDDEN_MODULES & {name.partition(".")[0] for name in sys.modules}
    if loaded:
        raise RuntimeError(
            "The process is not isolated, expected only the standard library. "
            f"Received: modules={sorted(loaded)}"
        )
    return responses if isinstance(request, list) else responses[0]


def _main() -> int:
    """Prints the response and returns the exit code."""
    parser = argparse.ArgumentParser(description="Serve a SavedModel through TensorFlow's C API.")
    parser.add_argument("--libraries", required=True, help="folder of TensorFlow's C libraries")
    parser.add_argument("--model", required=True, help="folder of the SavedModel")
    parser.add_argument("--signature", default="serving_default", help="where a request has none")
    parser.add_argument("--list", action="store_true", help="print the signatures, read nothing")
    parser.add_argument("--repeat", type=int, default=0, help="runs per request, to time them")
    try:
        response, code = _respond(parser.parse_args()), 0
    except (ValueError, RuntimeError, OSError) as error:
        response, code = {"error": f"{type(error).__name__}: {error}"}, 1
    print(json.dumps(response))
    return code


if __name__ == "__main__":
    sys.exit(_main())
