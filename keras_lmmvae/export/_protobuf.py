"""Read the signatures of a SavedModel from protobuf bytes, by the standard library alone.

Four messages of a MetaGraphDef matter. A field is written `name = number`, and a map is a
repeated message of `key = 1` and `value = 2`:

    MetaGraphDef      signature_def = 5, map of string to SignatureDef
    SignatureDef      inputs = 1, outputs = 2, both maps of string to TensorInfo
    TensorInfo        name = 1, dtype = 2, tensor_shape = 3
    TensorShapeProto  dim = 2 (with size = 1, -1 if unknown), unknown_rank = 3

All other fields, the graph among them, are skipped without being copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ._tensor import TensorSpec, dtype_name

__all__ = ["Signature", "parse_signatures"]

_INIT_SIGNATURE = "__saved_model_init_op"  # run by the loader, not an endpoint
_FIXED_SIZES = {1: 8, 5: 4}  # wire type: bytes of the value
_EMPTY = memoryview(b"")


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one endpoint, by the names that a request uses."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def parse_signatures(meta_graph: bytes) -> dict[str, Signature]:
    """Returns the signatures of a serialized MetaGraphDef by their names.

    Raises:
        ValueError: If the bytes are not a protobuf message.
    """
    entries = (value for number, value in _fields(memoryview(meta_graph)) if number == 5)
    signatures = {name: _signature(value) for name, value in map(_map_entry, entries)}
    signatures.pop(_INIT_SIGNATURE, None)
    return signatures


def _signature(data: memoryview) -> Signature:
    signature = Signature({}, {})
    for number, value in _fields(data):
        if number in (1, 2):
            name, info = _map_entry(value)
            specs = signature.inputs if number == 1 else signature.outputs
            specs[name] = _tensor_spec(info)
    return signature


def _tensor_spec(data: memoryview) -> TensorSpec:
    found = dict(_fields(data))
    name = bytes(found.get(1, _EMPTY)).decode()
    return TensorSpec(name, dtype_name(found.get(2, 0)), _shape(found.get(3, _EMPTY)))


def _shape(data: memoryview) -> tuple[int | None, ...] | None:
    found = list(_fields(data))
    if dict(found).get(3, 0):
        return None
    sizes = [dict(_fields(value)).get(1, 0) for number, value in found if number == 2]
    return tuple(size if size < 1 << 63 else None for size in sizes)  # -1 is read as 2**64 - 1


def _map_entry(data: memoryview) -> tuple[str, memoryview]:
    found = dict(_fields(data))
    return bytes(found.get(1, _EMPTY)).decode(), found.get(2, _EMPTY)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yields the number and the value of each field, an int or a view of its bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in _FIXED_SIZES:
            size = _FIXED_SIZES[wire_type]
        else:
            raise ValueError(
                "Received an invalid protobuf message, expected wire type 0, 1, 2 or 5. "
                f"Received: wire_type={wire_type}"
            )
        if position + size > len(data):
            raise ValueError(
                f"Received a truncated protobuf message, expected {position + size} bytes. "
                f"Received: size={len(data)}"
            )
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    """Returns the number at `start`, base-128 digits from low to high, and the position after."""
    value = 0
    for digit, byte in enumerate(data[start : start + 10]):
        value |= (byte & 127) << (7 * digit)
        if byte < 128:
            return value, start + digit + 1
    raise ValueError(
        "Received an invalid protobuf message, expected a whole varint of at most 10 bytes. "
        f"Received: start={start}, size={len(data)}"
    )
