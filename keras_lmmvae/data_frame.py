"""From data frames to the dict of columns that models read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.validation import as_features, check_columns, received

__all__ = ["from_dataframe"]


def from_dataframe(
    df: pd.DataFrame, features: Sequence[str], random_effects: Sequence[RandomEffect]
) -> dict[str, np.ndarray]:
    """Splits a data frame into the features "x" and the columns of the random effects.

    Args:
        df: Data frame of `n` rows.
        features: Names of the `p` feature columns, in the order of "x".
        random_effects: Terms, as given to `LMMVAE` or taken from `model.random_effects`.

    Returns:
        Dict with "x", float array `(n, p)` with NaN for missing cells, and the columns of the
        terms.

    Raises:
        ValueError: If a column is missing, or a feature is not numeric.

    Example:
        >>> import pandas as pd
        >>> import keras_lmmvae as lmm
        >>> df = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, None], "store": ["x", "y"]})
        >>> data = lmm.from_dataframe(df, ["a", "b"], [lmm.RandomIntercept("store")])
        >>> data["x"].shape
        (2, 2)
    """
    features = list(features)
    if len(set(features)) != len(features) or df.columns.duplicated().any():
        raise ValueError(
            "Every feature must be named once, and column names must be unique. "
            + received(features=features)
        )
    columns = [column for term in random_effects for column in term.columns]
    check_columns(_columns_of(df), [*features, *columns])
    data = {"x": as_features(df[features])}
    for column in columns:
        data[column] = df[column].to_numpy()
    return data


def _columns_of(df: Any) -> dict[str, Any]:
    return {name: df[name] for name in df.columns}
