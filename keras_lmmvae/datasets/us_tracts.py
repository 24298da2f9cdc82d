"""Census tracts of the contiguous United States, 2018: spatial data with incomes."""

from importlib import resources

import numpy as np
import pandas as pd

__all__ = ["US_TRACTS_FEATURES", "load_us_tracts"]

US_TRACTS_FEATURES = (
    *("employed", "no_diploma", "high_risk_jobs", "health_care_jobs", "retail_jobs"),
    *("essential_jobs", "unemployed", "poverty", "log_income"),
    *("internet", "internet_free", "no_internet"),
    *("log_units", "vacant", "mobile_homes", "long_term", "rented", "log_unit_density"),
    *("log_population", "log_area"),
    *("svi_household", "svi_minority", "svi_housing", "group_quarters", "nonrelated"),
)
COORDINATES = ("longitude", "latitude")
# A tract's id begins with the codes of its state and of its county.
STATE_DIGITS, COUNTY_DIGITS = 2, 5


def load_us_tracts() -> pd.DataFrame:
    """Loads 71,666 census tracts of the contiguous United States, of 2018.

    There is one row per tract, of 4,000 people on the median. The 25 `US_TRACTS_FEATURES` are

    | column | meaning |
    |---|---|
    | employed | employed people per head, 0 to 1 |
    | no_diploma | people without a high school diploma, percent |
    | high_risk_jobs | percentage of workers in industries with a high risk of injury |
    | health_care_jobs, retail_jobs | percentages of workers in health care and in retail trade |
    | essential_jobs | percentage of workers in essential occupations |
    | unemployed, poverty | unemployment rate and people below the poverty level, percent |
    | log_income | log of the income per head, US dollars a year |
    | internet | percentage of households with a subscription to the internet |
    | internet_free, no_internet | the same with access but no subscription, and without access |
    | log_units | log(1 + housing units) |
    | vacant, mobile_homes | percentages of the housing units |
    | long_term | percentage of people in the same home since before 2000 |
    | rented | number of rented homes, percent of the people in households |
    | log_unit_density | log(1 + housing units per square mile) |
    | log_population | log of the number of people |
    | log_area | log of the land area, square miles |
    | svi_household | Social Vulnerability Index by household composition and disability |
    | svi_minority | the same by minority status and language |
    | svi_housing | the same by housing type and transportation |
    | group_quarters | percentage of people in group quarters |
    | nonrelated | percentage of people in "unrelated household dwelling", as the source calls it |

    An index is the rank among all tracts, from 0 to 1, the most vulnerable. It is not
    known which people no_diploma is a percentage of.

    The places and keys of the rows are

    | column | meaning |
    |---|---|
    | longitude, latitude | of the tract, degrees |
    | tract | str, the id of the tract, 11 digits |
    | county | str, FIPS code, the first five digits; 3,106 counties of median size 6 |
    | state | str, FIPS code, the first two digits; 48 states and the District of Columbia |

    No value is missing. Two tracts have the same coordinates. Tracts of Alaska, Hawaii and Puerto
    Rico are not in the table. Two features follow from others up to rounding: no_internet from the
    other shares of households, log_unit_density from log_units and log_area. Nothing is
    standardised.

    Returns:
        tracts: DataFrame with 71,666 rows, by tract. Features are float64.

    Example:
        >>> tracts = load_us_tracts()
        >>> tracts[[*US_TRACTS_FEATURES]].shape
        (71666, 25)

    References:
        - American Community Survey, 5-year estimates (2014-2018; internet 2015-2019) and gazetteer,
          U.S. Census Bureau; Social Vulnerability Index 2018, Centers for Disease Control and
          Prevention. Works of the US government, public domain.
        - Compiled by the Opioid Environment Policy Scan of the Center for Spatial Data Science
          (GeoDa), University of Chicago.
    """
    source = resources.files("keras_lmmvae.datasets") / "data" / "us_tracts.csv.gz"
    with resources.as_file(source) as path:
        table = pd.read_csv(path, compression="gzip", dtype={"geoid": str})
    tracts = table[list(US_TRACTS_FEATURES)].astype(np.float64)
    tracts[list(COORDINATES)] = table[list(COORDINATES)].astype(np.float64)
    return tracts.assign(
        tract=table["geoid"],
        county=table["geoid"].str[:COUNTY_DIGITS],
        state=table["geoid"].str[:STATE_DIGITS],
    )
