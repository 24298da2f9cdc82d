"""The lookup of keys, in memory and from a file."""

import copy
import pickle

import numpy as np
import pytest
import tensorflow as tf

from keras_lmmvae.effects.vocabulary import NULL_CODE, UNKNOWN_CODE, ServedTable, Vocabulary
from keras_lmmvae.validation import NULL_INTEGER

STRINGS = ["", " padded ", "#", "10", "9", "Straße", "a\tb", "naïve", "дом", "家", "🏠"][1:]
INTEGERS = [-(2**63) + 1, -7, 0, 3, 2**63 - 1]


@pytest.fixture(params=["strings", "integers"])
def vocabulary(request) -> Vocabulary:
    if request.param == "strings":
        return Vocabulary(STRINGS)
    return Vocabulary(np.array(INTEGERS, np.int64))


def some_keys(vocabulary: Vocabulary) -> tuple[np.ndarray, list[int]]:
    """All keys in reverse, an unknown and a null one, with their codes."""
    unknown, null = (12345, NULL_INTEGER) if vocabulary.is_integer else ("?", "")
    keys = np.array([*vocabulary.keys[::-1], unknown, null], vocabulary.keys.dtype)
    return keys, [*range(len(vocabulary))[::-1], UNKNOWN_CODE, NULL_CODE]


class TestLookup:
    def test_code_is_the_position(self, vocabulary):
        """The code of a key is its position, in any alphabet; unknown and null keys have theirs."""
        keys, codes = some_keys(vocabulary)
        found = vocabulary.lookup(keys)
        assert found.dtype == tf.int32
        assert found.numpy().tolist() == codes

    def test_no_rows_have_no_codes(self, vocabulary):
        """An empty batch is a batch."""
        assert vocabulary.lookup(tf.zeros((0,), vocabulary.dtype)).shape == (0,)

    def test_inside_a_dataset(self, vocabulary):
        """The table can be made while a pipeline is traced."""
        keys, codes = some_keys(vocabulary)
        dataset = tf.data.Dataset.from_tensor_slices(tf.constant(keys, vocabulary.dtype)).batch(3)
        found = np.concatenate(list(dataset.map(vocabulary.lookup).as_numpy_iterator()))
        assert found.tolist() == codes

    def test_inside_a_function(self, vocabulary):
        """The table can be made while a function is traced, and outlives it."""
        keys, codes = some_keys(vocabulary)
        tensor = tf.constant(keys, vocabulary.dtype)
        assert tf.function(vocabulary.lookup)(tensor).numpy().tolist() == codes
        assert vocabulary.lookup(tensor).numpy().tolist() == codes

    @pytest.mark.parametrize("dtype", [tf.int8, tf.int32, tf.int64])
    def test_narrow_integers_are_taken(self, dtype):
        """A pipeline may hold keys of any integer type."""
        keys = tf.constant([-7, 0, 99], dtype)
        assert Vocabulary(np.array(INTEGERS)).lookup(keys).numpy().tolist() == [1, 2, UNKNOWN_CODE]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_floats_stand_for_whole_numbers(self, dtype):
        """NaN is null; what is not whole, or too large, is unknown and not some other key."""
        keys = np.array([-7.0, 3.0, 3.5, np.nan, np.inf, -np.inf, 1e30, -(2.0**63)], dtype)
        expected = [1, 3, UNKNOWN_CODE, NULL_CODE, *[UNKNOWN_CODE] * 4]
        assert Vocabulary(np.array(INTEGERS)).lookup(keys).numpy().tolist() == expected

    def test_copies_look_up_alike(self, vocabulary):
        """A copy makes a table of its own."""
        keys, codes = some_keys(vocabulary)
        vocabulary.lookup(keys)
        for clone in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
            assert clone.lookup(keys).numpy().tolist() == codes


class TestFile:
    def test_save_and_load_keep_the_keys(self, vocabulary, tmp_path):
        """A file keeps order, type and every character of the keys."""
        vocabulary.save(tmp_path / "keys.txt")
        loaded = Vocabulary.load(tmp_path / "keys.txt", vocabulary.is_integer)
        assert loaded.is_integer == vocabulary.is_integer
        assert loaded.keys.tolist() == vocabulary.keys.tolist()

    def test_table_of_the_file_equals_that_in_memory(self, vocabulary, tmp_path):
        """What is served finds the same codes as what was trained."""
        keys, codes = some_keys(vocabulary)
        path = str(tmp_path / "keys.txt")
        vocabulary.save(path)
        found = vocabulary.lookup(keys, ServedTable(vocabulary, path))
        assert found.dtype == tf.int32
        assert found.numpy().tolist() == codes

    def test_file_is_an_asset_of_a_saved_model(self, vocabulary, tmp_path):
        """A SavedModel moved to another place takes the keys along."""
        keys, codes = some_keys(vocabulary)
        path = tmp_path / "keys.txt"
        vocabulary.save(path)
        module = tf.Module()
        module.table = ServedTable(vocabulary, path)
        module.find = tf.function(
            lambda keys: vocabulary.lookup(keys, module.table),
            input_signature=[tf.TensorSpec((None,), vocabulary.dtype)],
        )
        tf.saved_model.save(module, str(tmp_path / "first"))
        path.unlink()
        (tmp_path / "first").rename(tmp_path / "second")
        loaded = tf.saved_model.load(str(tmp_path / "second"))
        assert loaded.find(tf.constant(keys, vocabulary.dtype)).numpy().tolist() == codes

    @pytest.mark.parametrize(
        ("content", "is_integer"),
        [
            (None, False),
            (b"1\n2\nthree\n", True),
            (b"1\n99999999999999999999999\n", True),
            (b"one\ntwo", False),
            (b"one\n\ntwo\n", False),
            (b"one\none\n", False),
            (b"\xff\xfe\n", False),
        ],
        ids=["missing", "text", "huge", "cut off", "empty line", "twice", "no UTF-8"],
    )
    def test_damaged_files_are_refused(self, content, is_integer, tmp_path):
        """The error names the file."""
        path = tmp_path / "keys.txt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="missing or damaged. Received: path=") as error:
            Vocabulary.load(path, is_integer)
        assert str(path) in str(error.value)


class TestKeys:
    @pytest.mark.parametrize("key", ["a\nb", "a\rb", "\n"])
    def test_line_breaks_are_refused(self, key):
        """Keys with line breaks raise an error, for a file could not keep them apart."""
        with pytest.raises(ValueError, match="must not hold line breaks") as error:
            Vocabulary(["a", key])
        assert f"Received: key={key!r}" in str(error.value)

    @pytest.mark.parametrize("keys", [["a", "b", "a"], np.array([2, 1, 2])])
    def test_keys_that_stand_twice_are_refused(self, keys):
        """A key has one code."""
        with pytest.raises(ValueError, match="Keys must be distinct. Received: key="):
            Vocabulary(keys)

    @pytest.mark.parametrize("keys", [["a", ""], np.array([1, NULL_INTEGER])])
    def test_null_keys_are_refused(self, keys):
        """The empty string and the null integer are no levels."""
        with pytest.raises(ValueError, match="A null key has no level. Received: key="):
            Vocabulary(keys)


class TestExtended:
    def test_new_keys_come_behind(self, vocabulary):
        """Present keys keep their codes; new ones are sorted, each once, and null is none."""
        fresh = [5, 4, 5, NULL_INTEGER] if vocabulary.is_integer else ["z", "b", "z", ""]
        keys = np.array([vocabulary.keys[0], *fresh], vocabulary.keys.dtype)
        extended = vocabulary.extended(keys)
        expected = [*vocabulary.keys, *sorted(fresh[:2])]
        assert extended.keys.tolist() == expected
        assert extended.is_integer == vocabulary.is_integer
        codes = extended.lookup(np.array(expected, extended.keys.dtype)).numpy()
        assert codes.tolist() == list(range(len(expected)))

    def test_nothing_new_changes_nothing(self, vocabulary):
        """Known keys and no keys at all change nothing."""
        for keys in (vocabulary.keys, vocabulary.keys[:0]):
            assert vocabulary.extended(keys).keys.tolist() == vocabulary.keys.tolist()
