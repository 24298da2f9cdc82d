"""Real correlated data from this package, from installed packages or from files of the user."""

from keras_lmmvae.datasets.baseball import BASEBALL_FEATURES, load_baseball
from keras_lmmvae.datasets.census_tracts import CENSUS_TRACTS_FEATURES, load_census_tracts
from keras_lmmvae.datasets.county_murders import COUNTY_MURDERS_FEATURES, load_county_murders
from keras_lmmvae.datasets.flights import FLIGHTS_FEATURES, load_flights
from keras_lmmvae.datasets.houses import HOUSES_FEATURES, houses_features, load_houses
from keras_lmmvae.datasets.japanese_vowels import JAPANESE_VOWELS_FEATURES, load_japanese_vowels
from keras_lmmvae.datasets.pines import PINES_CROPS, PINES_FEATURES, load_pines
from keras_lmmvae.datasets.rossmann import ROSSMANN_FEATURES, load_rossmann
from keras_lmmvae.datasets.us_tracts import US_TRACTS_FEATURES, load_us_tracts

__all__ = [
    "BASEBALL_FEATURES",
    "CENSUS_TRACTS_FEATURES",
    "COUNTY_MURDERS_FEATURES",
    "FLIGHTS_FEATURES",
    "HOUSES_FEATURES",
    "JAPANESE_VOWELS_FEATURES",
    "PINES_CROPS",
    "PINES_FEATURES",
    "ROSSMANN_FEATURES",
    "US_TRACTS_FEATURES",
    "houses_features",
    "load_baseball",
    "load_census_tracts",
    "load_county_murders",
    "load_flights",
    "load_houses",
    "load_japanese_vowels",
    "load_pines",
    "load_rossmann",
    "load_us_tracts",
]
