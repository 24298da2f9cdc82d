"""Checks of user input. Every error says what is wrong, what was expected and what came."""

import math
import numbers
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae.errors import received

__all__ = [
    "NULL_INTEGER",
    "as_features",
    "as_float_column",
    "as_keys",
    "as_series",
    "check_columns",
    "check_not_negative",
    "check_positive",
    "check_probability",
    "received",
]

NULL_INTEGER = int(np.iinfo(np.int64).min)
"""The missing key among integer keys. Among string keys it is the empty string."""

_LARGEST = np.finfo(np.float32).max


def check_positive(name: str, value: Any, *, integer: bool = False, minimum: float = 0) -> None:
    """Raises unless `value` is a finite number above `minimum` (an integer: at least `minimum`)."""
    if integer:
        is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        valid = is_integer and value >= minimum
        _require(valid, name, value, f"an integer of at least {minimum:g}")
    else:
        valid = _is_finite(value) and value > minimum
        _require(valid, name, value, f"a finite number above {minimum:g}")


def check_not_negative(name: str, value: Any) -> None:
    """Raises unless `value` is a finite number of at least 0."""
    _require(_is_finite(value) and value >= 0, name, value, "a finite number of at least 0")


def check_probability(name: str, value: Any) -> None:
    """Raises unless `value` is a number above 0 and below 1."""
    _require(_is_finite(value) and 0 < value < 1, name, value, "a number between 0 and 1")


def _require(valid: bool, name: str, value: Any, expected: str) -> None:
    if not valid:
        raise ValueError(
            f"Received an invalid value for `{name}`, expected {expected}. "
            + received(**{name: value})
        )


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float, np.integer, np.floating))
    if not is_number or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # The integer is too large for a float.
        return False


def check_columns(data: Mapping[str, Any], columns: Iterable[str]) -> int:
    """Checks that all columns are there and have the same length. Returns that number of rows."""
    if not isinstance(data, Mapping):
        raise ValueError(
            "The data must be a dict of arrays with the features under 'x' and one entry per "
            "effect column, or a tf.data.Dataset of such dicts. " + received(type=type(data))
        )
    columns = list(columns)
    missing = [name for name in columns if name not in data]
    if missing:
        raise ValueError(
            f"The data lack the column(s) {missing}, expected all of {columns}. "
            + received(columns=list(data))
        )
    lengths = {name: _length(name, data[name]) for name in columns}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "All columns must have the same number of rows. " + received(lengths=lengths)
        )
    rows = next(iter(lengths.values()), 0)
    if columns and rows == 0:
        raise ValueError("The data have no rows, expected at least one. " + received(rows=0))
    return rows


def _length(name: str, column: Any) -> int:
    if not isinstance(column, (str, bytes, Mapping)):
        try:
            return len(column)
        except TypeError:  # A number, None or an array without dimensions has no length.
            pass
    raise ValueError(
        f"The column '{name}' must be an array with one entry per row. "
        + received(**{name: column})
    )


def as_features(x: Any, num_features: int | None = None) -> np.ndarray:
    """Checks the feature matrix and returns it as floats `(n, p)`, with NaN for missing cells.

    Floats keep their precision. Integers and Booleans become float64.
    """
    values = _frame_values(x) if isinstance(x, pd.DataFrame) else _array_values(x)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            "The features 'x' must be a matrix of shape (rows, features). " + received(x=values)
        )
    if num_features is not None and values.shape[1] != num_features:
        raise ValueError(
            f"The features 'x' must have the {num_features} columns that the model was adapted to. "
            + received(columns=values.shape[1])
        )
    infinite = (values > _LARGEST) | (values < -_LARGEST)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        label = x.columns[column] if isinstance(x, pd.DataFrame) else int(column)
        raise ValueError(
            "The features 'x' must be finite in float32 (NaN marks a missing cell). "
            + received(row=int(row), column=label, value=float(values[row, column]))
        )
    return values


def _frame_values(frame: pd.DataFrame) -> np.ndarray:
    other = [
        label
        for position, label in enumerate(frame.columns)
        if not _is_numeric(frame.iloc[:, position])
    ]
    if other:
        raise ValueError(
            "The features 'x' must be numeric: encode or drop other columns first. "
            + received(columns=other)
        )
    return np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))


def _is_numeric(values: Any) -> bool:
    """Whether all values of a series or flat array that are not missing are numbers."""
    if values.dtype != object:
        return _kind(values) in ("integer", "floating", "boolean", "empty")
    types = set(map(type, values[~pd.isna(values)]))
    return all(issubclass(kind, (numbers.Real, Decimal, np.bool_)) for kind in types)


def _array_values(x: Any) -> np.ndarray:
    try:
        values = np.asarray(x)
        if values.dtype.kind == "O" and _is_numeric(values.ravel()):
            values = np.where(pd.isna(values), np.nan, values).astype(np.float64)
        elif values.dtype.kind == "V":  # Types that NumPy does not know, such as bfloat16.
            values = values.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "The features 'x' must be a matrix of numbers. " + received(x=x)
        ) from error
    if values.dtype.kind not in "biuf":
        raise ValueError(
            "The features 'x' must be numeric: encode or drop other columns first. "
            + received(x=values)
        )
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    mask = np.ma.getmask(x)
    return values if mask is np.ma.nomask else np.where(mask, np.nan, values)


def as_float_column(name: str, values: Any) -> np.ndarray:
    """Checks a numeric column and returns it as float64 `(n,)`, with NaN for missing values.

    `NULL_INTEGER` counts as missing.
    """
    series = as_series(name, values)
    if not _is_numeric(series):
        raise ValueError(
            f"The column '{name}' must be a numeric vector: turn text into numbers, and dates "
            "into numbers such as days since the first. "
            + received(kind=_kind(series), first=series.iloc[0])
        )
    is_null = (series == NULL_INTEGER).fillna(False).to_numpy(bool)
    column = series.to_numpy(np.float64, na_value=np.nan)
    column = np.where(is_null, np.nan, column)
    infinite = (column > _LARGEST) | (column < -_LARGEST)
    if infinite.any():
        row = int(np.flatnonzero(infinite)[0])
        raise ValueError(
            f"The column '{name}' must be finite in float32 (NaN marks a missing value). "
            + received(row=row, value=float(column[row]))
        )
    return column


def as_keys(name: str, values: Any) -> np.ndarray:
    """Normalises group keys to a vector `(n,)` of int64 or of Python strings.

    Missing keys become `NULL_INTEGER` or the empty string. These two count as missing in the
    input, too. Floats are accepted if all are whole numbers, because pandas turns integers with
    gaps into floats. Booleans become 0 and 1. Numbers must fit into 64-bit integers.
    """
    series = as_series(name, values)
    missing = series.isna().to_numpy(bool)
    present = series[~missing]
    kind = _kind(present)
    keys: np.ndarray
    if len(present) == 0 or kind in ("string", "bytes"):
        keys = np.full(len(series), "", object)
        keys[~missing] = _text(name, present)
    elif kind in ("integer", "boolean", "floating", "mixed-integer-float"):
        keys = np.full(len(series), NULL_INTEGER, np.int64)
        is_whole = kind in ("integer", "boolean")
        keys[~missing] = _integers(name, present) if is_whole else _whole_floats(name, present)
    else:
        raise ValueError(
            f"The keys of column '{name}' must be all strings or all whole numbers: convert dates, "
            "mixtures and other types first, for instance with `.astype(str)`. "
            + received(kind=kind, first=present.iloc[0])
        )
    return keys


def _kind(values: Any) -> str:
    return str(pd.api.types.infer_dtype(values, skipna=True))


def as_series(name: str, values: Any) -> pd.Series:
    """Returns a column as a series. A categorical column gets the type of its categories."""
    to_numpy = getattr(values, "numpy", None)  # Tensors have this method.
    values = to_numpy() if callable(to_numpy) else values
    try:
        series = pd.Series(values)
    except UnicodeError:
        # Arrow's strings refuse text that is not UTF-8. `as_keys` raises the error for it.
        series = pd.Series(values, dtype=object)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The column '{name}' must be a vector with one entry per row, without a second "
            "column of the same name. " + received(**{name: values})
        ) from error
    if isinstance(series.dtype, pd.CategoricalDtype):
        categories = series.cat.categories
        codes = series.cat.codes.to_numpy()
        series = pd.Series(categories.take(codes)).where(codes >= 0)
    return series


def _text(name: str, present: pd.Series) -> list[str]:
    text: list[str] = []
    for key in present.tolist():
        try:
            text.append(key.decode() if isinstance(key, bytes) else str(key))
            text[-1].encode()
        except UnicodeError as error:
            raise ValueError(
                f"The keys of column '{name}' must be text in UTF-8. " + received(key=key)
            ) from error
    return text


def _integers(name: str, present: pd.Series) -> np.ndarray:
    smallest, largest = int(present.min()), int(present.max())
    if smallest < NULL_INTEGER or largest > np.iinfo(np.int64).max:
        raise ValueError(
            f"The keys of column '{name}' must fit into 64 bits: convert longer ones to strings. "
            + received(smallest=smallest, largest=largest)
        )
    return np.asarray(present.to_numpy(np.int64))


def _whole_floats(name: str, present: pd.Series) -> np.ndarray:
    given = present.to_numpy()
    precision = np.finfo(given.dtype).nmant if given.dtype.kind == "f" else 52
    numbers: np.ndarray = given.astype(np.float64)
    broken = numbers[numbers != np.round(numbers)]
    if len(broken):
        raise ValueError(
            f"The keys of column '{name}' must be strings or whole numbers. "
            + received(key=float(broken[0]))
        )
    broken = numbers[np.abs(numbers) >= 2.0 ** (precision + 1)]
    if len(broken):
        raise ValueError(
            f"The keys of column '{name}' are floats too large to tell neighbouring whole numbers "
            "apart: read them as integers or strings. " + received(key=float(broken[0]))
        )
    return numbers.astype(np.int64)
