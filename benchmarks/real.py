"""Real tables: features standardised by the training rows, at most 20,000 rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.table import Source, Table
from keras_lmmvae import datasets
from keras_lmmvae.effects import RandomIntercept, RandomSlopes, SpatialEffect

__all__ = ["labelled", "tables"]

MOST_ROWS = 20_000
SECOND_SPLIT_DIMS = (2,)


def tables() -> list[Table]:
    """Six data sets, each split by rows and by what is new in practice: groups or the future."""
    houses, flights, baseball, murders, pines, tracts = (
        _houses(),
        _flights(),
        _panel("baseball", _baseball, "player"),
        _panel("county-murders", _county_murders, "county"),
        _pines(),
        _us_tracts(),
    )
    seconds = [
        replace(houses, split="groups", split_on="cell"),
        replace(flights, split="groups", split_on="flight"),
        replace(baseball, split="future", split_on="year"),
        replace(murders, split="future", split_on="year"),
        replace(pines, split="groups", split_on="cell"),
        replace(tracts, split="groups", split_on="county"),
    ]
    firsts = [houses, flights, baseball, murders, pines, tracts]
    return [*firsts, *(replace(table, latent_dims=SECOND_SPLIT_DIMS) for table in seconds)]


def labelled() -> list[Table]:
    """Tables with labels, whole groups held out: crops, speakers, and walls of houses."""
    vowels = Table(
        "vowels",
        _loader(_vowels),
        lambda: [RandomSlopes("utterance", time="t", degree=2)],
        "groups",
        "utterance",
        groups=("utterance",),
        subject="utterance",
        time="t",
        standardise=True,
    )
    return [
        replace(_pines(), split="groups", split_on="cell"),
        vowels,
        replace(_houses(), split="groups", split_on="cell"),
    ]


def _loader(load: Callable[[], Source]) -> Callable[[int, int], Source]:
    """A `load` that ignores latent dimension and seed."""
    return partial(_call, load)


def _call(load: Callable[[], Source], latent_dim: int, seed: int) -> Source:
    del latent_dim, seed
    return load()


def _source(
    frame: pd.DataFrame,
    features: Sequence[str],
    columns: Sequence[str],
    labels: str | None = None,
) -> Source:
    """Features and columns of a frame, of a random part of its rows if there are too many."""
    if len(frame) > MOST_ROWS:
        frame = frame.sample(MOST_ROWS, random_state=0)
    data: dict[str, Any] = {"x": frame[list(features)].to_numpy(np.float64)}
    for name in columns:
        values = frame[name].to_numpy()
        data[name] = values if values.dtype.kind in "iuf" else values.astype(str)
    classes = None if labels is None else frame[labels].astype(object).to_numpy()
    return Source(data, labels=classes)


def _houses() -> Table:
    def load() -> Source:
        frame = datasets.load_houses()
        features = datasets.houses_features(frame)
        columns = ["easting", "northing", "syear", "cell"]
        frame = pd.concat([features, frame[[*columns, "wall"]]], axis=1)
        return _source(frame, list(features.columns), columns, labels="wall")

    place = ("easting", "northing")
    return Table(
        "houses",
        _loader(load),
        lambda: [
            SpatialEffect(place, kernel="matern12"),
            RandomIntercept("cell"),
            RandomIntercept("syear"),
        ],
        groups=("cell", "syear"),
        coordinates=place,
        standardise=True,
    )


def _flights() -> Table:
    groups = ("flight", "tailnum", "dest")

    def load() -> Source:
        return _source(datasets.load_flights(), datasets.FLIGHTS_FEATURES, groups)

    return Table(
        "flights",
        _loader(load),
        lambda: [RandomIntercept(name) for name in groups],
        groups=groups,
        standardise=True,
    )


def _baseball() -> Source:
    frame = datasets.load_baseball()
    return _source(frame, datasets.BASEBALL_FEATURES, ["player", "year", "t"])


def _county_murders() -> Source:
    frame = datasets.load_county_murders()
    return _source(frame, datasets.COUNTY_MURDERS_FEATURES, ["county", "year", "t"])


def _vowels() -> Source:
    frame = datasets.load_japanese_vowels()
    features = datasets.JAPANESE_VOWELS_FEATURES
    return _source(frame, features, ["utterance", "t"], labels="speaker")


def _panel(dataset: str, load: Callable[[], Source], subject: str) -> Table:
    """Repeated measures of subjects, all seen in the same calendar years."""
    return Table(
        dataset,
        _loader(load),
        lambda: [RandomSlopes(subject, time="t", degree=2), RandomIntercept("year")],
        groups=(subject, "year"),
        subject=subject,
        time="t",
        standardise=True,
    )


def _pines() -> Table:
    def load() -> Source:
        frame = datasets.load_pines(every=10)
        features = [str(name) for name in frame if str(name).startswith("band_")]
        frame["crop"] = frame["crop"].astype(object).where(frame["crop"] > 0, None)
        return _source(frame, features, ["row", "column", "cell"], labels="crop")

    place = ("row", "column")
    return Table(
        "pines",
        _loader(load),
        lambda: [SpatialEffect(place, kernel="matern12"), RandomIntercept("cell")],
        groups=("cell",),
        coordinates=place,
        standardise=True,
    )


def _us_tracts() -> Table:
    place = ("longitude", "latitude")

    def load() -> Source:
        frame = datasets.load_us_tracts()
        return _source(frame, datasets.US_TRACTS_FEATURES, [*place, "county"])

    return Table(
        "us-tracts",
        _loader(load),
        lambda: [
            SpatialEffect(place, kernel="matern12", metric="haversine"),
            RandomIntercept("county"),
        ],
        groups=("county",),
        coordinates=place,
        standardise=True,
    )
