"""Monthly sales of the Rossmann drug stores from files of the user: a panel of stores."""

from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import check_file_columns, check_labels
from keras_lmmvae.validation import received

__all__ = ["ROSSMANN_FEATURES", "load_rossmann"]

COUNTED = ("Open", "Promo", "SchoolHoliday")
MEASURED = (
    "CompetitionDistance",
    "CompetitionOpenSinceMonth",
    "CompetitionOpenSinceYear",
    "Promo2",
    "Promo2SinceWeek",
    "Promo2SinceYear",
)
DUMMIES = {"StateHoliday": "0abc", "StoreType": "abcd", "Assortment": "abc"}
PROMO_INTERVALS = {"Jan,Apr,Jul,Oct": 1, "Feb,May,Aug,Nov": 2, "Mar,Jun,Sept,Dec": 3}


def _dummy_names(column: str) -> tuple[str, ...]:
    return tuple(f"{column}_{label}" for label in DUMMIES[column])


ROSSMANN_FEATURES = (
    *COUNTED,
    *(name for column in DUMMIES for name in _dummy_names(column)),
    *MEASURED,
    "PromoInterval",
)
SUMMED = ("Sales", *COUNTED, *_dummy_names("StateHoliday"))
START = pd.Timestamp(2013, 1, 1)


def load_rossmann(folder: str | PathLike[str]) -> pd.DataFrame:
    """Loads monthly sales of 1,115 drug stores, from train.csv and store.csv of Kaggle.

    There is one row per store and month, 33,485 rows for the complete files. The
    `ROSSMANN_FEATURES` are

    | column | meaning |
    |---|---|
    | Open, Promo, SchoolHoliday | days of the month when the store was open, and so on |
    | StateHoliday_0, _a, _b, _c | days: no holiday, public holiday, Easter, Christmas |
    | StoreType_a ... _d, Assortment_a ... _c | 0 or 1 |
    | CompetitionDistance | metres to the nearest competitor |
    | CompetitionOpenSinceMonth, CompetitionOpenSinceYear | opening date of the competitor |
    | Promo2, Promo2SinceWeek, Promo2SinceYear | 1 if in the continued promotion; start date |
    | PromoInterval | 1, 2, 3: first month with a start of the promotion; 0: no promotion |

    The other columns are

    | column | meaning |
    |---|---|
    | Sales | turnover of the month |
    | store | int, the key |
    | year, month | int |
    | t | days from 1 January 2013 to the first of the month, divided by their maximum |

    Missing values of stores are replaced by the median over stores. Features from store.csv are
    constant over the months of a store. The dummies of a category sum to a constant. Those of
    StateHoliday sum to the days of the month. Nothing is logged or standardised.

    Args:
        folder: Folder with train.csv and store.csv.

    Returns:
        sales: DataFrame, by store and month. Features and Sales are float64.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a column or the row of a store is missing, if a store has two rows, or if a
            category has an unknown label.

    Example:
        >>> sales = load_rossmann("rossmann-store-sales")  # doctest: +SKIP
        >>> future = sales["t"] > sales["t"].quantile(0.8)  # doctest: +SKIP

    References:
        - Kaggle (2015), Rossmann Store Sales. Under the rules of that competition; not
          distributed with this package.
    """
    days = _read(folder, "train.csv", ["Store", "Date", "Sales", *COUNTED, "StateHoliday"])
    used = ["Store", "StoreType", "Assortment", *MEASURED, "PromoInterval"]
    stores = _store_features(_read(folder, "store.csv", used))
    unknown = sorted(set(days["Store"]) - set(stores["Store"]))
    if unknown:
        raise ValueError("store.csv lacks stores of train.csv. " + received(Store=unknown))
    sales = _monthly_sums(days).merge(stores, on="Store", validate="many_to_one")
    since = (pd.to_datetime(sales[["year", "month"]].assign(day=1)) - START).dt.days
    sales["t"] = since / max(since.max(), 1)
    sales = sales.rename(columns={"Store": "store"})
    return sales[[*ROSSMANN_FEATURES, "Sales", "store", "year", "month", "t"]]


def _read(folder: str | PathLike[str], name: str, columns: list[str]) -> pd.DataFrame:
    """Reads a file. Categories are read as text, because the label "0" would become a number."""
    path = Path(folder, name)
    if not path.is_file():
        raise FileNotFoundError(
            f"`folder` must have the files train.csv and store.csv, but lacks {name}. "
            + received(folder=str(folder))
        )
    table = pd.read_csv(path, dtype=dict.fromkeys([*DUMMIES, "PromoInterval"], str))
    check_file_columns(table, columns, name)
    return table[columns]


def _monthly_sums(days: pd.DataFrame) -> pd.DataFrame:
    date = pd.to_datetime(days["Date"], format="%Y-%m-%d")
    days = _with_dummies(days.assign(year=date.dt.year, month=date.dt.month), "StateHoliday")
    sums = days.groupby(["Store", "year", "month"])[list(SUMMED)].sum()
    return sums.astype(np.float64).reset_index()


def _store_features(stores: pd.DataFrame) -> pd.DataFrame:
    """Replaces missing values by medians and categories by numbers."""
    twice = sorted(stores.loc[stores["Store"].duplicated(), "Store"])
    if twice:
        raise ValueError("store.csv must have one row for each store. " + received(Store=twice))
    intervals = stores["PromoInterval"].dropna()
    check_labels("PromoInterval", intervals, PROMO_INTERVALS)
    stores = _with_dummies(_with_dummies(stores, "StoreType"), "Assortment")
    stores[list(MEASURED)] = _with_medians(stores[list(MEASURED)].astype(np.float64))
    stores["PromoInterval"] = stores["PromoInterval"].map(PROMO_INTERVALS).fillna(0.0)
    return stores


def _with_medians(measured: pd.DataFrame) -> pd.DataFrame:
    unknown = [name for name in measured.columns if measured[name].isna().all()]
    if unknown:
        raise ValueError(
            f"store.csv has no value of the column(s) {unknown}, expected at least one each. "
            + received(rows=len(measured))
        )
    return measured.fillna(measured.median())


def _with_dummies(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Replaces a category by a column of 0 and 1 for each known label."""
    check_labels(column, table[column], DUMMIES[column])
    names = zip(_dummy_names(column), DUMMIES[column], strict=True)
    dummies = {name: (table[column] == label).astype(np.float64) for name, label in names}
    return table.drop(columns=column).assign(**dummies)
