"""Checks of user input: accepted values, their conversion and the error texts."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from keras_lmmvae.validation import (
    NULL_INTEGER,
    as_features,
    as_float_column,
    as_keys,
    check_columns,
    check_not_negative,
    check_positive,
    check_probability,
    received,
)

DAYS = pd.to_datetime(["2024-01-01", "2024-01-02"])


class TestReceived:
    def test_values_are_shown_with_their_names(self):
        """The sentence names every value and shows its repr."""
        assert received(a=1, b="two") == "Received: a=1, b='two'"

    def test_long_values_are_cut(self):
        """No value takes more than 200 characters."""
        text = received(key="a" * 1000)
        assert text.endswith("...")
        assert len(text) == len("Received: key=") + 200

    def test_arrays_are_summarised(self):
        """Arrays and tables are described by shape and dtype."""
        array, frame = np.zeros((2, 3)), pd.DataFrame({"a": [1.0]})
        assert received(x=array) == "Received: x=array of shape (2, 3) and dtype float64"
        assert received(x=frame) == "Received: x=DataFrame of shape (1, 1)"
        assert received(x=frame["a"]) == "Received: x=Series of length 1 and dtype float64"


class TestCheckPositive:
    @pytest.mark.parametrize("value", [1, 0.5, np.float32(2.0), np.int64(3), 1e300])
    def test_finite_numbers_above_zero_pass(self, value):
        """Python and NumPy numbers pass."""
        check_positive("scale", value)

    @pytest.mark.parametrize(
        "value", [0, -1.0, np.nan, np.inf, True, np.bool_(True), "1", None, [1.0], 10**400]
    )
    def test_anything_else_is_refused(self, value):
        """The error has the argument, the expected and the received value."""
        with pytest.raises(ValueError, match="`scale`, expected a finite number above 0") as error:
            check_positive("scale", value)
        assert received(scale=value) in str(error.value)

    def test_integers_start_at_the_minimum(self):
        """Integers may equal the minimum."""
        check_positive("degree", 0, integer=True)
        check_positive("size", np.int32(1), integer=True, minimum=1)

    @pytest.mark.parametrize("value", [0, -3, 1.0, True, "2", None])
    def test_other_than_integers_are_refused(self, value):
        """A float is not an integer, even if it is a whole number."""
        with pytest.raises(ValueError, match="expected an integer of at least 1") as error:
            check_positive("size", value, integer=True, minimum=1)
        assert received(size=value) in str(error.value)


class TestOtherNumbers:
    @pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, np.float32(0.1), np.int64(3)])
    def test_zero_is_not_negative(self, value):
        """Zero and all positive finite numbers pass."""
        check_not_negative("weight", value)

    @pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf, True, "1", None, 10**400])
    def test_negative_numbers_are_refused(self, value):
        """So is anything that is not a finite number."""
        with pytest.raises(ValueError, match="`weight`, expected a finite number of at") as error:
            check_not_negative("weight", value)
        assert received(weight=value) in str(error.value)

    def test_probabilities_exclude_their_bounds(self):
        """Numbers above 0 and below 1 pass."""
        check_probability("level", 0.5)
        check_probability("level", np.float32(1e-9))
        for value in (0, 0.0, 1, 1.0, -0.1, np.nan, True, "0.5", None):
            with pytest.raises(ValueError, match="`level`, expected a number between") as error:
                check_probability("level", value)
            assert received(level=value) in str(error.value)


class TestCheckColumns:
    def test_number_of_rows_is_returned(self):
        """Lists, arrays, tensors, series and frames have rows. Other columns are not read."""
        data = {
            "x": pd.DataFrame({"f": [1.0, 2.0]}),
            "a": [1, 2],
            "b": np.zeros((2, 5)),
            "c": tf.zeros(2),
            "d": pd.Series(["u", "v"]),
            "unused": 7,
        }
        assert check_columns(data, ["x", "a", "b", "c", "d"]) == 2

    def test_no_columns_have_no_rows(self):
        """Without columns the number of rows is 0."""
        assert check_columns({}, []) == 0

    @pytest.mark.parametrize("data", [np.zeros((3, 2)), [1, 2], None, "x"])
    def test_data_must_be_a_dict(self, data):
        """The error says which form the data must have."""
        with pytest.raises(ValueError, match="must be a dict of arrays.*Received: type=") as error:
            check_columns(data, ["x"])
        assert type(data).__name__ in str(error.value)

    def test_missing_columns_are_listed(self):
        """The error lists the missing, the expected and the received columns."""
        expected = (
            r"lack the column\(s\) \['a', 'b'\], expected all of \['x', 'a', 'b'\]. "
            r"Received: columns=\['x', 'z'\]"
        )
        with pytest.raises(ValueError, match=expected):
            check_columns({"x": [1], "z": [1]}, ["x", "a", "b"])

    def test_unequal_lengths_are_refused(self):
        """The error has the length of every column."""
        with pytest.raises(ValueError, match=r"Received: lengths=\{'x': 1, 'a': 2\}"):
            check_columns({"x": [1], "a": [1, 2]}, ["x", "a"])

    def test_empty_data_are_refused(self):
        """Data must have at least one row."""
        with pytest.raises(ValueError, match="expected at least one. Received: rows=0"):
            check_columns({"x": np.zeros((0, 3))}, ["x"])

    @pytest.mark.parametrize("value", ["store", b"store", 3, None, np.float64(1.0), {"a": 1}])
    def test_columns_must_be_arrays(self, value):
        """Scalars, strings and dicts are not columns."""
        with pytest.raises(ValueError, match="'a' must be an array with one entry per") as error:
            check_columns({"a": value}, ["a"])
        assert received(a=value) in str(error.value)


class TestAsFeatures:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats_keep_their_width(self, dtype):
        """The result has the precision of the input."""
        assert as_features(np.ones((2, 3), dtype)).dtype == dtype

    @pytest.mark.parametrize(
        "x",
        [
            [[1, 2], [3, 4]],
            np.array([[1, 2], [3, 4]], np.uint8),
            np.array([[1, 2], [3, 4]], np.longdouble),
            np.array([[1, 2.0], [decimal.Decimal(3), 4]], object),
            tf.constant([[1, 2], [3, 4]]),
            tf.constant([[1, 2], [3, 4]], tf.bfloat16),
            pd.DataFrame({"a": [1, 3], "b": [2.0, 4.0]}),
            pd.DataFrame({"a": pd.array([1, 3], "Int64"), "b": np.array([2, 4], object)}),
        ],
        ids=lambda x: type(x).__name__,
    )
    def test_numbers_of_any_kind_become_floats(self, x):
        """Integers, decimals, tensors and frames are accepted."""
        values = as_features(x)
        assert values.dtype in (np.float32, np.float64)
        np.testing.assert_array_equal(values, [[1.0, 2.0], [3.0, 4.0]])

    def test_booleans_become_zero_and_one(self):
        """Booleans become 0 and 1."""
        np.testing.assert_array_equal(as_features([[True, False]]), [[1.0, 0.0]])

    @pytest.mark.parametrize(
        "x",
        [
            [[1.0, np.nan]],
            np.array([[1, None]], object),
            np.array([[1, pd.NA]], object),
            np.ma.array([[1.0, 5.0]], mask=[[False, True]]),
            np.ma.array([[1, 5]], mask=[[False, True]]),
            pd.DataFrame({"a": pd.array([1], "Int64"), "b": pd.array([None], "Float64")}),
            pd.DataFrame({"a": [1.0], "b": pd.array([None], "boolean")}),
        ],
        ids=["nan", "None", "NA", "masked float", "masked int", "nullable", "nullable boolean"],
    )
    def test_missing_cells_become_nan(self, x):
        """All kinds of missing values become NaN."""
        np.testing.assert_array_equal(as_features(x), [[1.0, np.nan]])

    @pytest.mark.parametrize(
        "x",
        [
            np.array([["1", "2"]]),
            np.array([[1, "2"]], object),
            np.array([[1 + 2j]]),
            np.array([DAYS]),
            np.array([[datetime.date(2024, 1, 1)]], object),
            np.array([[b"1"]]),
        ],
        ids=["text", "mixed", "complex", "datetime", "date", "bytes"],
    )
    def test_other_arrays_are_refused(self, x):
        """Text is not parsed, and dates are not converted to nanoseconds."""
        with pytest.raises(ValueError, match="'x' must be numeric: encode or drop") as error:
            as_features(x)
        assert received(x=x) in str(error.value)

    def test_other_columns_of_a_frame_are_named(self):
        """The error lists the columns to encode or drop."""
        frame = pd.DataFrame(
            {"a": [1.0, 2.0], "b": ["1", "2"], "c": DAYS, "d": pd.Categorical([1, 2])}
        )
        expected = r"encode or drop other columns first. Received: columns=\['b', 'c', 'd'\]"
        with pytest.raises(ValueError, match=expected):
            as_features(frame)

    def test_ragged_rows_are_refused(self):
        """The error does not come from NumPy."""
        with pytest.raises(ValueError, match=r"matrix of numbers. Received: x=\[\[1\], \[1, 2\]\]"):
            as_features([[1], [1, 2]])

    @pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 2, 2), ()])
    def test_other_than_matrices_are_refused(self, shape):
        """Features must have two axes and at least one column."""
        with pytest.raises(ValueError, match=r"matrix of shape \(rows, features\)") as error:
            as_features(np.zeros(shape))
        assert f"Received: x=array of shape {shape}" in str(error.value)

    def test_width_must_be_that_of_the_model(self):
        """The error has the expected and the received width."""
        with pytest.raises(ValueError, match="have the 3 columns.*Received: columns=2"):
            as_features(np.zeros((1, 2)), num_features=3)

    @pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
    def test_infinite_cells_are_located(self, value):
        """What float32 cannot hold is infinite too."""
        x = np.zeros((3, 4))
        x[1, 2] = value
        with pytest.raises(ValueError, match="finite in float32") as error:
            as_features(x)
        assert f"Received: row=1, column=2, value={value}" in str(error.value)


class TestAsFloatColumn:
    @pytest.mark.parametrize(
        "values",
        [
            [1, 2.5, None],
            np.array([1, 2.5, np.nan], np.float32),
            np.array([1, 2.5, pd.NA], object),
            np.array([1, decimal.Decimal("2.5"), None], object),
            pd.array([1, 2.5, None], "Float64"),
            pd.Series([1, 2.5, None], index=[7, 7, 9]),
            pd.Categorical([1, 2.5, None]),
            np.ma.array([1, 2.5, 0], mask=[False, False, True]),
            tf.constant([1, 2.5, np.nan]),
        ],
        ids=lambda values: type(values).__name__,
    )
    def test_numbers_become_float64(self, values):
        """All containers of numbers and all kinds of missing values are accepted."""
        column = as_float_column("t", values)
        assert column.dtype == np.float64
        np.testing.assert_array_equal(column, [1.0, 2.5, np.nan])

    def test_integers_and_booleans_are_numbers(self):
        """Nullable integers, unsigned integers and Booleans are accepted."""
        for values in (pd.array([1, 0], "Int64"), np.array([1, 0], np.uint8), [True, False]):
            np.testing.assert_array_equal(as_float_column("t", values), [1.0, 0.0])

    def test_null_integer_is_missing(self):
        """The null key of integers, which NaT becomes as an integer, is NaN."""
        np.testing.assert_array_equal(as_float_column("t", [1, NULL_INTEGER]), [1.0, np.nan])

    def test_large_values_keep_their_digits(self):
        """Large values are not rounded."""
        values = np.array([5_000_000.125, 2000.5])
        np.testing.assert_array_equal(as_float_column("t", values), values)

    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            (["1.5", "2.5"], "string"),
            ([1.5, "a"], "mixed"),
            (DAYS, "datetime64"),
            (DAYS - DAYS[0], "timedelta64"),
            ([1j, 2j], "complex"),
        ],
    )
    def test_other_types_are_refused(self, values, kind):
        """Text is not parsed, and dates are not converted to nanoseconds."""
        expected = "'t' must be a numeric vector: .* dates into numbers such as days since the fir"
        with pytest.raises(ValueError, match=expected) as error:
            as_float_column("t", values)
        assert f"Received: kind='{kind}', first=" in str(error.value)

    @pytest.mark.parametrize(
        "values", [np.zeros((2, 1)), pd.DataFrame([[1.0, 2.0]], columns=["t", "t"])]
    )
    def test_tables_are_refused(self, values):
        """A duplicated column name gives a table. The error says so."""
        expected = "'t' must be a vector with one entry per row, without a second column"
        with pytest.raises(ValueError, match=expected) as error:
            as_float_column("t", values)
        assert received(t=values) in str(error.value)

    @pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
    def test_infinite_values_are_located(self, value):
        """What float32 cannot hold is infinite too."""
        with pytest.raises(ValueError, match="'t' must be finite in float32") as error:
            as_float_column("t", [0.0, value])
        assert f"Received: row=1, value={value}" in str(error.value)


class TestAsKeysInteger:
    @pytest.mark.parametrize(
        "values",
        [
            [3, -1],
            np.array([3, -1], np.int8),
            np.array([3.0, -1.0], np.float32),
            np.array([3, -1], object),
            np.array([3, -1.0], object),
            pd.array([3, -1], "Int32"),
            pd.array([3.0, -1.0], "Float64"),
            pd.Series([3, -1], index=[5, 5]),
            pd.Categorical([3, -1]),
            tf.constant([3, -1]),
        ],
        ids=lambda values: f"{type(values).__name__} {getattr(values, 'dtype', '')}",
    )
    def test_whole_numbers_become_int64(self, values):
        """Integers of all types and floats that are whole numbers are accepted."""
        keys = as_keys("store", values)
        assert keys.dtype == np.int64
        np.testing.assert_array_equal(keys, [3, -1])

    @pytest.mark.parametrize(
        "values",
        [
            [3.0, np.nan],
            [3, None],
            np.array([3, pd.NA], object),
            np.array([3, np.nan], object),
            pd.array([3, None], "Int64"),
            pd.Categorical([3, None]),
            np.ma.array([3, 7], mask=[False, True]),
            [3, NULL_INTEGER],
        ],
        ids=["nan", "None", "NA", "object nan", "Int64", "Categorical", "masked", "INT64_MIN"],
    )
    def test_missing_keys_become_the_null_integer(self, values):
        """NaN, None, NA, masks and INT64_MIN are null keys."""
        np.testing.assert_array_equal(as_keys("store", values), [3, NULL_INTEGER])

    @pytest.mark.parametrize(
        "values",
        [
            [True, False],
            np.array([True, False]),
            np.array([True, False], object),
            pd.array([True, False], "boolean"),
            pd.Categorical([True, False]),
        ],
        ids=["list", "bool", "object", "boolean", "Categorical"],
    )
    def test_booleans_become_one_and_zero(self, values):
        """Booleans are a factor with two levels."""
        np.testing.assert_array_equal(as_keys("store", values), [1, 0])

    def test_missing_booleans_become_null(self):
        """A Boolean column with missing values becomes an integer column."""
        for values in (np.array([True, None], object), pd.array([True, None], "boolean")):
            np.testing.assert_array_equal(as_keys("store", values), [1, NULL_INTEGER])

    def test_the_largest_and_smallest_keys_are_kept(self):
        """All 64-bit integers except the null integer are keys."""
        values = [2**63 - 1, NULL_INTEGER + 1]
        assert as_keys("store", values).tolist() == values

    @pytest.mark.parametrize(
        "values",
        [[1, 10**30], [1, -(10**30)], np.array([1, 2**63], np.uint64)],
        ids=["huge", "tiny", "uint64"],
    )
    def test_longer_integers_are_refused(self, values):
        """Keys beyond 64 bits would wrap around into other keys."""
        with pytest.raises(ValueError, match="'store' must fit into 64 bits: convert") as error:
            as_keys("store", values)
        bounds = {"smallest": int(min(values)), "largest": int(max(values))}
        assert received(**bounds) in str(error.value)

    @pytest.mark.parametrize("values", [[1.0, 2.5], np.array([1, 2.5], object), [2.5, np.nan]])
    def test_broken_numbers_are_refused(self, values):
        """The error shows the first key that is not whole."""
        expected = "'store' must be strings or whole numbers. Received: key=2.5"
        with pytest.raises(ValueError, match=expected):
            as_keys("store", values)

    @pytest.mark.parametrize(
        "values", [[1.0, 2.0**53], np.array([1, 2**24], np.float32), [1.0, np.inf], [1e300]]
    )
    def test_floats_that_lost_digits_are_refused(self, values):
        """Beyond this size neighbouring integers are the same float."""
        with pytest.raises(ValueError, match="floats too large to tell .* apart: read") as error:
            as_keys("store", values)
        assert received(key=float(values[-1])) in str(error.value)


class TestAsKeysString:
    @pytest.mark.parametrize(
        "values",
        [
            ["a", "Żółć"],
            np.array(["a", "Żółć"]),
            np.array(["a", "Żółć"], object),
            np.array([np.str_("a"), np.str_("Żółć")], object),
            np.array([b"a", "Żółć".encode()]),
            [b"a", "Żółć".encode()],
            pd.array(["a", "Żółć"], "string"),
            pd.Series(["a", "Żółć"], index=[5, 5]),
            pd.Categorical(["a", "Żółć"]),
            tf.constant(["a", "Żółć"]),
        ],
        ids=lambda values: f"{type(values).__name__} {getattr(values, 'dtype', '')}",
    )
    def test_text_becomes_python_strings(self, values):
        """NumPy strings, UTF-8 bytes, pandas strings, categories and tensors are accepted."""
        keys = as_keys("store", values)
        assert keys.dtype == object
        assert [type(key) for key in keys] == [str, str]
        assert keys.tolist() == ["a", "Żółć"]

    @pytest.mark.parametrize(
        "values",
        [
            ["a", None],
            ["a", ""],
            ["a", np.nan],
            np.array(["a", pd.NA], object),
            pd.array(["a", None], "string"),
            pd.Categorical(["a", None]),
            [b"a", b""],
        ],
        ids=["None", "empty", "nan", "NA", "string", "Categorical", "bytes"],
    )
    def test_missing_keys_become_the_empty_string(self, values):
        """None, NaN, NA and the empty string are null keys."""
        assert as_keys("store", values).tolist() == ["a", ""]

    @pytest.mark.parametrize(
        "values", [[None, None], [np.nan, np.nan], pd.array([None] * 2, "Int64")]
    )
    def test_no_keys_at_all_are_all_null(self, values):
        """A column with only null keys becomes strings."""
        assert as_keys("store", values).tolist() == ["", ""]

    @pytest.mark.parametrize("values", [["a", "\ud800"], [b"a", b"\xff"]], ids=["text", "bytes"])
    def test_broken_text_is_refused(self, values):
        """Text that is not valid UTF-8 raises an error."""
        with pytest.raises(ValueError, match="'store' must be text in UTF-8") as error:
            as_keys("store", values)
        assert received(key=values[1]) in str(error.value)

    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            (["a", 1], "mixed-integer"),
            (["a", 1.5], "mixed"),
            (["a", b"a"], "mixed"),
            (DAYS, "datetime64"),
            (np.array(DAYS), "datetime64"),
            ([datetime.date(2024, 1, 1)], "date"),
            (DAYS - DAYS[0], "timedelta64"),
            (pd.period_range("2024", periods=2, freq="M"), "period"),
            (pd.cut([1.0, 2.0], 2), "interval"),
            ([decimal.Decimal(1)], "decimal"),
            ([(1, 2), (3, 4)], "mixed"),
        ],
        ids=str,
    )
    def test_other_types_are_refused(self, values, kind):
        """The error says how to convert the keys and has their kind and the first one."""
        expected = "all strings or all whole numbers: convert dates, .* with `.astype"
        with pytest.raises(ValueError, match=expected) as error:
            as_keys("store", values)
        assert f"Received: kind='{kind}', first=" in str(error.value)

    @pytest.mark.parametrize(
        "values", [np.array([["a"], ["b"]]), pd.DataFrame([["a", "b"]], columns=["store"] * 2)]
    )
    def test_tables_are_refused(self, values):
        """A duplicated column name gives a table. The error says so."""
        with pytest.raises(ValueError, match="'store' must be a vector with one entry") as error:
            as_keys("store", values)
        assert received(store=values) in str(error.value)

    def test_normalising_twice_changes_nothing(self):
        """Normalised keys do not change when they are normalised again."""
        for values in ([1, None], ["a", None]):
            keys = as_keys("store", values)
            assert as_keys("store", keys).tolist() == keys.tolist()
