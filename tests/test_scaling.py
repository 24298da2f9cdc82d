"""Centre and spread of numeric columns."""

import numpy as np
import pytest
import tensorflow as tf

from keras_lmmvae.effects.scaling import ColumnScaling, as_numbers
from keras_lmmvae.validation import NULL_INTEGER


def scaled_by(columns: dict, *, is_common: bool = False, chunks: int = 1) -> ColumnScaling:
    scaling = ColumnScaling(tuple(columns), is_common)
    for part in zip(*(np.array_split(values, chunks) for values in columns.values()), strict=True):
        scaling.update_state(dict(zip(columns, part, strict=True)))
    scaling.finalize_state()
    return scaling


@pytest.fixture
def columns() -> dict:
    rng = np.random.default_rng(0)
    return {"t": rng.normal(2000.0, 5.0, 101), "dose": rng.exponential(1e-3, 101)}


class TestAsNumbers:
    def test_numbers_become_float64(self):
        """Numbers of any type become float64."""
        for values in ([1, 2], np.array([1, 2], np.float32), tf.constant([1, 2], tf.int8)):
            numbers = as_numbers(values)
            assert numbers.dtype == tf.float64
            assert numbers.numpy().tolist() == [1.0, 2.0]

    def test_null_keys_become_nan(self):
        """A column may be read as keys by one term and as numbers by another."""
        numbers = as_numbers(np.array([2000, NULL_INTEGER]))
        np.testing.assert_array_equal(numbers, [2000.0, np.nan])


class TestFit:
    def test_columns_get_mean_zero_and_variance_one(self, columns):
        """Each column is scaled by its own mean and standard deviation."""
        scaling = scaled_by(columns)
        values = scaling.scale(columns).numpy()
        assert values.dtype == np.float32
        np.testing.assert_allclose(scaling.center, [v.mean() for v in columns.values()], rtol=1e-12)
        np.testing.assert_allclose(scaling.spread, [v.std() for v in columns.values()], rtol=1e-12)
        np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=1e-6)
        np.testing.assert_allclose(values.std(axis=0), 1.0, rtol=1e-6)

    def test_common_spread_keeps_the_shape_of_a_map(self, columns):
        """One spread, the root mean variance, keeps the ratios of distances."""
        scaling = scaled_by(columns, is_common=True)
        mean_variance = np.mean([values.var() for values in columns.values()])
        np.testing.assert_allclose(scaling.spread, np.sqrt(mean_variance), rtol=1e-12)

    def test_common_spread_allows_a_constant_coordinate(self):
        """Places on a line have one direction."""
        scaling = scaled_by({"e": np.array([1.0, 3.0]), "n": np.array([5.0, 5.0])}, is_common=True)
        assert scaling.center == [2.0, 5.0]

    def test_chunks_give_the_same_as_all_rows(self, columns):
        """Sums do not depend on how the rows come."""
        at_once, in_chunks = scaled_by(columns), scaled_by(columns, chunks=7)
        np.testing.assert_allclose(in_chunks.center, at_once.center, rtol=1e-13)
        np.testing.assert_allclose(in_chunks.spread, at_once.spread, rtol=1e-12)

    def test_rows_with_missing_values_are_left_out(self):
        """A row counts if all columns are known, whichever chunk it is in."""
        scaling = ColumnScaling(("t", "dose"))
        nan = np.nan
        scaling.update_state({"t": np.array([nan, nan]), "dose": np.array([1.0, 2.0])})
        scaling.update_state({"t": np.array([1.0, 9.0, 3.0]), "dose": np.array([2.0, nan, 6.0])})
        scaling.finalize_state()
        assert scaling.center == [2.0, 4.0]
        assert scaling.spread == [1.0, 2.0]

    @pytest.mark.parametrize("offset", [2000.0, 5e6, 1.7e18])
    def test_digits_far_from_zero_are_kept(self, offset):
        """Steps keep their digits in years, metres of a map grid and nanoseconds since 1970."""
        step = max(1.0 / 365.25, np.spacing(offset) * 1000)
        t = offset + step * np.arange(50)
        scaling = scaled_by({"t": t})
        expected = (np.arange(50) - 24.5) / np.arange(50).std()
        np.testing.assert_allclose(scaling.scale({"t": t})[:, 0], expected, atol=2e-3)

    def test_float32_columns_lose_nothing_more(self):
        """Coordinates in metres, given in float32, are scaled as the float64 of the same value."""
        t = (5e6 + 3.0 * np.arange(50)).astype(np.float32)
        scaling = scaled_by({"t": t})
        expected = (t.astype(np.float64) - np.mean(t, dtype=np.float64)) / np.std(t, dtype=float)
        np.testing.assert_allclose(scaling.scale({"t": t})[:, 0], expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("value", [0.0, 0.1, 2000.3, -5e6])
    def test_constant_columns_are_refused(self, value):
        """The error names the column and its value."""
        columns = {"t": np.arange(5.0), "dose": np.full(5, value)}
        with pytest.raises(ValueError, match=r"\['dose'\] do not vary, so no effect") as error:
            scaled_by(columns)
        assert f"Received: value={value}" in str(error.value)

    def test_variation_by_rounding_is_constant(self):
        """0.1 + 0.2 and 0.3 are the same dose."""
        with pytest.raises(ValueError, match="do not vary"):
            scaled_by({"dose": np.array([0.1 + 0.2, 0.3, 0.3])})

    def test_no_complete_row_is_refused(self):
        """Rows that all lack a value raise an error."""
        columns = {"t": np.array([1.0, np.nan]), "dose": np.array([np.nan, 1.0])}
        expected = r"\['t', 'dose'\] hold no complete row. Received: rows=0"
        with pytest.raises(ValueError, match=expected):
            scaled_by(columns)

    def test_reset_forgets_the_rows(self):
        """A new start counts the new rows only."""
        scaling = ColumnScaling(("t",))
        scaling.update_state({"t": np.array([100.0, 200.0])})
        scaling.reset_state()
        scaling.update_state({"t": np.array([1.0, 3.0])})
        scaling.finalize_state()
        assert (scaling.center, scaling.spread) == ([2.0], [1.0])


class TestScale:
    def test_missing_values_stay_nan(self):
        """NaN and null keys stay missing."""
        scaling = scaled_by({"t": np.array([1.0, 3.0])})
        values = scaling.scale({"t": tf.constant([2, NULL_INTEGER], tf.int64)})
        np.testing.assert_array_equal(values, [[0.0], [np.nan]])

    def test_graph_equals_eager(self, columns):
        """Input pipelines and served models scale alike."""
        scaling = scaled_by(columns)
        np.testing.assert_array_equal(tf.function(scaling.scale)(columns), scaling.scale(columns))

    def test_state_round_trip(self, columns):
        """Plain numbers restore the scaling to the last bit."""
        scaling, clone = scaled_by(columns), ColumnScaling(tuple(columns))
        clone.restore(scaling.state())
        assert clone.state() == scaling.state()
        np.testing.assert_array_equal(clone.scale(columns), scaling.scale(columns))
