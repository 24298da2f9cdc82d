"""Answers requests through TensorFlow's C API, as a program in any other language would.

    python -S -I c_api_script.py < job.json > answers.json

It needs TensorFlow's two C libraries and Python's standard library. `c_api.py` writes the job.
"""

from __future__ import annotations

import ctypes
import json
import math
import struct
import sys
import time
from typing import Any

__all__ = ["main"]

P, INT, TEXT, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {  # name: (result, arguments)
    "TF_NewStatus": (P, ()),
    "TF_GetCode": (INT, (P,)),
    "TF_Message": (TEXT, (P,)),
    "TF_DeleteStatus": (None, (P,)),
    "TF_NewGraph": (P, ()),
    "TF_GraphOperationByName": (P, (P, TEXT)),
    "TF_NewSessionOptions": (P, ()),
    "TF_LoadSessionFromSavedModel": (P, (P, P, TEXT, P, INT, P, P, P)),
    "TF_SessionRun": (None, (P, P, P, P, INT, P, P, INT, P, INT, P, P)),
    "TF_AllocateTensor": (P, (INT, P, INT, SIZE)),
    "TF_DeleteTensor": (None, (P,)),
    "TF_TensorType": (INT, (P,)),
    "TF_NumDims": (INT, (P,)),
    "TF_Dim": (ctypes.c_int64, (P, INT)),
    "TF_TensorData": (P, (P,)),
    "TF_TensorByteSize": (SIZE, (P,)),
    "TF_StringInit": (None, (P,)),
    "TF_StringCopy": (None, (P, TEXT, SIZE)),
}
CODES = {"float32": 1, "string": 7, "int64": 9, "bool": 10}  # TF_DataType
LETTERS = {1: "f", 9: "q", 10: "?"}  # of `struct`, by the code
STRING_SIZE = 24  # bytes of a TF_TString


class Output(ctypes.Structure):
    """TF_Output: one output of an operation of the graph."""

    _fields_ = [("operation", P), ("index", INT)]


class Session:
    """A SavedModel that TensorFlow has loaded.

    Nothing but the tensors of answers is freed: the process ends when it has answered.
    """

    def __init__(self, libraries: list[str], model: str) -> None:
        for path in libraries:
            self.tf = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.tf, name)
            function.restype, function.argtypes = result, arguments
        self.graph = self.tf.TF_NewGraph()
        options, tags = self.tf.TF_NewSessionOptions(), (TEXT * 1)(b"serve")
        self.handle = self.checked(
            *("TF_LoadSessionFromSavedModel", options, None, model.encode()),
            *(tags, 1, self.graph, None),
        )

    def checked(self, name: str, *arguments: Any) -> Any:
        """Calls a function whose last argument is a TF_Status; a bad status is an error."""
        status = self.tf.TF_NewStatus()
        result = getattr(self.tf, name)(*arguments, status)
        if self.tf.TF_GetCode(status):
            raise RuntimeError(f"{name}: {self.tf.TF_Message(status).decode()}")
        self.tf.TF_DeleteStatus(status)
        return result

    def outputs(self, names: list[str]) -> ctypes.Array[Output]:
        """The outputs of operations that tensor names such as "serving_default_x:0" mean."""
        found = (Output * len(names))()
        for output, name in zip(found, names, strict=True):
            operation, _, index = name.rpartition(":")
            output.operation = self.tf.TF_GraphOperationByName(self.graph, operation.encode())
            output.index = int(index)
            if output.operation is None:
                raise RuntimeError(f"The graph has no such tensor. Received: name={name!r}")
        return found

    def answer(self, call: dict[str, Any], repeat: int) -> tuple[dict[str, Any], list[float]]:
        """Outputs by name, and the seconds of each of `repeat` runs."""
        sources = self.outputs([feed["tensor"] for feed in call["feeds"]])
        targets = self.outputs(list(call["fetches"].values()))
        feeds = (P * len(sources))(*[self.write(feed) for feed in call["feeds"]])
        results, seconds = (P * len(targets))(), []
        for number in range(repeat):
            start = time.perf_counter()
            self.checked(
                *("TF_SessionRun", self.handle, None, sources, feeds, len(sources)),
                *(targets, results, len(targets), None, 0, None),
            )
            seconds.append(time.perf_counter() - start)
            if number == repeat - 1:
                values = [self.read(tensor) for tensor in results]
            for tensor in results:
                self.tf.TF_DeleteTensor(tensor)
        return dict(zip(call["fetches"], values, strict=True)), seconds

    def write(self, feed: dict[str, Any]) -> int:
        """Makes the TF_Tensor of one input."""
        code, shape, values = CODES[feed["dtype"]], feed["shape"], feed["values"]
        is_string = feed["dtype"] == "string"
        data = b"" if is_string else struct.pack(f"{len(values)}{LETTERS[code]}", *values)
        size = STRING_SIZE * len(values) if is_string else len(data)
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        tensor: int = self.tf.TF_AllocateTensor(code, sizes, len(shape), size)
        start = self.tf.TF_TensorData(tensor) or 0
        ctypes.memmove(start, data, len(data))
        for number, value in enumerate(values if is_string else []):
            element, text = start + STRING_SIZE * number, value.encode()
            self.tf.TF_StringInit(element)
            self.tf.TF_StringCopy(element, text, len(text))
        return tensor

    def read(self, tensor: int) -> Any:
        """Nested lists of the numbers in a TF_Tensor."""
        shape = [self.tf.TF_Dim(tensor, axis) for axis in range(self.tf.TF_NumDims(tensor))]
        letter = LETTERS[self.tf.TF_TensorType(tensor)]
        size = self.tf.TF_TensorByteSize(tensor)
        data = ctypes.string_at(self.tf.TF_TensorData(tensor) or 0, size)
        return nested(struct.unpack(f"{math.prod(shape)}{letter}", data), shape)


def nested(values: tuple[Any, ...], shape: list[int]) -> Any:
    """Values in row-major order as nested lists."""
    if not shape:
        return values[0]
    width = math.prod(shape[1:])
    rows = (values[row * width : (row + 1) * width] for row in range(shape[0]))
    return [nested(row, shape[1:]) for row in rows]


def main() -> None:
    """Reads a job from standard input and prints answers, times and the loaded modules."""
    job = json.load(sys.stdin)
    session = Session(job["libraries"], job["model"])
    found = [session.answer(call, job["repeat"]) for call in job["calls"]]
    result = {
        "answers": [answer for answer, _ in found],
        "seconds": [seconds for _, seconds in found],
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
