"""The census tracts of this package: ids, places, and what the features are made of."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from setuptools import Distribution

from keras_lmmvae.datasets import US_TRACTS_FEATURES, load_us_tracts

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tracts() -> pd.DataFrame:
    return load_us_tracts()


def test_rows_and_columns(tracts):
    """25 features in float64 come first. Nothing is missing, and no column is named x."""
    assert len(tracts) == 71_666
    assert len(set(US_TRACTS_FEATURES)) == 25
    assert tuple(tracts.columns[:25]) == US_TRACTS_FEATURES
    assert list(tracts.columns[25:]) == ["longitude", "latitude", "tract", "county", "state"]
    assert (tracts.dtypes.iloc[:27] == np.float64).all()
    assert not tracts.isna().any().any()
    assert (tracts[[*US_TRACTS_FEATURES]].std() > 0).all()


def test_ids_are_nested(tracts):
    """Eleven digits: of the state, of the county and of the tract. Leading zeros are kept."""
    assert tracts["tract"].is_unique
    assert tracts["tract"].is_monotonic_increasing
    assert tracts["tract"].str.fullmatch(r"\d{11}").all()
    assert (tracts["tract"].str[:5] == tracts["county"]).all()
    assert (tracts["county"].str[:2] == tracts["state"]).all()
    sizes = tracts["county"].value_counts()
    assert (len(sizes), sizes.median()) == (3_106, 6)
    # The 48 contiguous states and the District of Columbia, without Alaska and Hawaii.
    assert tracts["state"].nunique() == 49
    assert not {"02", "15", "72"} & set(tracts["state"])


def test_places_are_in_the_contiguous_states(tracts):
    """Two tracts share their coordinates, and Los Angeles County lies where it should."""
    assert tracts["longitude"].between(-125.0, -66.9).all()
    assert tracts["latitude"].between(24.5, 49.4).all()
    assert tracts.duplicated(["longitude", "latitude"]).sum() == 1
    los_angeles = tracts[tracts["county"] == "06037"]
    assert len(los_angeles) == 2_315
    assert los_angeles["longitude"].median() == pytest.approx(-118.3, abs=0.1)
    assert los_angeles["latitude"].median() == pytest.approx(34.0, abs=0.1)


def test_units_of_features(tracts):
    """Shares of one lie in [0, 1], percentages in [0, 100], and logs sum to known totals."""
    shares = ["employed", "svi_household", "svi_minority", "svi_housing"]
    logs = [name for name in US_TRACTS_FEATURES if name.startswith("log_")]
    percentages = tracts[[name for name in US_TRACTS_FEATURES if name not in (*shares, *logs)]]
    assert tracts[shares].to_numpy().min() >= 0
    assert tracts[shares].to_numpy().max() <= 1
    assert percentages.to_numpy().min() >= 0
    assert percentages.to_numpy().max() <= 100
    assert (percentages.max() > 1).all()
    people = np.exp(tracts["log_population"])
    assert people.sum() == pytest.approx(320e6, rel=0.01)
    assert np.exp(tracts["log_area"]).sum() == pytest.approx(2.95e6, rel=0.01)  # square miles
    income = (people * np.exp(tracts["log_income"])).sum() / people.sum()
    assert income == pytest.approx(32_600, rel=0.01)


def test_what_follows_from_others(tracts):
    """Households have the internet in one of three ways; density is units by square miles."""
    internet = tracts[["internet", "internet_free", "no_internet"]].sum(axis=1)
    np.testing.assert_allclose(internet, 100.0, atol=0.011)
    wide = tracts[tracts["log_area"] > 3.0]  # areas are rounded to hundredths
    density = np.expm1(wide["log_units"]) / np.exp(wide["log_area"])
    np.testing.assert_allclose(np.log1p(density), wide["log_unit_density"], atol=0.005)


def test_bases_of_percentages(tracts):
    """In tracts with few people, shares are whole numbers of people or homes, once rounded."""
    small = tracts[tracts["log_population"] < 5.5]
    people = np.exp(small["log_population"]).round()
    in_households = (people * (1.0 - small["group_quarters"] / 100.0)).round()
    for name, base, whole in (
        ("employed", people, 1.0),
        ("group_quarters", people, 100.0),
        ("nonrelated", people, 100.0),
        ("rented", in_households, 100.0),
    ):
        count = (small[name] / whole * base).round()
        half_a_digit = 0.00051 * (1.0 if whole == 1.0 else 10.0)
        np.testing.assert_allclose(count / base * whole, small[name], atol=half_a_digit)


def test_the_wheel_has_the_data(monkeypatch):
    """setuptools puts both files of the package's own data sets into a wheel."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files(["setup.cfg"])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    files = {Path(name).name for name in build.get_outputs(include_bytecode=False)}
    assert {"us_tracts.csv.gz", "lucas_houses.csv.gz", "us_tracts.py"} <= files
