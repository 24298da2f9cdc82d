"""Houses sold in Lucas County, Ohio, 1993-1998: spatial data."""

from importlib import resources

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import check_labels
from keras_lmmvae.validation import received

__all__ = ["HOUSES_FEATURES", "houses_features", "load_houses"]

LOGGED = ("price", "avalue", "TLA", "lotsize", "frontage", "depth", "garagesqft")
COUNTS = ("yrbuilt", "beds", "baths", "halfbaths", "rooms")
HOUSES_FEATURES = (*LOGGED, *COUNTS, "floors")

# Split-level houses ("bilevel", "multilvl") have two or more floors with the area of two.
FLOORS = {
    "one": 1.0,
    "one+half": 1.5,
    "two": 2.0,
    "two+half": 2.5,
    "three": 3.0,
    "bilevel": 2.0,
    "multilvl": 2.0,
}
# These columns of the source follow from others: dummies of `syear`, age = (1999 - yrbuilt) / 100.
DERIVED = ("s1993", "s1994", "s1995", "s1996", "s1997", "s1998", "age")
CELL_SIZE = 1000.0  # metres


def load_houses() -> pd.DataFrame:
    """Loads 25,357 single-family houses sold in Lucas County, Ohio, 1993-1998.

    There is one row per house:

    | column | meaning |
    |---|---|
    | price, avalue | sale price and assessed value, US dollars |
    | TLA, lotsize, garagesqft | living, lot and garage area, square feet; no garage: 0 |
    | frontage, depth | of the lot, feet; 0 in 0.1 % and 15 % of the rows, probably unknown |
    | yrbuilt, beds, baths, halfbaths, rooms | year built and counts |
    | stories, wall, garage | categories: 7, 7 and 5 labels |
    | sdate, syear | date (yymmdd) and year of the sale |
    | easting, northing | coordinates, metres (Ohio North, NAD83); `x`, `y` in the source |
    | cell | int, square kilometre: 1000 * easting in km + northing in km; 702 cells |

    No value is missing and no two houses have the same coordinates. `age` and the dummies of the
    sale year are left out, because they are functions of `yrbuilt` and `syear`.

    Returns:
        houses: DataFrame with 25,357 rows.

    Example:
        >>> houses = load_houses()
        >>> data = {"x": houses_features(houses).to_numpy("float32")}
        >>> data |= {name: houses[name].to_numpy() for name in ("easting", "northing", "syear")}
        >>> data["x"].shape
        (25357, 13)

    References:
        - Data set `house` of the R package spData, licence CC0; from the Lucas County Auditor,
          first published with the Spatial Econometrics Toolbox of J. LeSage.
    """
    source = resources.files("keras_lmmvae.datasets") / "data" / "lucas_houses.csv.gz"
    with resources.as_file(source) as path:
        houses = pd.read_csv(path, compression="gzip")
    houses = houses.drop(columns=list(DERIVED)).rename(columns={"x": "easting", "y": "northing"})
    kilometres = (houses[["easting", "northing"]] // CELL_SIZE).astype(np.int64)
    houses["cell"] = 1000 * kilometres["easting"] + kilometres["northing"]
    return houses


def houses_features(houses: pd.DataFrame) -> pd.DataFrame:
    """Returns the 13 numeric features of houses, with money, areas and lengths logged.

    price, avalue, TLA, lotsize, frontage, depth and garagesqft are log(1 + value). yrbuilt, beds,
    baths, halfbaths and rooms are unchanged. floors, from 1 to 3, is derived from `stories`, so
    predict `wall` or `garage` from the features, but not `stories`. Nothing is standardised.

    Args:
        houses: DataFrame with the columns of `load_houses` and any of its rows.

    Returns:
        features: Float64 DataFrame with the columns `HOUSES_FEATURES` and the index of `houses`.

    Raises:
        ValueError: If a column is missing or `stories` has an unknown label.

    Example:
        >>> features = houses_features(load_houses())
        >>> features.shape
        (25357, 13)
    """
    needed = (*LOGGED, *COUNTS, "stories")
    missing = [name for name in needed if name not in houses.columns]
    if missing:
        raise ValueError(
            f"`houses` lacks columns of `load_houses`: {missing}. "
            + received(columns=list(houses.columns))
        )
    check_labels("stories", houses["stories"], FLOORS)
    features = houses[[*LOGGED, *COUNTS]].astype(np.float64)
    features[list(LOGGED)] = np.log1p(features[list(LOGGED)])
    features["floors"] = houses["stories"].map(FLOORS).astype(np.float64)
    return features[list(HOUSES_FEATURES)]
