"""The houses of this package: complete rows and 13 features without collinearity."""

import numpy as np
import pandas as pd
import pytest

from keras_lmmvae.datasets import HOUSES_FEATURES, houses_features, load_houses


@pytest.fixture(scope="module")
def houses() -> pd.DataFrame:
    return load_houses()


def test_rows_and_columns(houses):
    """No value is missing, and no column is named x, the name of the feature matrix."""
    assert len(houses) == 25_357
    assert not houses.isna().any().any()
    assert {"easting", "northing", "syear", "cell", "stories", "wall", "garage"} <= set(houses)
    assert not {"x", "y", "age", "s1993"} & set(houses)
    assert [houses[name].nunique() for name in ("stories", "wall", "garage")] == [7, 7, 5]
    assert sorted(houses["syear"].unique()) == list(range(1993, 1999))


def test_cells_are_square_kilometres(houses):
    """There are 702 cells of less than 1,000 m. Their ids follow from the coordinates."""
    cells = houses.groupby("cell")[["easting", "northing"]]
    assert cells.ngroups == 702
    assert (cells.max() - cells.min()).to_numpy().max() < 1000
    first = houses.iloc[0]
    assert first["cell"] == 1000 * (first["easting"] // 1000) + first["northing"] // 1000


def test_features_are_thirteen_and_finite(houses):
    features = houses_features(houses)
    assert tuple(features.columns) == HOUSES_FEATURES
    assert len(set(HOUSES_FEATURES)) == 13
    assert np.isfinite(features.to_numpy()).all()
    assert (features.std() > 0).all()


def test_features_are_not_collinear(houses):
    """The correlation matrix is far from singular (with `age` it would be singular)."""
    correlation = np.corrcoef(houses_features(houses).to_numpy().T)
    assert np.linalg.eigvalsh(correlation)[0] > 0.02


def test_features_by_hand(houses):
    """log1p of money, areas and lengths, unchanged counts, and floors from the stories."""
    part = houses.iloc[[0, 1000, 20_000]]
    features = houses_features(part)
    assert list(features.index) == list(part.index)
    np.testing.assert_allclose(features["price"], np.log(part["price"] + 1.0))
    np.testing.assert_allclose(features["garagesqft"], np.log(part["garagesqft"] + 1.0))
    np.testing.assert_array_equal(features["yrbuilt"], part["yrbuilt"])
    assert features["floors"].iloc[0] == 1.5  # "one+half"


def test_features_errors(houses):
    with pytest.raises(
        ValueError, match=r"lacks columns .*\['price', 'TLA'\]\. Received: columns="
    ):
        houses_features(houses.drop(columns=["price", "TLA"]))
    with pytest.raises(ValueError, match=r"`stories` must be one of .*labels=\['nine'\]"):
        houses_features(houses.iloc[:2].assign(stories="nine"))
