"""Tensors as plain Python lists, by the standard library alone."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["DTYPES", "DType", "Tensor", "TensorSpec", "dtype_name", "dtype_of"]


class DType(NamedTuple):
    """TF_DataType code, type code of `array` (none for strings) and accepted Python types."""

    code: int
    array_code: str
    python_types: tuple[type, ...]


DTYPES = {
    "float32": DType(1, "f", (float, int)),
    "float64": DType(2, "d", (float, int)),
    "int32": DType(3, "i", (int,)),
    "string": DType(7, "", (str, bytes)),
    "int64": DType(9, "q", (int,)),
    "bool": DType(10, "B", (bool,)),
}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature.

    Args:
        name: Name of the tensor in the graph, e.g. `"serving_default_x:0"`.
        dtype: One of `DTYPES`, or `"DataType(code)"` for a type that is not supported here.
        shape: Sizes of the axes, `None` for an unknown size; `None` for an unknown rank.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Tensor:
    """Values of a tensor in row-major order.

    Args:
        dtype: One of `DTYPES`.
        shape: Sizes of the axes.
        values: Flat list. Strings read from TensorFlow are `str`, with bytes that are not UTF-8
            as surrogate escapes; `bytes` are accepted too.
    """

    dtype: str
    shape: tuple[int, ...]
    values: list[Any]

    @classmethod
    def from_nested(cls, nested: Any, spec: TensorSpec, name: str) -> Tensor:
        """Checks nested lists, an array or a `Tensor` against the input `name` of a signature.

        An empty list takes its missing axes from the signature, so that `[]` is a batch of no
        rows for a shape such as `(None, 3)`.

        Raises:
            ValueError: If rows differ in length, or the shape or a value does not fit.
        """
        dtype_of(spec.dtype, name)
        if isinstance(nested, Tensor):
            shape, values = nested.shape, nested.values
        else:
            shape, values = _flatten(nested.tolist() if hasattr(nested, "tolist") else nested, name)
        if not values and spec.shape is not None:
            shape += tuple(size or 0 for size in spec.shape[len(shape) :])
        _check_shape(shape, len(values), spec.shape, name)
        _check_types(values, spec.dtype, name)
        return cls(spec.dtype, shape, values)

    def nested(self) -> Any:
        """Returns the values as nested lists, a scalar as itself."""
        items = self.values
        for axis in range(len(self.shape) - 1, 0, -1):
            width = self.shape[axis]
            rows = range(math.prod(self.shape[:axis]))
            items = [items[row * width : (row + 1) * width] for row in rows]
        return items if self.shape else items[0]

    def to_bytes(self) -> bytes:
        """Returns the memory of a tensor of numbers."""
        try:
            return array(DTYPES[self.dtype].array_code, self.values).tobytes()
        except OverflowError as error:
            raise ValueError(
                f"A value is out of range, expected {self.dtype}. "
                f"Received: min={min(self.values)}, max={max(self.values)}"
            ) from error

    @classmethod
    def from_bytes(cls, dtype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
        """Returns the tensor of numbers that lies in `data`."""
        values = array(DTYPES[dtype].array_code, data).tolist()
        return cls(dtype, shape, [bool(value) for value in values] if dtype == "bool" else values)


def dtype_name(code: int) -> str:
    """Returns the name of a TF_DataType code."""
    names = {dtype.code: name for name, dtype in DTYPES.items()}
    return names.get(code, f"DataType({code})")


def dtype_of(dtype: str, name: str) -> DType:
    """Returns the entry of `DTYPES` for the tensor `name`, or raises a ValueError."""
    if dtype not in DTYPES:
        raise ValueError(
            f"Tensor `{name}` has a type that is not supported, expected one of "
            f"{sorted(DTYPES)}. Received: dtype={dtype!r}"
        )
    return DTYPES[dtype]


def _flatten(nested: Any, name: str) -> tuple[tuple[int, ...], list[Any]]:
    """Returns the shape and the row-major values of nested lists."""
    shape: list[int] = []
    values: list[Any] = [nested]
    while True:
        lengths = {len(row) if isinstance(row, list | tuple) else None for row in values}
        if len(lengths) > 1:
            raise ValueError(
                f"Input `{name}` is ragged, expected rows of one length (None for a value). "
                f"Received: lengths={sorted(lengths, key=str)}"
            )
        length = lengths.pop() if lengths else None
        if length is None:
            return tuple(shape), values
        shape.append(length)
        values = [value for row in values for value in row]


def _check_shape(
    shape: tuple[int, ...], count: int, expected: tuple[int | None, ...] | None, name: str
) -> None:
    """Raises unless `count` values of `shape` fit the sizes of a signature."""
    fits = expected is None or (
        len(shape) == len(expected)
        and all(want is None or want == got for want, got in zip(expected, shape, strict=True))
    )
    if not fits or count != math.prod(shape):
        raise ValueError(
            f"Input `{name}` does not fit its signature, expected shape {expected}. "
            f"Received: shape={shape} of {count} value(s)"
        )


def _check_types(values: list[Any], dtype: str, name: str) -> None:
    """Raises unless the type of each value fits; a bool is no number here."""
    for value in values:
        if type(value) not in DTYPES[dtype].python_types:
            raise ValueError(
                f"Input `{name}` holds a value of the wrong type, expected {dtype}. "
                f"Received: value={value!r}"
            )
