"""US census tracts of 2017 from a file of the user: spatial data with incomes."""

from os import PathLike

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import check_file_columns
from keras_lmmvae.validation import received

__all__ = ["CENSUS_TRACTS_FEATURES", "load_census_tracts"]

LOGGED = ("TotalPop", "Men", "Women", "VotingAgeCitizen", "Employed")
PERCENTAGES = (
    *("Hispanic", "White", "Black", "Native", "Asian", "Pacific"),
    *("Poverty", "ChildPoverty"),
    *("Professional", "Service", "Office", "Construction", "Production"),
    *("Drive", "Carpool", "Transit", "Walk", "OtherTransp", "WorkAtHome"),
    *("PrivateWork", "PublicWork", "SelfEmployed", "FamilyWork", "Unemployment"),
)
CENSUS_TRACTS_FEATURES = (*LOGGED, *PERCENTAGES, "MeanCommute")
# A coordinate has these accepted names of its column, and this largest absolute value.
COORDINATES = {
    "latitude": (("latitude", "lat"), 90.0),
    "longitude": (("longitude", "long", "lng", "lon"), 180.0),
}


def load_census_tracts(path: str | PathLike[str]) -> pd.DataFrame:
    """Loads census tracts with the coordinates of their counties, from a CSV file.

    The file is acs2017_census_tract_data.csv from Kaggle's "US Census Demographic Data". You have
    to add two columns with the coordinates of the county in degrees: latitude (or lat) and
    longitude (or lon, lng, long), in upper or lower case. Other columns are ignored.

    There is one row per tract without missing values. The 30 `CENSUS_TRACTS_FEATURES` have the
    names of the file. TotalPop, Men, Women, VotingAgeCitizen and Employed are log(1 + people).
    MeanCommute is in minutes. The others are percentages. Those of occupations (Professional to
    Production), of ways to work (Drive to WorkAtHome) and of employers (PrivateWork to FamilyWork)
    each sum to about 100. Nothing is standardised. The other columns are

    | column | meaning |
    |---|---|
    | tract | int, id of the tract |
    | state | name of the state, in which the county is nested |
    | county | "State/County": counties of several states have the same name |
    | latitude, longitude | of the county, degrees |
    | income | median household income, US dollars; no income is among the features |

    Args:
        path: Path of the CSV file.

    Returns:
        tracts: DataFrame with the complete rows of the file. Features are float64.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a column is missing, duplicated or not numeric, if a coordinate is out of
            range, or if no row is complete.

    Example:
        >>> tracts = load_census_tracts("acs2017_census_tract_data.csv")  # doctest: +SKIP
        >>> data = {"x": tracts[[*CENSUS_TRACTS_FEATURES]].to_numpy("float32")}  # doctest: +SKIP

    References:
        - American Community Survey 2017, 5-year estimates, U.S. Census Bureau (public domain);
          on Kaggle by MuonNeutrino, "US Census Demographic Data", licence CC0. Not distributed
          with this package.
    """
    table = pd.read_csv(path)
    numeric = ["TractId", *CENSUS_TRACTS_FEATURES, "Income"]
    check_file_columns(table, [*numeric, "State", "County"], "The file of census tracts")
    table = table.rename(columns={_coordinate(table, name): name for name in COORDINATES})
    _check_numeric(table, [*numeric, *COORDINATES])
    table = table.dropna(subset=[*numeric, *COORDINATES, "State", "County"]).reset_index(drop=True)
    if table.empty:
        raise ValueError("No census tract is complete, expected at least one. " + received(rows=0))
    _check_coordinates(table)
    return _tidy(table)


def _coordinate(table: pd.DataFrame, name: str) -> str:
    """Returns the name of the column with a coordinate."""
    accepted = COORDINATES[name][0]
    found = [column for column in table.columns if str(column).strip().lower() in accepted]
    if len(found) != 1:
        raise ValueError(
            f"The file of census tracts must have one column for the {name} of the county, "
            f"named one of {list(accepted)}. " + received(columns=found)
        )
    return str(found[0])


def _check_numeric(table: pd.DataFrame, columns: list[str]) -> None:
    text = [name for name in columns if not pd.api.types.is_numeric_dtype(table[name])]
    if text:
        raise ValueError(
            f"The columns {text} of census tracts must be numeric. "
            + received(**{text[0]: table[text[0]].iloc[0]})
        )


def _check_coordinates(table: pd.DataFrame) -> None:
    for name, (_, limit) in COORDINATES.items():
        farthest = table[name].iloc[int(table[name].abs().argmax())]
        if abs(farthest) > limit:
            raise ValueError(
                f"`{name}` must be between -{limit:g} and {limit:g} degrees. "
                + received(**{name: farthest})
            )


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    tracts = table[list(CENSUS_TRACTS_FEATURES)].astype(np.float64)
    tracts[list(LOGGED)] = np.log1p(tracts[list(LOGGED)])
    tracts["tract"] = table["TractId"].astype(np.int64)
    tracts["state"] = table["State"]
    tracts["county"] = table["State"] + "/" + table["County"]
    tracts[list(COORDINATES)] = table[list(COORDINATES)].astype(np.float64)
    tracts["income"] = table["Income"].astype(np.float64)
    return tracts
