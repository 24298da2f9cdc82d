"""The closing sentence of every error: what was received."""

import sys
from typing import Any

__all__ = ["received"]


def received(**values: Any) -> str:
    """Formats the closing sentence of an error: `Received: name=value`."""
    return "Received: " + ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    # A value of NumPy or pandas exists only where they are imported. Errors of the command line
    # are told without them, because they take longer to import than the command may take.
    numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return f"array of shape {value.shape} and dtype {value.dtype}"
    if pandas is not None and isinstance(value, pandas.Series):
        return f"Series of length {len(value)} and dtype {value.dtype}"
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return f"DataFrame of shape {value.shape}"
    if numpy is not None and isinstance(value, (numpy.number, numpy.bool_, numpy.str_)):
        value = value.item()
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
