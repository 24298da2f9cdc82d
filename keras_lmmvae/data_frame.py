"""Turns data frames into the dict of columns that models read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from keras_lmmvae.columns import Columns
from keras_lmmvae.effects.combined_keys import combined_keys, parts_of
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.formula import as_terms
from keras_lmmvae.validation import (
    as_features,
    as_float_column,
    as_keys,
    as_series,
    check_columns,
    received,
)

__all__ = ["FrameColumns", "as_pandas", "from_dataframe", "numeric_features"]

ORIGIN = pd.Timestamp("1970-01-01", tz="UTC")
DAY = pd.Timedelta(days=1)
_DATES = ("datetime64", "datetime", "date")
_LENGTHS_OF_TIME = ("timedelta64", "timedelta")


class FrameColumns(dict[str, np.ndarray]):
    """A dict of columns with the names of the features, or `None`, which `adapt` takes over."""

    feature_names: list[str] | None = None


def from_dataframe(
    df: Any,
    features: Sequence[Any] | None = None,
    random_effects: Sequence[RandomEffect] | str = (),
) -> FrameColumns:
    """Splits a data frame into the features "x" and the columns of the random effects.

    - Features are numbers or Booleans (0 and 1), also of nullable types. Missing cells become NaN.
    - Keys are strings, whole numbers, Booleans, categories or dates. Dates become text such as
      "2024-02-29" (with a time of day: "2024-02-29T13:00:00"). Missing keys become the null key.
    - Times, covariates and coordinates are numbers. Dates become days since 1970-01-01 (in UTC
      if they have a time zone), and lengths of time become days, both float64. The intercept of a
      slope is then the effect in 1970. For the effect at the start of a study, count days from it.

    If a term reads a column "a.b" that the frame lacks, the keys of "a" and "b" are joined.

    Args:
        df: Data frame of `n` rows, of pandas or with a method `to_pandas` (Polars, Arrow).
        features: Names of the `p` feature columns, in the order of "x". Defaults to the numeric
            columns that no term uses. For new rows give `model.feature_names`.
        random_effects: Terms, as given to `LMMVAE` or taken from `model.random_effects`, or a
            formula.

    Returns:
        Dict with "x", float array `(n, p)`, and the columns of the terms. `model.adapt` takes
        over its `feature_names`.

    Raises:
        ValueError: If a column is missing or named twice, a feature is not numeric, a column is
            both a feature and a group, or does not hold what its term needs.

    Example:
        >>> import pandas as pd
        >>> import keras_lmmvae as lmm
        >>> df = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, None], "store": ["x", "y"]})
        >>> data = lmm.from_dataframe(df, random_effects="(1 | store)")
        >>> data["x"].shape, data.feature_names
        ((2, 2), ['a', 'b'])
    """
    frame, terms = as_pandas(df), as_terms(random_effects)
    if features is None:
        features = numeric_features(frame, terms)
    features = _checked_features(frame, features, terms)
    roles = Columns(terms)
    keys, numbers = roles.keys, roles.numbers
    combined = [name for name in keys if name not in frame and len(parts_of(name)) > 1]
    parts = [part for name in combined for part in parts_of(name)]
    needed = [name for name in (*keys, *numbers) if name not in combined]
    columns: dict[Any, Any] = dict(frame.items())
    check_columns(columns, [*features, *needed, *parts])
    data = FrameColumns(x=as_features(frame[features]))
    data.update({name: _numbers(name, frame[name]) for name in numbers})
    data.update({name: _keys(name, frame[name]) for name in keys if name not in combined})
    for name in combined:
        data[name] = combined_keys({part: _keys(part, frame[part]) for part in parts_of(name)})
    for name in keys:
        if name in numbers and data[name].dtype.kind != "i":
            raise ValueError(
                f"The column '{name}' is a group and a number at once, and its keys are text: "
                "give the term that needs numbers a column of its own. "
                + received(kind=str(frame[name].dtype))
            )
    data.feature_names = [str(name) for name in features]
    return data


def as_pandas(df: Any) -> pd.DataFrame:
    """A data frame of pandas; raises a ValueError if two columns have one name."""
    if not isinstance(df, pd.DataFrame):
        convert = getattr(df, "to_pandas", None)
        frame = convert() if callable(convert) else None
        if not isinstance(frame, pd.DataFrame):
            hint = ": call its `collect()` first" if hasattr(df, "collect") else ""
            raise ValueError(
                "The data must be a data frame of pandas, or one with a method `to_pandas`, such "
                f"as those of Polars and Arrow{hint}. " + received(type=type(df))
            )
        df = frame
    if df.columns.duplicated().any():
        twice = df.columns[df.columns.duplicated()].unique().tolist()
        raise ValueError("Column names must be unique. " + received(twice=twice))
    return df


def numeric_features(df: Any, random_effects: Sequence[RandomEffect] | str = ()) -> list[Any]:
    """The columns of numbers or Booleans that no term uses, in the frame's order.

    Example:
        >>> import pandas as pd
        >>> df = pd.DataFrame({"a": [1.0], "b": [True], "store": [3], "name": ["x"]})
        >>> numeric_features(df, "(1 | store)")
        ['a', 'b']
    """
    frame = as_pandas(df)
    used = set(Columns(as_terms(random_effects)).names)
    used |= {part for name in used if name not in frame for part in parts_of(name)}
    found = [name for name in frame if name not in used and _is_numeric(frame[name])]
    if not found:
        raise ValueError(
            "The data frame has no numeric column beside those of the terms, expected at least "
            "one feature. " + received(columns=list(frame.columns), terms=sorted(used))
        )
    return found


def _is_numeric(series: pd.Series) -> bool:
    if series.dtype != object:
        is_numeric: bool = pd.api.types.is_numeric_dtype(series.dtype)
        return is_numeric and not pd.api.types.is_complex_dtype(series.dtype)
    kind = pd.api.types.infer_dtype(series, skipna=True)
    return kind in ("integer", "floating", "mixed-integer-float", "boolean", "decimal")


def _checked_features(
    frame: pd.DataFrame, features: Sequence[Any], terms: Sequence[RandomEffect]
) -> list[Any]:
    """The features as a list, each named once, without keys of groups."""
    if isinstance(features, str):
        raise ValueError("`features` must be a list of names. " + received(features=features))
    names = list(features)
    if not names or len(set(names)) != len(names):
        raise ValueError(
            "`features` must name one column at least, each of them once. "
            + received(features=names)
        )
    keys = {
        part for key in Columns(terms).keys for part in ([key] if key in frame else parts_of(key))
    }
    both = [name for name in names if name in keys]
    if both:
        raise ValueError(
            "A column cannot be a feature and a group: a key is no number to reconstruct. "
            + received(columns=both)
        )
    return names


def _kind(series: pd.Series) -> str:
    """The kind of a column's values without missing ones. Dates of Arrow are dates, too."""
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return "datetime64"
    return str(pd.api.types.infer_dtype(series, skipna=True))


def _numbers(name: str, series: pd.Series) -> np.ndarray:
    """A column of numbers, with dates and lengths of time in days."""
    series = as_series(name, series)
    kind = _kind(series)
    if kind == "period":
        series, kind = series.dt.to_timestamp(), "datetime64"
    if kind in _DATES:
        series = (pd.to_datetime(series, utc=True) - ORIGIN) / DAY
    elif kind in _LENGTHS_OF_TIME:
        series = pd.to_timedelta(series) / DAY
    return as_float_column(name, series)


def _keys(name: str, series: pd.Series) -> np.ndarray:
    """A column of keys, with dates and periods as text."""
    series = as_series(name, series)
    kind = _kind(series)
    if kind in (*_DATES, "period"):
        codes, levels = pd.factorize(series)
        texts = [str(level) if kind == "period" else _date_text(level) for level in levels]
        series = pd.Series(np.array([*texts, None], object)[codes])  # Code -1 is a missing key.
    return as_keys(name, series)


def _date_text(value: Any) -> str:
    """A date in ISO form, with its time of day unless that is midnight."""
    stamp = pd.Timestamp(value)
    is_midnight = stamp == stamp.normalize()
    return str(stamp.date().isoformat() if is_midnight else stamp.isoformat())
