"""Keys of two or more columns joined: the levels of a factor that is nested in another."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_lmmvae.validation import NULL_INTEGER, as_keys, check_columns

__all__ = ["SEPARATOR", "combined_keys", "parts_of", "with_combined_keys"]

SEPARATOR = "."
"""Joins the names of columns whose keys are joined. Served models can have such a name."""
_BETWEEN_KEYS = ":"


def parts_of(column: str) -> list[str]:
    """The columns whose keys a column of that name joins, or the column itself.

    Example:
        >>> parts_of("school.class"), parts_of("school")
        (['school', 'class'], ['school'])
    """
    parts = column.split(SEPARATOR)
    return parts if all(parts) else [column]


def combined_keys(columns: Mapping[str, Any]) -> np.ndarray:
    """Keys `(n,)` of several columns joined to one text each, or "" if one of them is missing.

    A ":" or a backslash within a key gets a backslash before it, so that different keys stay
    different.

    Example:
        >>> combined_keys({"school": [1, 1, 2], "class": ["a", "b", None]}).tolist()
        ['1:a', '1:b', '']
    """
    rows = check_columns(columns, columns)
    texts, missing = [], np.zeros(rows, bool)
    for name, values in columns.items():
        keys = as_keys(name, values)
        missing |= keys == (NULL_INTEGER if keys.dtype.kind == "i" else "")
        texts.append([_escaped(str(key)) for key in keys])
    combined = np.array([_BETWEEN_KEYS.join(parts) for parts in zip(*texts, strict=True)], object)
    combined[missing] = ""
    return combined


def _escaped(key: str) -> str:
    return key.replace("\\", "\\\\").replace(_BETWEEN_KEYS, f"\\{_BETWEEN_KEYS}")


def with_combined_keys(data: Any, columns: Iterable[str]) -> Any:
    """Adds the joined keys of those `columns`, such as "school.class", that a dict lacks."""
    if not isinstance(data, Mapping):
        return data
    made = {}
    for column in columns:
        parts = parts_of(column)
        if column not in data and len(parts) > 1 and all(part in data for part in parts):
            made[column] = combined_keys({part: data[part] for part in parts})
    return {**data, **made} if made else data
