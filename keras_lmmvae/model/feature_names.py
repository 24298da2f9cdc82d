"""What the features are called, and which of them a name means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae.model.part import ModelPart
from keras_lmmvae.model.rows import FEATURES
from keras_lmmvae.validation import received

__all__ = ["FeatureNames", "check_feature_names", "listed", "names_of"]


class FeatureNames(ModelPart):
    """The part of `LMMVAE` that knows its features by name; `adapt` learns the names."""

    @property
    def feature_names(self) -> list[Any]:
        """Names of the `p` features: strings, or the numbers `0 ... p - 1` if none were given."""
        return list(self._feature_names or range(self.num_features))

    def feature_number(self, feature: int | str) -> int:
        """The column of "x" that a feature's name, or its number, stands for.

        Args:
            feature: A name of `feature_names`, or an int in `[0, p)`.

        Returns:
            Int in `[0, p)`.

        Raises:
            ValueError: If the model is not adapted, or has no such feature.
        """
        self.require_adapted()
        if isinstance(feature, (int, np.integer)) and not isinstance(feature, bool):
            if 0 <= feature < self.num_features:
                return int(feature)
        if isinstance(feature, str) and feature in (self._feature_names or ()):
            return int(self._feature_names.index(feature))
        names = f", or one of {listed(self._feature_names)}" if self._feature_names else ""
        raise ValueError(
            f"There is no such feature, expected a number from 0 to {self.num_features - 1}"
            f"{names}. " + received(feature=feature)
        )


def names_of(data: Any) -> list[str] | None:
    """The names that data bring along: of their own, or of a data frame under "x".

    Args:
        data: Dict of columns, or a dataset, which brings none.

    Returns:
        A list of strings, or `None`; a frame's `0 ... p - 1` are no names.
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
    """Checks names of the features, and returns them as a tuple.

    Raises:
        ValueError: If they are not `p` different non-empty strings.
    """
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
    """The first names of many, and how many there are.

    Example:
        >>> listed(["height", "weight", "age"], most=2)
        'height, weight, ... (3 in all)'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
