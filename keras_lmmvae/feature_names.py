"""Names of the features."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae.columns import FEATURES
from keras_lmmvae.validation import received

__all__ = ["check_feature_names", "feature_number", "listed", "names_of"]


def feature_number(feature: int | str, names: Sequence[str], num_features: int) -> int:
    """The number in `[0, p)` of a feature that is given by its number or its name."""
    if isinstance(feature, (int, np.integer)) and not isinstance(feature, bool):
        if 0 <= feature < num_features:
            return int(feature)
    if isinstance(feature, str) and feature in names:
        return names.index(feature)
    others = f", or one of {listed(names)}" if names else ""
    raise ValueError(
        f"There is no such feature, expected a number from 0 to {num_features - 1}"
        f"{others}. " + received(feature=feature)
    )


def names_of(data: Any) -> list[str] | None:
    """The `feature_names` of data, or those of a data frame under "x"; `None` if there are none.

    Datasets bring no names, and the columns `0 ... p - 1` of a frame are not names.
    """
    if not isinstance(data, Mapping):
        return None
    names = getattr(data, "feature_names", None)
    x = data.get(FEATURES)
    if names is None and isinstance(x, pd.DataFrame):
        names = list(x.columns)
    if names is None or list(names) == list(range(len(names))):
        return None
    return [str(name) for name in names]


def check_feature_names(
    feature_names: Sequence[str] | None, num_features: int
) -> tuple[str, ...] | None:
    """Checks that names are `p` different non-empty strings, and returns them as a tuple."""
    if feature_names is None:
        return None
    names = [feature_names] if isinstance(feature_names, str) else list(feature_names)
    if len(names) != num_features:
        raise ValueError(
            f"`feature_names` must be {num_features} names, one for each feature. "
            + received(number=len(names), feature_names=names)
        )
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong:
        raise ValueError(
            "`feature_names` must be non-empty strings. " + received(feature_names=wrong)
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError("`feature_names` must differ. " + received(twice=twice))
    return tuple(str(name) for name in names)


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first names, and the number of all of them.

    Example:
        >>> listed(["height", "weight", "age"], most=2)
        'height, weight, ... (3 in all)'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
