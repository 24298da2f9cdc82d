"""Loaders of files of the user, tested with small files in the same format."""

import numpy as np
import pandas as pd
import pytest

from keras_lmmvae.datasets import (
    CENSUS_TRACTS_FEATURES,
    ROSSMANN_FEATURES,
    load_census_tracts,
    load_rossmann,
)
from keras_lmmvae.datasets.sources import check_file_columns

CENSUS_COLUMNS = (
    "TractId,State,County,TotalPop,Men,Women,Hispanic,White,Black,Native,Asian,Pacific,"
    "VotingAgeCitizen,Income,IncomeErr,IncomePerCap,IncomePerCapErr,Poverty,ChildPoverty,"
    "Professional,Service,Office,Construction,Production,Drive,Carpool,Transit,Walk,OtherTransp,"
    "WorkAtHome,MeanCommute,Employed,PrivateWork,PublicWork,SelfEmployed,FamilyWork,Unemployment"
).split(",")
PEOPLE = {"TotalPop", "Men", "Women", "VotingAgeCitizen", "Employed"}


class TestCensusTracts:
    @pytest.fixture
    def table(self):
        """Four tracts, the third without income; column j of row i holds 10 j + i."""
        values = 10.0 * np.arange(len(CENSUS_COLUMNS)) + np.arange(4)[:, None]
        table = pd.DataFrame(values, columns=CENSUS_COLUMNS)
        table["TractId"] = [1001020100, 1001020200, 1001020300, 72153750602]
        table["State"] = ["Alabama", "Georgia", "Georgia", "Puerto Rico"]
        table["County"] = ["Lee County", "Lee County", "Lee County", "Yauco Municipio"]
        table.loc[2, "Income"] = np.nan
        table["lat"] = [32.6, 31.8, 31.8, 18.0]
        table["lng"] = [-85.4, -84.1, -84.1, -66.9]
        return table

    @pytest.fixture
    def load(self, tmp_path):
        def load(table):
            table.to_csv(tmp_path / "tracts.csv", index=False)
            return load_census_tracts(tmp_path / "tracts.csv")

        return load

    def test_features(self, table, load):
        """Features are all numeric columns except incomes. Numbers of people are logged."""
        incomes = {name for name in CENSUS_COLUMNS if name.startswith("Income")}
        expected = set(CENSUS_COLUMNS) - {"TractId", "State", "County"} - incomes
        assert set(CENSUS_TRACTS_FEATURES) == expected
        assert len(CENSUS_TRACTS_FEATURES) == len(expected) == 30
        tracts = load(table)
        assert tuple(tracts.columns[:30]) == CENSUS_TRACTS_FEATURES
        for name in expected:
            column = table[name].drop(index=2)
            column = np.log(column + 1) if name in PEOPLE else column
            np.testing.assert_allclose(tracts[name], column)

    def test_rows_and_keys(self, table, load):
        """Incomplete rows are left out. Counties with the same name in two states are distinct."""
        tracts = load(table)
        assert list(tracts["tract"]) == [1001020100, 1001020200, 72153750602]
        assert list(tracts["county"]) == [
            "Alabama/Lee County",
            "Georgia/Lee County",
            "Puerto Rico/Yauco Municipio",
        ]
        assert list(tracts["state"]) == ["Alabama", "Georgia", "Puerto Rico"]
        assert list(tracts["latitude"]) == [32.6, 31.8, 18.0]
        assert list(tracts["longitude"]) == [-85.4, -84.1, -66.9]
        assert list(tracts["income"]) == list(table["Income"].drop(index=2))
        assert not tracts.isna().any().any()

    @pytest.mark.parametrize(
        "names", [("latitude", "longitude"), ("Lat", "Long"), ("LATITUDE", "lon")]
    )
    def test_names_of_coordinates(self, table, load, names):
        renamed = table.rename(columns=dict(zip(("lat", "lng"), names, strict=True)))
        pd.testing.assert_frame_equal(load(renamed), load(table))

    def test_a_missing_coordinate_leaves_the_row_out(self, table, load):
        table.loc[0, "lat"] = np.nan
        assert len(load(table)) == 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"drop": ["Men"]}, r"lacks the column\(s\) \['Men'\]\. Received: columns=\['TractId'"),
            ({"drop": ["lat"]}, r"one column for the latitude .*'lat'\]\. Received: columns=\[\]"),
            ({"Longitude": 1.0}, r"for the longitude .*columns=\['lng', 'Longitude'\]"),
            ({"Drive": "many"}, r"\['Drive'\] of census tracts must be numeric\. .*Drive='many'"),
            ({"lat": 91.0}, r"`latitude` must be between -90 and 90 .*latitude=91\.0"),
            ({"lng": -181.0}, r"`longitude` must be between .*longitude=-181\.0"),
            ({"Walk": np.nan}, r"No census tract is complete.*rows=0"),
        ],
    )
    def test_errors(self, table, load, change, message):
        changed = table.drop(columns=change.pop("drop", [])).assign(**change)
        with pytest.raises(ValueError, match=message):
            load(changed)

    def test_no_rows_and_no_file(self, table, load, tmp_path):
        with pytest.raises(ValueError, match=r"census tracts has no rows.*Received: rows=0"):
            load(table.iloc[:0])
        with pytest.raises(FileNotFoundError):
            load_census_tracts(tmp_path / "elsewhere.csv")


class TestRossmann:
    @pytest.fixture
    def files(self):
        """Store 1: two days of January, one of March 2013; store 7: one of July 2015."""
        train = pd.DataFrame(
            {
                "Store": [7, 1, 1, 1],
                "DayOfWeek": [5, 1, 2, 3],
                "Date": ["2015-07-31", "2013-03-29", "2013-01-02", "2013-01-01"],
                "Sales": [9, 40, 5000, 0],
                "Customers": [1, 2, 3, 4],
                "Open": [1, 1, 1, 0],
                "Promo": [1, 0, 1, 1],
                "StateHoliday": ["0", "b", "0", "a"],
                "SchoolHoliday": [0, 1, 1, 1],
            }
        )
        store = pd.DataFrame(
            {
                "Store": [1, 3, 5, 7],
                "StoreType": ["d", "a", "c", "b"],
                "Assortment": ["a", "b", "a", "c"],
                "CompetitionDistance": [100.0, 400.0, 1000.0, np.nan],
                "CompetitionOpenSinceMonth": [9, 11, 4, np.nan],
                "CompetitionOpenSinceYear": [2008, 2010, 2015, np.nan],
                "Promo2": [0, 1, 1, 1],
                "Promo2SinceWeek": [np.nan, 10, 45, 20],
                "Promo2SinceYear": [np.nan, 2014, 2010, 2011],
                "PromoInterval": [
                    np.nan,
                    "Jan,Apr,Jul,Oct",
                    "Feb,May,Aug,Nov",
                    "Mar,Jun,Sept,Dec",
                ],
            }
        )
        return {"train": train, "store": store}

    @pytest.fixture
    def load(self, tmp_path):
        def load(files):
            for name, table in files.items():
                table.to_csv(tmp_path / f"{name}.csv", index=False)
            return load_rossmann(tmp_path)

        return load

    def test_features(self, files, load):
        sales = load(files)
        assert tuple(sales.columns[:-5]) == ROSSMANN_FEATURES
        assert list(sales.columns[-5:]) == ["Sales", "store", "year", "month", "t"]
        assert len(set(ROSSMANN_FEATURES)) == 21
        assert (sales[list(ROSSMANN_FEATURES)].dtypes == np.float64).all()
        assert not sales.isna().any().any()

    def test_months_are_summed(self, files, load):
        """One row per store and month, in order, with sums of its days."""
        sales = load(files)
        keys = sales[["store", "year", "month"]].to_numpy().tolist()
        assert keys == [[1, 2013, 1], [1, 2013, 3], [7, 2015, 7]]
        assert list(sales["Sales"]) == [5000, 40, 9]
        assert list(sales["Open"]) == [1, 1, 1]
        assert list(sales["Promo"]) == [2, 0, 1]
        assert list(sales["SchoolHoliday"]) == [2, 1, 0]
        holidays = sales[[f"StateHoliday_{label}" for label in "0abc"]]
        assert holidays.to_numpy().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]

    def test_time_is_scaled(self, files, load):
        """0 in January 2013, 31 + 28 days in March, 1 in the last month, July 2015 (911 days)."""
        np.testing.assert_allclose(load(files)["t"], [0, 59 / 911, 1])
        january = {**files, "train": files["train"].iloc[2:]}
        assert list(load(january)["t"]) == [0]

    def test_stores_are_joined(self, files, load):
        """Dummies, unchanged numbers, and medians over the stores (not over the months)."""
        first, _, last = load(files).to_dict("records")
        assert [first[f"StoreType_{label}"] for label in "abcd"] == [0, 0, 0, 1]
        assert [last[f"Assortment_{label}"] for label in "abc"] == [0, 0, 1]
        assert (first["Promo2"], last["Promo2"]) == (0, 1)
        assert (first["CompetitionDistance"], last["CompetitionDistance"]) == (100, 400)
        assert last["CompetitionOpenSinceMonth"] == 9
        assert last["CompetitionOpenSinceYear"] == 2010
        assert first["Promo2SinceWeek"] == 20
        assert first["Promo2SinceYear"] == 2011

    def test_promotion_intervals(self, files, load):
        """The number of the first month of the interval, or 0 without a promotion."""
        files["train"]["Store"] = [7, 5, 3, 1]
        assert load(files).set_index("store")["PromoInterval"].to_dict() == {1: 0, 3: 1, 5: 2, 7: 3}

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("train", {"StateHoliday": "d"}, r"`StateHoliday` must be one of .*labels=\['d'\]"),
            ("store", {"StoreType": "e"}, r"`StoreType` must be one of .*labels=\['e'\]"),
            ("store", {"Assortment": np.nan}, r"`Assortment` must be one of .*labels=\[nan\]"),
            ("store", {"PromoInterval": "Jan"}, r"`PromoInterval` must be .*labels=\['Jan'\]"),
            ("train", {"Store": 8}, r"store\.csv lacks stores of train\.csv.*Store=\[8\]"),
            ("store", {"Store": 1}, r"one row for each store\. Received: Store=\[1, 1, 1\]"),
            ("store", {"Promo2SinceYear": np.nan}, r"no value of .*\['Promo2SinceYear'\]"),
        ],
    )
    def test_errors(self, files, load, file, change, message):
        with pytest.raises(ValueError, match=message):
            load({**files, file: files[file].assign(**change)})

    def test_missing_file_or_column(self, files, load, tmp_path):
        files["train"].to_csv(tmp_path / "train.csv", index=False)
        with pytest.raises(FileNotFoundError, match=r"lacks store\.csv\. Received: folder="):
            load_rossmann(tmp_path)
        with pytest.raises(ValueError, match=r"train\.csv lacks the column\(s\) \['Open'\]"):
            load({**files, "train": files["train"].drop(columns="Open")})


def test_check_file_columns_accepts_and_refuses():
    check_file_columns(pd.DataFrame({"a": [1], "b": [2]}), ["b"], "f.csv")
    with pytest.raises(ValueError, match=r"f\.csv lacks the column\(s\) \['c'\]"):
        check_file_columns(pd.DataFrame({"a": [1]}), ["a", "c"], "f.csv")
