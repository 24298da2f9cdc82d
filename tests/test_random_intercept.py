"""Random intercepts: columns, codes and what is saved."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from term_contract import adapted as adapted_term
from term_contract import normalised, with_effects

from keras_lmmvae import design
from keras_lmmvae.effects import RandomEffect, RandomIntercept, RandomSlopes
from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE

STORES = ["b", "a", "c", "b", None, "a"]


def adapted(keys=STORES, **options) -> RandomIntercept:
    return adapted_term(RandomIntercept("store", **options), {"store": keys})


class TestArguments:
    def test_name_defaults_to_the_column(self):
        """The label names the term in tables."""
        assert RandomIntercept("store").label == "store"
        assert RandomIntercept("store", name="shop").label == "shop"

    @pytest.mark.parametrize("column", ["", None, 3, ("store",), b"store"])
    def test_columns_must_be_named(self, column):
        """The error shows what came instead of a name."""
        with pytest.raises(ValueError, match="`column`, expected the name of a data") as error:
            RandomIntercept(column)
        assert f"Received: column={column!r}" in str(error.value)

    @pytest.mark.parametrize("column", ["x", "_effects"])
    def test_reserved_columns_are_refused(self, column):
        """The features' own name cannot be a factor's."""
        with pytest.raises(ValueError, match="are kept for the features: rename") as error:
            RandomIntercept(column)
        assert f"Received: columns=('{column}',)" in str(error.value)

    def test_names_must_be_strings(self):
        """Tables and signatures are named by them."""
        with pytest.raises(ValueError, match="`name`, expected a string. Received: name=3"):
            RandomIntercept("store", name=3)

    @pytest.mark.parametrize("column", ["my store/id", "Straße", "店", "_store", "2nd", "a b"])
    def test_any_column_name_makes_a_layer(self, column):
        """Layers are stricter about names than data frames."""
        term = adapted_term(RandomIntercept(column), {column: [1, 1, 2]})
        assert with_effects(term, 2).num_levels == 2
        assert term.label == column
        assert term.columns == (column,)

    @pytest.mark.parametrize("term", [RandomIntercept("a", name="b"), RandomIntercept("a")])
    def test_config_round_trip(self, term):
        """Keras restores the term from its configuration."""
        config = keras.saving.serialize_keras_object(term)
        clone = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
        assert type(clone) is RandomIntercept
        assert clone.get_config() == term.get_config()


class TestLevels:
    @pytest.mark.parametrize(
        ("keys", "levels"),
        [
            (STORES, ["a", "b", "c"]),
            (pd.Categorical(STORES), ["a", "b", "c"]),
            ([7, -2, 7, None], [-2, 7]),
            (np.array([True, False, True]), [0, 1]),
        ],
        ids=["strings", "Categorical", "integers", "Booleans"],
    )
    def test_levels_are_the_sorted_keys(self, keys, levels):
        """Null is no level."""
        term = adapted(keys)
        assert term.level_names() == levels
        assert (term.num_levels, term.basis_size) == (len(levels), 1)
        assert term.is_adapted

    def test_chunks_give_the_same_levels(self):
        """A dataset's batches count like one table."""
        term = RandomIntercept("store")
        for part in np.array_split(np.array(STORES, object), 4):
            term.update_state(normalised(term, {"store": part}))
        term.finalize_state()
        assert term.level_names() == adapted().level_names()

    def test_reset_starts_again(self):
        """After a failed `adapt` nothing of the old rows is left."""
        term = RandomIntercept("store")
        term.update_state(normalised(term, {"store": ["a", "b"]}))
        with pytest.raises(ValueError, match="single row"):
            term.finalize_state()
        term.reset_state()
        term.update_state(normalised(term, {"store": [1, 1]}))
        term.finalize_state()
        assert term.level_names() == [1]

    def test_unadapted_term_says_so(self):
        """Neither levels nor codes before `adapt`."""
        term = RandomIntercept("store")
        with pytest.raises(ValueError, match=r"'store' does not know its levels.*num_levels=0"):
            term.require_adapted()
        with pytest.raises(ValueError, match=r"'store' are not known yet: call `model.adapt"):
            term.encode({"store": tf.constant(["a"])})


class TestRows:
    def test_codes_of_rows(self):
        """Known keys have their position, unknown and null ones a code below zero."""
        term = adapted()
        encoded = term.encode(normalised(term, {"store": ["c", "z", None, "", "a"]}))
        assert list(encoded) == ["codes"]
        assert encoded["codes"].numpy().tolist() == [2, UNKNOWN_CODE, NULL_CODE, NULL_CODE, 0]
        assert term.basis(encoded) is None

    def test_row_of_z_is_the_indicator_of_the_level(self):
        """Z @ B gathers rows of B, and rows without a level get nothing."""
        term = adapted()
        effects = np.arange(6, dtype=np.float32).reshape(3, 1, 2)
        encoded = term.encode(normalised(term, {"store": ["c", "z", None, "a"]}))
        rows = design.product(tf.constant(effects), encoded["codes"], term.basis(encoded))
        np.testing.assert_array_equal(rows, [[4, 5], [0, 0], [0, 0], [0, 1]])

    @pytest.mark.parametrize("other_first", [True, False])
    def test_a_column_may_be_read_as_numbers_elsewhere(self, other_first):
        """Effects of the year and slopes in the year read one column of prepared rows."""
        years = np.array([2001, 2000, 2001, None], object)
        data = {"year": years, "g": [1, 1, 2, 2]}
        term, other = RandomIntercept("year"), RandomSlopes("g", time="year")
        first, second = (other, term) if other_first else (term, other)
        columns = normalised(first, data, second)
        assert columns["year"].dtype == np.int64
        term.update_state(columns)
        term.finalize_state()
        assert term.level_names() == [2000, 2001]
        as_numbers = {"year": years.astype(float)}
        for given in (columns, as_numbers):
            assert term.encode(given)["codes"].numpy().tolist() == [1, 0, 1, NULL_CODE]


class TestSaving:
    @pytest.mark.parametrize("keys", [STORES, [7, -2, 7, None]], ids=["strings", "integers"])
    def test_adapted_state_and_keys_round_trip(self, keys, tmp_path):
        """Plain numbers in the configuration, keys in a file."""
        term = adapted(keys)
        term.save_assets(str(tmp_path))
        clone = RandomIntercept.from_config(term.get_config())
        clone.restore_adapted_state(json.loads(json.dumps(term.adapted_state())))
        clone.load_assets(str(tmp_path))
        assert clone.num_levels == term.num_levels
        assert clone.level_names() == term.level_names()
        rows = normalised(clone, {"store": [keys[0], None]})
        np.testing.assert_array_equal(clone.encode(rows)["codes"], term.encode(rows)["codes"])


def test_base_leaves_the_structure_to_subclasses():
    """A term without its own methods says so, and does nothing by default."""
    term = RandomEffect(("a",), ("t",), "a")
    for call in (
        lambda: term.update_state({}),
        term.finalize_state,
        term.reset_state,
        lambda: term.codes({}, None),
        lambda: term.encode({}),
        term.level_names,
    ):
        with pytest.raises(NotImplementedError, match="RandomEffect must write `"):
            call()
    assert (term.columns, term.keys, term.numbers) == (("a", "t"), ("a",), ("t",))
    assert term.conform({}) == {}
    assert term.inputs({}) is None
    assert term.basis({}) is None
    assert term.missing_share(None, 1.0) is None
    assert term.coefficient_names() == ["intercept"]
    assert term.component_names() == ["a"]
    assert term.formula_name is None
    np.testing.assert_array_equal(term.user_basis(), [[1.0]])
    assert not term.has_learned_basis
    assert (term.curve_column, term.map_columns, term.fit_limits()) == (None, None, None)
