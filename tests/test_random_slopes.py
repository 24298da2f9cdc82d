"""Random slopes: the basis, its units, and rows without a time."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from term_contract import adapted as adapted_term
from term_contract import normalised

from keras_lmmvae import design
from keras_lmmvae.effects import RandomIntercept, RandomSlopes
from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE

N = 60
OPTIONS = {
    "linear": {"time": "t"},
    "quadratic": {"time": "t", "degree": 2},
    "quartic": {"time": "t", "degree": 4},
    "covariates": {"covariates": ["dose", "age"]},
    "both": {"time": "t", "degree": 3, "covariates": ("dose", "age")},
}


def table(time_offset: float = 0.0) -> dict:
    rng = np.random.default_rng(0)
    return {
        "patient": np.array([f"p{i % 7}" for i in range(N)]),
        "t": time_offset + rng.uniform(-2.0, 3.0, N),
        "dose": rng.exponential(1e-3, N),
        "age": rng.integers(20, 90, N),
    }


def adapted(data: dict, **options) -> RandomSlopes:
    return adapted_term(RandomSlopes("patient", **options), data)


def basis_of(term: RandomSlopes, data: dict) -> np.ndarray:
    return term.basis(term.encode(normalised(term, data))).numpy()


def user_basis_matrix(term: RandomSlopes, data: dict) -> np.ndarray:
    """1, t, t**2, ..., covariates as given, float64."""
    powers = (
        np.vander(data["t"], term.degree + 1, increasing=True) if term.time else np.ones((N, 1))
    )
    return np.column_stack([powers, *(data[name] for name in term.covariates)])


class TestArguments:
    def test_terms_have_names(self):
        """The intercept, powers of the time, covariates."""
        term = RandomSlopes("patient", time="t", degree=3, covariates=["dose"])
        assert term.coefficient_names() == ["intercept", "t", "t^2", "t^3", "dose"]
        assert term.columns == ("patient", "t", "dose")
        assert term.basis_size == 5
        assert term.learn_coefficient_covariance

    def test_something_to_be_linear_in_is_needed(self):
        """The error points to the random intercept."""
        expected = r"needs a `time` column or `covariates`; .*RandomIntercept. Received: time=None"
        with pytest.raises(ValueError, match=expected):
            RandomSlopes("patient")

    @pytest.mark.parametrize("degree", [-1, 1.0, True, "2", None])
    def test_degree_must_be_a_count(self, degree):
        """A non-negative int."""
        with pytest.raises(ValueError, match="`degree`, expected an integer of at leas") as error:
            RandomSlopes("patient", time="t", degree=degree)
        assert f"Received: degree={degree!r}" in str(error.value)

    def test_covariates_must_be_a_list(self):
        """A name is not taken for the list of its letters."""
        expected = "`covariates`, expected a list of column names. Received: covariates='dose'"
        with pytest.raises(ValueError, match=expected):
            RandomSlopes("patient", covariates="dose")

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"column": "", "time": "t"}, "invalid column names, expected non-empty"),
            ({"column": None, "time": "t"}, "invalid column names, expected non-empty"),
            ({"column": "patient", "time": ""}, "invalid column names, expected non-empty"),
            ({"column": "patient", "time": 3}, "invalid column names, expected non-empty"),
            ({"column": "patient", "covariates": [None]}, "invalid column names"),
            ({"column": "t", "time": "t"}, "a column name twice in one term"),
            ({"column": "patient", "time": "t", "covariates": ["t"]}, "a column name twice"),
            ({"column": "patient", "covariates": ["dose", "dose"]}, "a column name twice"),
            ({"column": "patient", "time": "x"}, "are kept for the features: rename"),
        ],
    )
    def test_unusable_column_names_are_refused(self, options, text):
        """Columns are non-empty strings, distinct, and not the features."""
        with pytest.raises(ValueError, match=f"{text}.*Received: columns="):
            RandomSlopes(**options)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
    def test_config_round_trip(self, options):
        """Keras restores the term from its configuration."""
        term = RandomSlopes("patient", name="growth", **options)
        config = keras.saving.serialize_keras_object(term)
        clone = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
        assert type(clone) is RandomSlopes
        assert clone.get_config() == term.get_config()
        assert clone.coefficient_names() == term.coefficient_names()

    def test_numpy_arguments_are_saved(self):
        """A degree that came out of a computation is a degree."""
        term = RandomSlopes("patient", time="t", degree=np.int64(2))
        config = keras.saving.serialize_keras_object(term)
        assert (
            keras.saving.deserialize_keras_object(config).coefficient_names()
            == term.coefficient_names()
        )


class TestBasis:
    @pytest.mark.parametrize("degree", [1, 2, 3, 5])
    def test_powers_of_the_scaled_time(self, degree):
        """np.vander of the standardised time."""
        data = table(2000.0)
        basis = basis_of(adapted(data, time="t", degree=degree), data)
        scaled = (data["t"] - data["t"].mean()) / data["t"].std()
        assert basis.dtype == np.float32
        expected = np.vander(scaled, degree + 1, increasing=True)
        np.testing.assert_allclose(basis, expected, rtol=1e-5, atol=1e-6)

    def test_covariates_stand_behind_the_powers(self):
        """Each standardised, in the order given."""
        data = table()
        basis = basis_of(adapted(data, **OPTIONS["both"]), data)
        for column, name in ((4, "dose"), (5, "age")):
            scaled = (data[name] - data[name].mean()) / data[name].std()
            np.testing.assert_allclose(basis[:, column], scaled, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(basis[:, 0], 1.0)

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
    def test_coefficients_in_the_units_of_the_columns(self, options):
        """basis_internal @ c == basis_user @ (user_basis @ c), for any coefficients c."""
        data = table(2.0)
        term = adapted(data, **options)
        coefficients = np.random.default_rng(1).normal(size=(term.basis_size, 3))
        inputs = np.column_stack([data[name].astype(float) for name in term.columns[1:]])
        scaled = (inputs - term.scaling.center) / term.scaling.spread
        powers = term.degree if term.time else 0
        internal = np.column_stack(
            [
                np.ones(N),
                *(scaled[:, 0] ** k for k in range(1, powers + 1)),
                scaled[:, powers > 0 :],
            ]
        )
        np.testing.assert_allclose(
            user_basis_matrix(term, data) @ (term.user_basis() @ coefficients),
            internal @ coefficients,
            rtol=1e-10,
            atol=1e-10,
        )
        np.testing.assert_allclose(basis_of(term, data), internal, rtol=1e-4, atol=1e-5)

    def test_user_basis_of_years(self):
        """Slopes per year, though the origin is two thousand years away."""
        data = table(2000.0)
        term = adapted(data, time="t", degree=2)
        values = user_basis_matrix(term, data) @ term.user_basis()
        np.testing.assert_allclose(values, basis_of(term, data), rtol=1e-5, atol=1e-5)

    def test_basis_does_not_depend_on_the_rows_around(self):
        """A row's basis is a function of the row."""
        data = table()
        term = adapted(data, **OPTIONS["both"])
        part = {name: values[5:9] for name, values in data.items()}
        np.testing.assert_array_equal(basis_of(term, part), basis_of(term, data)[5:9])


class TestDegreeZero:
    def test_is_the_random_intercept(self):
        """The same rows of Z, without a look at the time."""
        data = table()
        slopes, intercept = adapted(data, time="t", degree=0), RandomIntercept("patient")
        adapted_term(intercept, data)
        rows = {"patient": ["p3", "nobody", None]}
        encoded, expected = (term.encode(normalised(term, rows)) for term in (slopes, intercept))
        np.testing.assert_array_equal(encoded["codes"], expected["codes"])
        assert slopes.basis(encoded) is None
        assert slopes.columns == intercept.columns
        assert slopes.coefficient_names() == intercept.coefficient_names()
        assert not slopes.learn_coefficient_covariance
        np.testing.assert_array_equal(slopes.user_basis(), [[1.0]])

    def test_constant_time_is_no_obstacle(self):
        """Nothing is scaled by it."""
        adapted({"patient": ["a", "a"], "t": [1.0, 1.0]}, time="t", degree=0)

    def test_covariates_keep_their_slopes(self):
        """Only the powers of the time are gone."""
        term = adapted(table(), time="t", degree=0, covariates=["dose"])
        assert term.coefficient_names() == ["intercept", "dose"]
        assert basis_of(term, table()).shape == (N, 2)


class TestRows:
    def test_unknown_and_null_keys(self):
        """As for intercepts."""
        term = adapted(table(), time="t")
        rows = normalised(term, {"patient": ["p1", "z", None], "t": [0.0, 0.0, 0.0]})
        assert term.encode(rows)["codes"].numpy().tolist() == [1, UNKNOWN_CODE, NULL_CODE]

    @pytest.mark.parametrize("missing", ["t", "dose"])
    def test_a_missing_input_leaves_no_level(self, missing):
        """Null code, zero inputs, and a zero row of Z in products and sums."""
        term = adapted(table(), **OPTIONS["both"])
        rows = {"patient": ["p1", "p1"], "t": [1.0, 1.0], "dose": [0.1, 0.1], "age": [50, 50]}
        rows[missing] = [0.5, np.nan]
        encoded = term.encode(normalised(term, rows))
        basis = term.basis(encoded)
        assert encoded["codes"].numpy().tolist() == [1, NULL_CODE]
        np.testing.assert_array_equal(encoded["inputs"][1], 0.0)
        assert np.isfinite(basis).all()
        effects = tf.ones((term.num_levels, term.basis_size, 2))
        contribution = design.product(effects, encoded["codes"], basis).numpy()
        np.testing.assert_array_equal(contribution[1], 0.0)
        one, both = (
            design.transpose_product(
                tf.ones((size, 2)), encoded["codes"][:size], basis[:size], term.num_levels
            )
            for size in (1, 2)
        )
        np.testing.assert_array_equal(one, both)

    def test_rows_without_time_still_count_as_keys(self):
        """Centre and spread come from the complete rows, levels from all."""
        data = {"patient": ["a", "a", "b", "b"], "t": [1.0, 3.0, np.nan, np.nan]}
        term = adapted(data, time="t")
        assert term.level_names() == ["a", "b"]
        assert term.scaling.center == [2.0]

    @pytest.mark.parametrize("keys_first", [True, False])
    def test_the_time_may_be_a_factor_elsewhere(self, keys_first):
        """Effects of the year and slopes in the year read one column of prepared rows."""
        data = {"patient": ["a", "b"] * 3, "year": np.array([1, 2, None, 4, 5, 6], object)}
        term, years = RandomSlopes("patient", time="year"), RandomIntercept("year")
        alone = normalised(term, data)
        columns = normalised(years, data, term) if keys_first else normalised(term, data, years)
        assert (alone["year"].dtype, columns["year"].dtype) == (np.float64, np.int64)
        term.update_state(columns)
        term.finalize_state()
        assert term.scaling.center == pytest.approx([18 / 5])
        for name, value in term.encode(alone).items():
            np.testing.assert_array_equal(term.encode(columns)[name], value)


class TestErrors:
    def test_constant_time_is_refused(self):
        """No slope can be learned on it."""
        with pytest.raises(ValueError, match=r"\['t'\] do not vary, .*Received: value=2.0"):
            adapted({"patient": ["a", "a"], "t": [2.0, 2.0]}, time="t")

    def test_dates_are_refused(self):
        """The error says to count days."""
        dates = np.array(["2024-01-01", "2024-02-01"], "datetime64[D]")
        with pytest.raises(ValueError, match="'t' must be a numeric vector: .* such as days"):
            adapted({"patient": ["a", "a"], "t": dates}, time="t")

    def test_unadapted_term_says_so(self):
        """No codes before `adapt`."""
        with pytest.raises(ValueError, match=r"not known yet: call `model.adapt\(data\)` first"):
            RandomSlopes("patient", time="t").encode({"patient": tf.constant(["a"])})

    def test_reset_starts_again(self):
        """Neither levels nor scales of the old rows are left."""
        term = RandomSlopes("patient", time="t")
        term.update_state(normalised(term, {"patient": ["z", "z"], "t": [100.0, 100.0]}))
        with pytest.raises(ValueError, match="do not vary"):
            term.finalize_state()
        term.reset_state()
        term.update_state(normalised(term, {"patient": [1, 1], "t": [1.0, 3.0]}))
        term.finalize_state()
        assert term.level_names() == [1]
        assert term.scaling.state() == {"center": [2.0], "spread": [1.0]}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_adapted_state_and_keys_round_trip(options, tmp_path):
    """What is saved gives the same codes, basis and units."""
    data = table(2000.0)
    term = adapted(data, **options)
    term.save_assets(str(tmp_path))
    clone = RandomSlopes.from_config(term.get_config())
    clone.restore_adapted_state(json.loads(json.dumps(term.adapted_state())))
    clone.load_assets(str(tmp_path))
    np.testing.assert_array_equal(basis_of(clone, data), basis_of(term, data))
    np.testing.assert_array_equal(clone.user_basis(), term.user_basis())
    assert clone.level_names() == term.level_names()
