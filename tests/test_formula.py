"""Formulas: the terms they stand for, models made by them, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
from keras_lmmvae.effects.combined_keys import combined_keys, with_combined_keys

Intercept, Slopes, Surface = lmm.RandomIntercept, lmm.RandomSlopes, lmm.SpatialEffect

SAME = {
    "(1 | store)": [Intercept("store")],
    "(1|a)+(1|b)": [Intercept("a"), Intercept("b")],
    "(1 | a:b)": [Intercept("a.b", name="a:b")],
    "(1 | a/b)": [Intercept("a"), Intercept("a.b", name="a:b")],
    "(1 | a/b:c)": [Intercept("a"), Intercept("a.b.c", name="a:b:c")],
    "(1 | a/b/c)": [
        Intercept("a"),
        Intercept("a.b", name="a:b"),
        Intercept("a.b.c", name="a:b:c"),
    ],
    "(1 + t | a/b)": [Slopes("a", time="t"), Slopes("a.b", time="t", name="a:b")],
    "(1 + t | s)": [Slopes("s", time="t", degree=1)],
    "(t | s)": [Slopes("s", time="t", degree=1)],
    "(1 + t + t^2 | s)": [Slopes("s", time="t", degree=2)],
    "(t + t**2 + t^3 | s)": [Slopes("s", time="t", degree=3)],
    "(t + I(t^2) | s)": [Slopes("s", time="t", degree=2)],
    "(poly(t, 3) | s)": [Slopes("s", time="t", degree=3)],
    "(1 + dose + age | s)": [Slopes("s", covariates=["dose", "age"])],
    "(dose + t + t^2 | s)": [Slopes("s", time="t", degree=2, covariates=["dose"])],
    "gp(lon, lat)": [Surface(("lon", "lat"))],
    "gp(lon, lat, kernel=matern32, length_scale=0.3)": [
        Surface(("lon", "lat"), kernel="matern32", length_scale=0.3)
    ],
    "gp(e, metric='euclidean', num_inducing=9, seed=2, name=\"a line\", length_scale=None)": [
        Surface(("e",), num_inducing=9, seed=2, name="a line")
    ],
    "( 1 | `my store` )\n + gp(größe)": [Intercept("my store"), Surface(("größe",))],
}

REFUSED = {
    "": r"must have a term here.*\(at the end\)\. Received: formula=''",
    "store": r"no fixed effects.*\(at character 1, 'store'\)",
    "1 + (1 | s)": r"no fixed effects.*\(at character 1, '1 \+ \(1 \| s\)'\)",
    "y ~ x + (1 | s)": r"leave out '~'.*\(at character 3, '~ x \+ \(1 \| s\)'\)",
    "(0 + t | s)": r"an intercept beside every slope.*\(1 \+ t \| patient\).*character 2",
    "(-1 + t | s)": r"an intercept beside every slope.*character 2",
    "(t - 1 | s)": r"sums only left of the bar: every slope has its intercept.*character 4, '- 1",
    "(1 + t || s)": r"correlations are learned, '\|\|' is not.*character 8, '\|\| s\)'",
    "(t * u | s)": r"products have to be columns.*character 4",
    "(1 | s) + (t | s)": r"one term for the group 's'.*\(1 \+ t \| s\).*character 16",
    "(1 | a:b) + (1 | b:a)": r"one term for the group 'b:a'",
    "(1 | a/a)": r"different columns, but has the group 'a:a'",
    "(1 | a + b)": r"a term for each group, as in '\(1 \| a\) \+ \(1 \| b\)",
    "(1 | a * b)": r"a term for each group",
    "(t + t | s)": r"'t' stands twice.*character 6",
    "(t^2 | s)": r"all lower powers of 't', as in 't \+ t\^2'",
    "(poly(t, 2) + poly(u, 2) | s)": r"powers of one column a term.*\['t', 'u'\]",
    "(t^0 | s)": r"powers from 1 to 9.*character 4",
    "(t^u | s)": r"a whole number as a power.*character 4",
    "(log(t) | s)": r"no function 'log': make a column.*character 2",
    "(poly(t) | s)": r"the degree after the column.*character 8",
    "(1 s)": r"lacks a '\|'.*character 4, 's\)'",
    "(1 | s": r"lacks a '\)' after the group \(at the end\)",
    "(1 | s))": r"must be terms joined by '\+'.*character 8",
    "(1 | )": r"a column's name as group.*character 6",
    "( | s)": r"1 or a column's name here",
    "(1 | `s)": r"a column's name as group.*character 6",
    "(1 | s) +": r"must have a term here.*at the end",
    "gp(lon, lat": r"lacks a '\)' or ','.*at the end",
    "gp(lon, scale=1)": r"unknown or repeated option 'scale', expected.*length_scale.*character 9",
    "gp(lon, seed=1, seed=2)": r"unknown or repeated option 'seed'",
    "gp(kernel=rbf, lon)": r"columns of 'gp' before its options.*character 16",
    "gp(lon, length_scale=)": r"a number or a word after '='",
    "gp(lon, kernel=cubic)": r"cannot be made:.*unknown kernel.*'matern12'.*\(at character 1",
    "(1 + s | s)": r"cannot be made:.*distinct names",
    "(1 | x)": r"cannot be made:.*kept for the features",
    "__import__('os').system('ls')": r"no fixed effects.*character 1",
}


def configs(terms: Any) -> list[Any]:
    return [(type(term), term.get_config()) for term in terms]


def make_data(n: int = 120) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(n, 3)),
        "school": rng.integers(0, 4, n),
        "class": np.array(["a", "b:c", None], object)[rng.integers(0, 3, n)],
    }


@pytest.mark.parametrize("formula", SAME)
def test_same_terms(formula: str):
    """A formula gives the terms that one would write as objects, to the configuration."""
    expected = configs(SAME[formula])
    assert configs(lmm.random_effects_from_formula(formula)) == expected
    assert configs(small_model(formula).random_effects) == expected


@pytest.mark.parametrize("formula", REFUSED)
def test_refused(formula: str):
    """The error says what is wrong, where, and shows the formula; a model says the same."""
    with pytest.raises(ValueError, match=r"(?s)The formula .*" + REFUSED[formula]) as caught:
        lmm.random_effects_from_formula(formula)
    assert str(caught.value).endswith(f"Received: formula={formula!r}")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="The formula"):
        small_model(formula)


def test_no_string():
    """A formula is text."""
    with pytest.raises(ValueError, match=r"must be a string.*Received: formula=3"):
        lmm.random_effects_from_formula(3)


def test_nested_model_round_trip(tmp_path: Path):
    """A model by formula combines keys by itself, is saved with its terms, and answers as before.

    Its effects are those of a model whose combined column came with the data.
    """
    data = make_data()
    model = small_model("(1 | school/class)")
    ready = {**data, "school.class": combined_keys({k: data[k] for k in ("school", "class")})}
    terms = [Intercept("school"), Intercept("school.class", name="school:class")]
    for one, columns in ((model, data), (other := small_model(terms), ready)):
        fit_briefly(one, columns, 40)
    table = model.random_effects_table("school:class")
    assert "3:b\\:c" in table.index
    assert "" not in table.index
    np.testing.assert_array_equal(table, other.random_effects_table("school:class"))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert configs(again.random_effects) == configs(terms)
    np.testing.assert_array_equal(again.encode(data), model.encode(data))
    model.export(tmp_path / "served")
    signature = tf.saved_model.load(tmp_path / "served").signatures["serving_default"]
    served = signature(
        x=tf.constant(data["x"], tf.float32),
        school=tf.constant(data["school"]),
        **{"school.class": tf.constant(ready["school.class"].tolist())},
    )
    np.testing.assert_allclose(served["latent_mean"], model.encode(data), atol=1e-6)


def test_datasets_bring_combined_columns():
    """A dataset is not looked into: it lacks the combined column, and the error names it."""
    data = {name: make_data()[name] for name in ("x", "school")} | {"class": np.arange(120) % 3}
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(40)
    with pytest.raises(ValueError, match=r"\['x', 'school\.class'\]"):
        small_model("(1 | school:class)").adapt(dataset)


class TestCombinedKeys:
    def test_different_keys_stay_different(self):
        """Pairs that would join to one text do not; equal pairs do."""
        pairs = [("a:b", "c"), ("a", "b:c"), ("a\\", ":b"), ("a", "\\:b"), ("a:b", "c")]
        first, second = zip(*pairs, strict=True)
        keys = combined_keys({"one": list(first), "two": list(second)})
        assert len(set(keys)) == 4
        assert keys[0] == keys[4]

    def test_missing_in_any(self):
        """A missing key, of any kind, makes the pair missing."""
        columns = {"one": [1.0, np.nan, 2.0, 3.0], "two": ["a", "b", None, ""]}
        assert combined_keys(columns).tolist() == ["1:a", "", "", ""]

    def test_given_columns_win(self):
        """A column that is there is not made; one whose parts are not there neither."""
        data = {"a": [1, 2], "b": [1, 2], "a.b": ["p", "q"]}
        assert with_combined_keys(data, ["a.b", "a", "b.c"]) is data
        made = with_combined_keys({"a": [1, 2], "b": [3, 4]}, ["a.b"])
        assert made["a.b"].tolist() == ["1:3", "2:4"]

    def test_unequal_lengths(self):
        """The columns must have as many rows each."""
        with pytest.raises(ValueError, match=r"same number of rows.*'a': 1, 'b': 2"):
            combined_keys({"a": [1], "b": [1, 2]})
