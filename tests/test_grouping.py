"""The levels of a column: found, checked, looked up and saved."""

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from keras_lmmvae.effects.vocabulary import (
    NULL_CODE,
    UNKNOWN_CODE,
    Grouping,
    ServedTable,
    Vocabulary,
)
from keras_lmmvae.validation import NULL_INTEGER, as_keys


def conform(grouping: Grouping, keys) -> np.ndarray:
    """Keys as a model hands them to a grouping: normalised, then checked by it."""
    return grouping.conform(as_keys(grouping.column, keys))


def adapted(*chunks) -> Grouping:
    grouping = Grouping("store")
    for chunk in chunks:
        grouping.update_state(conform(grouping, chunk))
    grouping.finalize_state()
    return grouping


class TestLevels:
    @pytest.mark.parametrize(
        ("keys", "levels"),
        [
            (["b", "a", "10", "b", "9", None, ""], ["10", "9", "a", "b"]),
            ([10, 9, -1, 10, None], [-1, 9, 10]),
            (pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"]), ["a", "b"]),
            ([True, False, True], [0, 1]),
        ],
        ids=["strings", "integers", "Categorical", "Booleans"],
    )
    def test_levels_are_the_sorted_keys(self, keys, levels):
        """Levels are sorted by character or value; null keys and unused categories are none."""
        assert adapted(keys).vocabulary.keys.tolist() == levels

    def test_size_is_returned(self):
        """`finalize_state` returns the number of levels."""
        grouping = Grouping("store")
        grouping.update_state(conform(grouping, ["b", "a", "a"]))
        assert grouping.finalize_state() == 2

    @pytest.mark.parametrize("keys", [["b", "a", "b", "c", "a"], [7, -3, 7, 2**53 + 1, 2**53 + 1]])
    def test_chunks_give_the_same_levels(self, keys):
        """Chunks give the levels that all rows at once give."""
        at_once = adapted(keys).vocabulary.keys.tolist()
        assert adapted(keys[:2], keys[2:3], keys[3:]).vocabulary.keys.tolist() == at_once

    @pytest.mark.parametrize("keys", [["a", "a"], [1, 1]])
    @pytest.mark.parametrize("empty", [[None, None], [np.nan], []])
    def test_chunks_without_keys_leave_the_type_open(self, keys, empty):
        """A batch whose keys are all missing may come first, last or between."""
        assert adapted(empty, keys, empty).vocabulary.keys.tolist() == [keys[0]]

    def test_chunks_of_unlike_types_are_refused(self):
        """Strings do not become integers on the way."""
        grouping = Grouping("store")
        grouping.update_state(conform(grouping, [1, 1]))
        with pytest.raises(ValueError, match="'store' must be integers.*kind='strings', first='a'"):
            conform(grouping, ["", "a"])

    def test_no_keys_at_all_are_refused(self):
        """A column without any key raises an error."""
        expected = "'store' holds no keys, expected at least one level. Received: levels=0"
        with pytest.raises(ValueError, match=expected):
            adapted([None, None])

    def test_singletons_only_are_refused(self):
        """One level of two rows is enough; without any an error is raised."""
        adapted(["a", "b", "b"])
        expected = "'store' have a single row.* choose a coarser grouping.*Received: levels=3"
        with pytest.raises(ValueError, match=expected):
            adapted(["a", "b", "c", None, None])

    def test_line_breaks_are_refused(self):
        """A key with a line break raises an error, for a file has one key a line."""
        with pytest.raises(ValueError, match=r"line breaks. Received: key='a\\nb'"):
            adapted(["a\nb", "a\nb"])

    def test_reset_forgets_everything(self):
        """A reset lets other rows of another type be taken in."""
        grouping = Grouping("store")
        grouping.update_state(conform(grouping, ["a", "b"]))
        with pytest.raises(ValueError, match="single row"):
            grouping.finalize_state()
        grouping.reset_state()
        grouping.update_state(conform(grouping, [1, 1]))
        assert grouping.finalize_state() == 1

    def test_unadapted_grouping_says_so(self):
        """The error says what to call."""
        expected = (
            r"'store' are not known yet: call `model.adapt\(data\)`.*Received: vocabulary=None"
        )
        with pytest.raises(ValueError, match=expected):
            _ = Grouping("store").vocabulary


class TestConform:
    @pytest.mark.parametrize(
        ("levels", "keys", "text"),
        [
            (["a", "a"], [None, 1], "must be strings, .*Received: kind='integers', first=1"),
            ([1, 1], [None, "a"], "must be integers, .*Received: kind='strings', first='a'"),
        ],
    )
    def test_keys_of_another_type_are_refused(self, levels, keys, text):
        """The error shows the first key, not a missing one."""
        with pytest.raises(ValueError, match=text):
            conform(adapted(levels), keys)

    @pytest.mark.parametrize(
        ("levels", "null"), [(["a", "a"], ""), ([1, 1], NULL_INTEGER)], ids=["strings", "integers"]
    )
    @pytest.mark.parametrize("keys", [[None], [np.nan], [""], [NULL_INTEGER]], ids=str)
    def test_null_keys_take_the_type_adapted_to(self, levels, null, keys):
        """A column without any key has no type of its own."""
        found = conform(adapted(levels), keys)
        assert found.dtype == (object if null == "" else np.int64)
        assert found.tolist() == [null]


class TestLookup:
    @pytest.mark.parametrize(
        ("levels", "keys"), [(["a", "b", "b"], ["b", "c", None]), ([1, 5, 5], [5, 2, None])]
    )
    def test_codes_of_normalised_keys(self, levels, keys):
        """Known, unknown and null keys have their codes."""
        grouping = adapted(levels)
        codes = grouping.lookup(conform(grouping, keys))
        assert codes.dtype == tf.int32
        assert codes.numpy().tolist() == [1, UNKNOWN_CODE, NULL_CODE]

    def test_table_of_its_column_is_used(self, tmp_path):
        """Given tables, by column, stand in for the one in memory."""
        grouping = adapted(["a", "b", "b"])
        table = ServedTable(Vocabulary(["b", "c"]), tmp_path / "keys.txt")
        keys = tf.constant(["c", "b", ""])
        assert grouping.lookup(keys).numpy().tolist() == [UNKNOWN_CODE, 1, NULL_CODE]
        assert grouping.lookup(keys, {"store": table}).numpy().tolist() == [1, 0, NULL_CODE]

    @pytest.mark.parametrize(
        ("levels", "keys", "text"),
        [
            (["a", "a"], [1], "must be strings, .*Received: dtype='int32'"),
            ([1, 1], ["a"], "must be integers, .*Received: dtype='string'"),
        ],
    )
    def test_tensors_of_another_type_are_refused(self, levels, keys, text):
        """A pipeline's keys are checked where they are looked up."""
        with pytest.raises(ValueError, match=text):
            adapted(levels).lookup(tf.constant(keys))


class TestExtend:
    def test_new_levels_come_behind(self):
        """Codes of present levels stay; the new size is returned."""
        grouping = adapted(["b", "b", "c"])
        assert grouping.extend(np.array(["a", "c", "", "a"], object)) == 3
        assert grouping.vocabulary.keys.tolist() == ["b", "c", "a"]

    def test_integer_levels_may_come_as_floats(self):
        """Integer levels may come as floats with NaN, as pandas makes them of gaps."""
        grouping = adapted([2001, 2001])
        assert grouping.extend(conform(grouping, np.array([2001.0, np.nan, 1999.0]))) == 2
        assert grouping.vocabulary.keys.tolist() == [2001, 1999]


class TestSaving:
    @pytest.mark.parametrize("keys", [["b", "a", "a"], [3, -1, 3]])
    def test_round_trip(self, keys, tmp_path):
        """State and file restore vocabulary and type."""
        grouping, clone = adapted(keys), Grouping("store")
        grouping.save(str(tmp_path))
        clone.restore(grouping.state())
        assert clone.state() == grouping.state()
        clone.load(str(tmp_path))
        assert clone.state() == grouping.state()
        assert clone.vocabulary.keys.tolist() == grouping.vocabulary.keys.tolist()

    def test_unadapted_grouping_has_no_file(self, tmp_path):
        """A grouping without levels writes nothing and reads nothing."""
        grouping, clone = Grouping("store"), Grouping("store")
        grouping.save(str(tmp_path))
        assert list(tmp_path.iterdir()) == []
        clone.restore(grouping.state())
        clone.load(str(tmp_path))
        with pytest.raises(ValueError, match="not known yet"):
            _ = clone.vocabulary

    def test_another_number_of_keys_is_refused(self, tmp_path):
        """A foreign file does not shift the levels."""
        grouping, clone = adapted(["a", "a", "b"]), Grouping("store")
        adapted(["a", "a"]).save(str(tmp_path))
        clone.restore(grouping.state())
        with pytest.raises(ValueError, match="'store' must hold 2 keys, .*Received: keys=1"):
            clone.load(str(tmp_path))
