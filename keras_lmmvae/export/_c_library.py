"""The functions of TensorFlow's C API that serving needs, by ctypes and no other package."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

from ._tensor import DTYPES, Tensor, dtype_name, dtype_of

__all__ = ["CLibrary", "Output"]

_FILES = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")  # in the order of loading
_STRING_SIZE = 24  # bytes of a TF_TString
_P, _I, _S, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t


class _Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = [("data", _P), ("length", _SIZE), ("deallocator", _P)]


class Output(ctypes.Structure):
    """TF_Output: one output of an operation of a graph."""

    _fields_ = [("operation", _P), ("index", _I)]


_B = ctypes.POINTER(_Buffer)
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {  # name: (result, arguments)
    "TF_NewStatus": (_P, ()),
    "TF_GetCode": (_I, (_P,)),
    "TF_Message": (_S, (_P,)),
    "TF_DeleteStatus": (None, (_P,)),
    "TF_NewBuffer": (_B, ()),
    "TF_DeleteBuffer": (None, (_B,)),
    "TF_NewGraph": (_P, ()),
    "TF_DeleteGraph": (None, (_P,)),
    "TF_GraphOperationByName": (_P, (_P, _S)),
    "TF_NewSessionOptions": (_P, ()),
    "TF_DeleteSessionOptions": (None, (_P,)),
    "TF_LoadSessionFromSavedModel": (_P, (_P, _P, _S, _P, _I, _P, _B, _P)),
    "TF_SessionRun": (None, (_P, _P, _P, _P, _I, _P, _P, _I, _P, _I, _P, _P)),
    "TF_CloseSession": (None, (_P, _P)),
    "TF_DeleteSession": (None, (_P, _P)),
    "TF_AllocateTensor": (_P, (_I, _P, _I, _SIZE)),
    "TF_DeleteTensor": (None, (_P,)),
    "TF_TensorType": (_I, (_P,)),
    "TF_NumDims": (_I, (_P,)),
    "TF_Dim": (ctypes.c_int64, (_P, _I)),
    "TF_TensorData": (_P, (_P,)),
    "TF_TensorByteSize": (_SIZE, (_P,)),
    "TF_StringInit": (None, (_P,)),
    "TF_StringCopy": (None, (_P, _S, _SIZE)),
    "TF_StringGetDataPointer": (_P, (_P,)),
    "TF_StringGetSize": (_SIZE, (_P,)),
    "TF_StringDealloc": (None, (_P,)),
}


class CLibrary:
    """TensorFlow's C functions, with checked status and tensors as plain Python lists.

    Args:
        directory: Folder of TensorFlow's two C libraries.

    Attributes:
        functions: Function of the C API by its name.

    Raises:
        ValueError: If a library is missing.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        for name in _FILES:
            path = os.path.join(directory, name)
            if not os.path.exists(path):
                raise ValueError(
                    f"TensorFlow's C library is missing, expected a file `{name}`. "
                    f"Received: library_dir={os.fspath(directory)!r}"
                )
            library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        self.functions: dict[str, Any] = {}
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            self.functions[name] = function

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function that reports no status."""
        return self.functions[name](*arguments)

    def checked(self, name: str, *arguments: Any) -> Any:
        """Calls a function whose last argument is a TF_Status.

        Raises:
            RuntimeError: With TensorFlow's message, if the status is not OK.
        """
        status = self.call("TF_NewStatus")
        try:
            result = self.functions[name](*arguments, status)
            if self.call("TF_GetCode", status):
                message = self.call("TF_Message", status).decode(errors="replace")
                raise RuntimeError(f"{name} failed. Received from TensorFlow: {message}")
            return result
        finally:
            self.call("TF_DeleteStatus", status)

    @contextlib.contextmanager
    def written(self, tensor: Tensor) -> Iterator[int]:
        """Yields the handle of a TF_Tensor that holds `tensor` until the context ends."""
        is_string = tensor.dtype == "string"
        data = b"" if is_string else tensor.to_bytes()
        size = _STRING_SIZE * len(tensor.values) if is_string else len(data)
        rank = len(tensor.shape)
        shape = (ctypes.c_int64 * rank)(*tensor.shape)
        handle = self.call("TF_AllocateTensor", DTYPES[tensor.dtype].code, shape, rank, size)
        address = self.call("TF_TensorData", handle) or 0
        elements = range(address, address + size, _STRING_SIZE) if is_string else range(0)
        try:
            ctypes.memmove(address, data, len(data))
            for element in elements:
                self.call("TF_StringInit", element)
            for element, value in zip(elements, tensor.values if is_string else (), strict=True):
                text = value if isinstance(value, bytes) else value.encode(errors="surrogateescape")
                self.call("TF_StringCopy", element, text, len(text))
            yield handle
        finally:
            for element in elements:
                self.call("TF_StringDealloc", element)
            self.call("TF_DeleteTensor", handle)

    def read(self, handle: int) -> Tensor:
        """Returns a copy of the TF_Tensor with this handle."""
        rank = self.call("TF_NumDims", handle)
        shape = tuple(self.call("TF_Dim", handle, axis) for axis in range(rank))
        dtype = dtype_name(self.call("TF_TensorType", handle))
        dtype_of(dtype, "output")
        address = self.call("TF_TensorData", handle) or 0
        size = self.call("TF_TensorByteSize", handle)
        if dtype != "string":
            return Tensor.from_bytes(dtype, shape, ctypes.string_at(address, size))
        elements = range(address, address + size, _STRING_SIZE)
        return Tensor(dtype, shape, [self._read_string(element) for element in elements])

    def _read_string(self, element: int) -> str:
        start = self.call("TF_StringGetDataPointer", element)
        size = self.call("TF_StringGetSize", element)
        return ctypes.string_at(start, size).decode(errors="surrogateescape")
