"""Splits by rows, groups and time."""

import numpy as np
import pytest

from keras_lmmvae.simulation import simulate_longitudinal, simulate_spatial, split, take

LONGITUDINAL = simulate_longitudinal(n=300, num_features=3, num_subjects=30, seed=1)
SPATIAL = simulate_spatial(n=300, num_features=3, num_locations=40, seed=1)


@pytest.mark.parametrize(("kind", "on"), [("rows", None), ("groups", "subject"), ("future", "t")])
def test_split_parts_all_rows(kind, on):
    """Training and test rows partition all rows and are reproducible by seed."""
    data = LONGITUDINAL.data
    train, test = split(data, kind, on=on, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(300))
    np.testing.assert_array_equal(test, split(data, kind, on=on, seed=3)[1])
    if kind != "groups":
        assert len(test) == 60


def test_split_by_groups_holds_out_whole_levels():
    """No level is in both parts. Several columns form one key. Null keys are one level."""
    data = SPATIAL.data
    train, test = split(data, "groups", on=("lon", "lat"), seed=1)
    places = np.unique(data["location"])
    held_out = np.unique(data["location"][test])
    assert not np.intersect1d(data["location"][train], held_out).size
    assert len(held_out) == round(0.2 * len(places))
    keys = {"key": np.array(["a", None, "b", None, "a"], dtype=object)}
    for seed in range(5):
        train, test = split(keys, "groups", on="key", test_size=0.4, seed=seed)
        assert len({keys["key"][row] for row in test}) == 1
        assert not {keys["key"][row] for row in test} & {keys["key"][row] for row in train}


def test_split_by_future_tests_on_the_latest_rows():
    data = LONGITUDINAL.data
    train, test = split(data, "future", on="t", test_size=0.3)
    assert len(test) == 90
    assert data["t"][train].max() <= data["t"][test].min()


def test_take_copies_rows_of_every_column():
    data = {"x": np.arange(6.0).reshape(3, 2), "key": np.array(["a", "b", "c"])}
    rows = take(data, np.array([2, 0]))
    np.testing.assert_array_equal(rows["x"], [[4, 5], [0, 1]])
    np.testing.assert_array_equal(rows["key"], ["c", "a"])
    rows["x"][:] = -1
    assert data["x"].min() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "columns"}, r"`kind` must be one of .*kind='columns'"),
        ({"test_size": 1.0}, r"`test_size`, expected a number between 0 and 1\. .*test_size=1\.0"),
        ({"kind": "groups"}, r"needs at least one column in `on`\. Received: on=None"),
        ({"kind": "future", "on": ("a", "b")}, r"needs one time column .*on=\('a', 'b'\)"),
        ({"kind": "groups", "on": "b"}, r"lack the column\(s\) \['b'\].*Received: columns=\['a'\]"),
        ({"on": "a"}, r"leave `on` out\. Received: on='a'"),
        ({"kind": "groups", "on": "a"}, r"at least two .*count=1"),
    ],
)
def test_split_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        split({"a": np.zeros(4)}, **options)


def test_split_rejects_columns_of_unequal_length():
    with pytest.raises(ValueError, match=r"number of rows\. Received: lengths={'a': 4, 'b': 3}"):
        split({"a": np.zeros(4), "b": np.zeros(3)})
