"""Data frames: what every kind of column becomes, and what is refused, by name."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from small_models import small_model

import keras_lmmvae as lmm
from keras_lmmvae.data_frame import FrameColumns, as_pandas, numeric_features
from keras_lmmvae.validation import NULL_INTEGER

STAMPS = [pd.Timestamp("2024-01-01"), pd.Timestamp("2024-02-29 13:00"), None, pd.Timestamp(0)]
ISO = ["2024-01-01", "2024-02-29T13:00:00", "", "1970-01-01"]
DAYS = [19723.0, 19782.0 + 13 / 24, np.nan, 0.0]


def make_frame() -> pd.DataFrame:
    return pd.DataFrame({
        "float": [1.0, 2.0, np.nan, 4.0],
        "Int64": pd.array([1, None, 3, 4], dtype="Int64"),
        "Float64": pd.array([1.5, None, 3.0, 4.0], dtype="Float64"),
        "bool": [True, False, True, True],
        "boolean": pd.array([True, None, False, True], dtype="boolean"),
        "object": pd.Series([1, None, 2.5, 3], dtype=object),
        "string": pd.array(["x", None, "y", "x"], dtype="string"),
        "category": pd.Categorical(["u", None, "v", "u"]),
        "numbers": pd.Categorical([3, None, 5, 3]),
        "large": pd.array([2**60 + 1, None, 2**60 + 1, 3], dtype="Int64"),
        "whole": [1.0, np.nan, 2.0, 1.0],
        "stamp": pd.Series(STAMPS),
        "zone": pd.Series(STAMPS).dt.tz_localize("Europe/Paris"),
        "date": [dt.date(2024, 1, 1), dt.date(2024, 1, 2), None, dt.date(1970, 1, 1)],
        "month": pd.PeriodIndex(["2024-01", "2024-02", None, "1970-01"], freq="M"),
        "length": pd.to_timedelta(["1D", "12h", None, "2D"]),
        "days": pd.Categorical(pd.Series(STAMPS)),
    })  # fmt: skip


FRAME = make_frame()
KEYS: dict[str, list[Any]] = {
    "string": ["x", "", "y", "x"],
    "category": ["u", "", "v", "u"],
    "numbers": [3, NULL_INTEGER, 5, 3],
    "Int64": [1, NULL_INTEGER, 3, 4],
    "large": [2**60 + 1, NULL_INTEGER, 2**60 + 1, 3],
    "whole": [1, NULL_INTEGER, 2, 1],
    "bool": [1, 0, 1, 1],
    "boolean": [1, NULL_INTEGER, 0, 1],
    "stamp": ISO,
    "zone": [ISO[0], "2024-02-29T13:00:00+01:00", "", ISO[3]],
    "date": ["2024-01-01", "2024-01-02", "", "1970-01-01"],
    "month": ["2024-01", "2024-02", "", "1970-01"],
    "days": ISO,
}
NUMBERS: dict[str, list[float]] = {
    "float": [1.0, 2.0, np.nan, 4.0],
    "Int64": [1.0, np.nan, 3.0, 4.0],
    "Float64": [1.5, np.nan, 3.0, 4.0],
    "bool": [1.0, 0.0, 1.0, 1.0],
    "boolean": [1.0, np.nan, 0.0, 1.0],
    "object": [1.0, np.nan, 2.5, 3.0],
}
TIMES: dict[str, list[float]] = {
    "stamp": DAYS,
    "zone": [DAYS[0] - 1 / 24, DAYS[1] - 1 / 24, np.nan, -1 / 24],
    "date": [19723.0, 19724.0, np.nan, 0.0],
    "month": [19723.0, 19754.0, np.nan, 0.0],
    "length": [1.0, 0.5, np.nan, 2.0],
    "days": DAYS,
}


@pytest.mark.parametrize("column", KEYS)
def test_keys(column: str):
    """Keys are strings or int64, those of dates ISO text, and missing ones the model's null."""
    keys = lmm.from_dataframe(FRAME, ["float"], f"(1 | {column})")[column]
    assert keys.tolist() == KEYS[column]
    assert keys.dtype == (object if isinstance(KEYS[column][0], str) else np.int64)


@pytest.mark.parametrize("column", NUMBERS)
def test_features(column: str):
    """Features are float64, NaN where missing."""
    data = lmm.from_dataframe(FRAME, [column], ())
    np.testing.assert_array_equal(data["x"][:, 0], NUMBERS[column])
    assert data["x"].dtype == np.float64
    assert data.feature_names == [column]


@pytest.mark.parametrize("column", [*NUMBERS, *TIMES])
def test_numbers_of_terms(column: str):
    """Times, covariates and coordinates are float64, dates in days since 1970 in UTC."""
    expected = {**NUMBERS, **TIMES}[column]
    for formula in (f"gp({column})", f"(1 + {column} | string)", f"(whole + {column} | string)"):
        values = lmm.from_dataframe(FRAME, ["float"], formula)[column]
        np.testing.assert_allclose(values, expected, rtol=1e-14)
        assert values.dtype == np.float64


def test_days_keep_a_microsecond():
    """Float64 days tell instants apart that lie a few microseconds from each other."""
    stamps = pd.to_datetime(["2024-02-29 13:00:00.000000", "2024-02-29 13:00:00.000010"])
    frame = pd.DataFrame({"a": [1.0, 2.0], "t": stamps})
    days = lmm.from_dataframe(frame, ["a"], "gp(t)")["t"]
    assert np.diff(days)[0] * 86_400 == pytest.approx(1e-5, abs=1e-6)


def test_all_numeric_features():
    """By default the features are the columns of numbers that no term uses, nor a pair's part."""
    expected = ["float", "Int64", "Float64", "bool", "boolean", "object"]
    assert numeric_features(FRAME, "(1 | large) + gp(whole)") == expected
    assert numeric_features(FRAME, "(1 + whole | string:large)") == expected
    data = lmm.from_dataframe(FRAME, None, "(1 | large) + gp(whole)")
    assert data["x"].shape == (4, 6)
    assert data.feature_names == expected
    with pytest.raises(ValueError, match=r"no numeric column.*terms=\['whole'\]"):
        numeric_features(FRAME[["whole", "string", "category", "stamp"]], "(1 | whole)")


def test_combined_keys():
    """A column of pairs is made of its parts, dates among them, or taken as it is."""
    data = lmm.from_dataframe(FRAME, ["float"], "(1 | string/stamp)")
    assert data["string.stamp"].tolist() == ["x:2024-01-01", "", "", "x:1970-01-01"]
    assert sorted(data) == ["string", "string.stamp", "x"]
    frame = FRAME.assign(**{"string.stamp": [1, 2, 3, 4]})
    data = lmm.from_dataframe(frame, ["float"], "(1 | string:stamp)")
    assert data["string.stamp"].tolist() == [1, 2, 3, 4]


class OtherFrame:
    """A data frame of another library, as far as it is looked at."""

    def __init__(self, frame: object) -> None:
        self.frame = frame

    def to_pandas(self) -> object:
        return self.frame


class Lazy:
    def collect(self) -> OtherFrame:
        return OtherFrame(FRAME)


def test_frames_of_other_libraries():
    """What has `to_pandas` is a data frame; what else there is, is not."""
    data = lmm.from_dataframe(OtherFrame(FRAME), ["float"], "(1 | string)")
    assert data["string"].tolist() == KEYS["string"]
    assert as_pandas(FRAME) is FRAME
    for wrong in ({"a": [1]}, OtherFrame(3), None):
        with pytest.raises(ValueError, match=r"must be a data frame of pandas.*Received: type="):
            lmm.from_dataframe(wrong, ["a"])
    with pytest.raises(ValueError, match=r"call its `collect\(\)` first"):
        lmm.from_dataframe(Lazy(), ["a"])


@pytest.mark.parametrize(
    ("features", "terms", "message"),
    [
        (["float", "whole"], "(1 | whole)", r"a feature and a group.*columns=\['whole'\]"),
        (["float", "whole"], "(1 | string:whole)", r"a feature and a group.*columns=\['whole'\]"),
        (["float"], "(1 | float) + gp(string)", r"a feature and a group.*columns=\['float'\]"),
        (["Int64"], "(1 | Float64)", r"'Float64' must be strings or whole numbers.*key=1\.5"),
        (["float"], "(1 | length)", r"'length' must be all strings.*kind='timedelta64'"),
        (["float"], "(1 + category | string)", r"'category' must be a numeric.*first='u'"),
        (["float"], "(1 | stamp) + gp(stamp)", r"'stamp' is a group and a number at once"),
        (["float", "string"], (), r"must be numeric.*columns=\['string'\]"),
        (["float", "stamp", "category"], (), r"must be numeric.*columns=\['stamp', 'category'\]"),
        (["flaot"], "(1 | stroe)", r"lack the column\(s\) \['flaot', 'stroe'\]"),
        (["float"], "(1 | string:shop)", r"lack the column\(s\) \['shop'\]"),
        (["float", "float"], (), r"each of them once.*features=\['float', 'float'\]"),
        ([], (), r"one column at least.*features=\[\]"),
        ("float", (), r"must be a list of names.*features='float'"),
    ],
)
def test_refused(features: Any, terms: Any, message: str):
    """Errors name the column, and what was expected of it."""
    with pytest.raises(ValueError, match=message):
        lmm.from_dataframe(FRAME, features, terms)


def test_refused_frames():
    """Columns of one name, and numbers beyond float32, by name."""
    twice = pd.DataFrame(np.ones((2, 3)), columns=["a", "b", "a"])
    with pytest.raises(ValueError, match=r"must be unique.*twice=\['a'\]"):
        lmm.from_dataframe(twice, ["b"])
    infinite = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, np.inf]})
    with pytest.raises(ValueError, match=r"finite in float32.*row=1, column='b', value=inf"):
        lmm.from_dataframe(infinite, ["a", "b"])


def test_number_that_is_also_a_key():
    """Whole numbers serve as keys and as times in one model; a missing one is missing for both."""
    data = lmm.from_dataframe(FRAME, ["float"], "(1 | whole) + (1 + whole | string)")
    assert data["whole"].tolist() == KEYS["whole"]


def test_model_takes_the_names():
    """`adapt` takes the names of the frame's features; `tf.data` reads the dict, without them."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=["height", "weight"])
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, 60), unit="D")
    frame["store"] = np.where(np.arange(60) % 7 == 0, None, np.arange(60) % 5)
    model = small_model("(1 + day | store)")
    data = lmm.from_dataframe(frame, random_effects=model.random_effects)
    assert isinstance(data, FrameColumns)
    model.adapt(data)
    assert model.feature_names == ["height", "weight"]
    model.compile("adam")
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(20)
    model.fit(dataset, epochs=1, verbose=0)
    assert list(model.variance_components().columns) == ["height", "weight"]
    again = lmm.from_dataframe(frame, model.feature_names, model.random_effects)
    assert np.isfinite(model.reconstruct(again)).all()
