"""Effect columns of the data dicts, and the arguments of training, checked."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_lmmvae.baselines.base import Data, FloatArray
from keras_lmmvae.validation import as_float_column, as_keys, check_positive, received

__all__ = ["check_training", "key_column", "number_column"]


def check_training(
    *,
    hidden_units: Sequence[int],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    kl_weight: float,
) -> None:
    """Raises a ValueError on an argument of training that is out of its range."""
    if isinstance(hidden_units, int) or len(hidden_units) == 0:
        raise ValueError(
            "`hidden_units` must be a list with the width of at least one layer. "
            + received(hidden_units=hidden_units)
        )
    for units in hidden_units:
        check_positive("hidden_units", units, integer=True, minimum=1)
    check_positive("epochs", epochs, integer=True, minimum=1)
    check_positive("batch_size", batch_size, integer=True, minimum=1)
    check_positive("learning_rate", learning_rate)
    if kl_weight != 0:
        check_positive("kl_weight", kl_weight)


def number_column(data: Data, name: str, n: int) -> FloatArray:
    """Returns a column of finite numbers, float64 `(n,)`.

    Raises:
        ValueError: If it is missing, of another length, or has a value that is no finite number.

    Example:
        >>> import numpy as np
        >>> number_column({"t": np.array([1, 2])}, "t", 2).tolist()
        [1.0, 2.0]
    """
    values: FloatArray = as_float_column(name, _column(data, name, n))
    missing = np.isnan(values)
    if missing.any():
        raise ValueError(
            f"The column '{name}' must have no missing values: its rows have no place without. "
            + received(row=int(np.argmax(missing)), missing=int(missing.sum()))
        )
    return values


def key_column(data: Data, name: str, n: int) -> np.ndarray:
    """Returns a column of keys as `as_keys` normalises them, int64 or str `(n,)`.

    Raises:
        ValueError: If it is missing, of another length, or neither text nor whole numbers.

    Example:
        >>> import numpy as np
        >>> key_column({"subject": np.array(["b", "a"])}, "subject", 2).tolist()
        ['b', 'a']
    """
    return as_keys(name, _column(data, name, n))


def _column(data: Data, name: str, n: int) -> Any:
    """Returns one column with an entry for each row of `x`."""
    if name not in data:
        raise ValueError(
            f"The data must have the column '{name}'. " + received(columns=sorted(data))
        )
    column = data[name]
    if np.shape(column) != (n,):
        raise ValueError(
            f"The column '{name}' must have one entry for each of the {n} rows of `x`. "
            + received(shape=np.shape(column))
        )
    return column
