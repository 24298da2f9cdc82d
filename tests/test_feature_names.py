"""Features by name: in tables, in files, in reports, and in what they refuse."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from small_models import small_model

import keras_lmmvae as lmm
from keras_lmmvae.export.model_card import model_card, render_card

NAMES = ["height", "weight", "age"]


def make_data(n: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(n, 3)), "store": np.arange(n) % 6, "t": rng.normal(size=n)}


def fitted(feature_names: list[str] | None = None, x: object = None) -> lmm.LMMVAE:
    """A model of a slope and no training, for tables need none."""
    model, data = small_model([lmm.RandomSlopes("store", time="t")]), make_data()
    model.adapt(data if x is None else {**data, "x": x}, feature_names=feature_names)
    model.fitted.assign(1.0)
    return model


def test_tables_bear_the_names():
    """Both tables, and both of a term's, have the names as columns; a caller's own win."""
    model = fitted(NAMES)
    assert model.feature_names == NAMES
    assert list(model.variance_components().columns) == NAMES
    assert list(model.random_effects_table("store").columns) == NAMES
    assert list(model.random_effects_table("store", std=True).columns) == NAMES
    assert list(model.variance_components(["a", "b", "c"]).columns) == ["a", "b", "c"]


def test_without_names():
    """Features are numbers then, and the card does not list them."""
    model = fitted()
    assert small_model().feature_names == []
    assert model.feature_names == [0, 1, 2]
    assert list(model.variance_components().columns) == [0, 1, 2]
    assert "- features:" not in render_card(model_card(model))


def test_names_of_a_frame():
    """A data frame under "x" brings its column names, as text; a given list wins over them."""
    x = make_data()["x"]
    assert fitted(x=pd.DataFrame(x, columns=NAMES)).feature_names == NAMES
    assert fitted(x=pd.DataFrame(x, columns=[400, 410, 420])).feature_names == ["400", "410", "420"]
    assert fitted(x=pd.DataFrame(x)).feature_names == [0, 1, 2]
    assert fitted(list("abc"), pd.DataFrame(x, columns=NAMES)).feature_names == list("abc")


@pytest.mark.parametrize("names", [NAMES, None])
def test_saved_and_loaded(names: list[str] | None, tmp_path: Path):
    """A loaded model calls its features as the saved one did."""
    fitted(names).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert again.feature_names == (names or [0, 1, 2])


def test_model_card_lists_the_names():
    """They stand in the card, as JSON and as text; of many the first ones in the text."""
    card = model_card(fitted(NAMES))
    assert card["feature_names"] == NAMES
    assert "- features: height, weight, age\n" in render_card(card)
    card["feature_names"] = [f"band {number}" for number in range(50)]
    assert "band 19, ... (50 in all)\n" in render_card(card)


def test_feature_number():
    """A name or a number, NumPy's too, gives the number."""
    model = fitted(NAMES)
    assert [model.feature_number(name) for name in NAMES] == [0, 1, 2]
    assert model.feature_number(np.int64(2)) == 2
    assert isinstance(model.feature_number(np.int64(2)), int)
    assert fitted().feature_number(1) == 1


@pytest.mark.parametrize("feature", ["size", 3, -1, True, 1.0, None])
def test_no_such_feature(feature: object):
    """The error names the features there are."""
    with pytest.raises(ValueError, match=r"0 to 2, or one of height, weight, age\. Received: f"):
        fitted(NAMES).feature_number(feature)
    with pytest.raises(ValueError, match=r"number from 0 to 2\. Received: feature="):
        fitted().feature_number(feature)


def test_feature_number_before_adapt():
    """A model that was not adapted has no features yet."""
    with pytest.raises(ValueError, match=r"call `model\.adapt\(data\)` first"):
        small_model().feature_number("height")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], r"must be 3 names.*Received: number=2, feature_names=\['a', 'b'\]"),
        ("height", r"must be 3 names.*Received: number=1, feature_names=\['height'\]"),
        (["a", "b", "a"], r"must differ\. Received: twice=\['a'\]"),
        (["a", "", "c"], r"non-empty strings\. Received: feature_names=\[''\]"),
        (["a", 2, None], r"non-empty strings\. Received: feature_names=\[2, None\]"),
    ],
)
def test_unusable_names(names: list, message: str):
    """`adapt` and the tables refuse them, and `adapt` leaves no half-adapted model."""
    model = small_model()
    with pytest.raises(ValueError, match=message):
        model.adapt({"x": make_data()["x"]}, feature_names=names)
    assert model.num_features == 0
    with pytest.raises(ValueError, match=message):
        fitted().variance_components(names)
