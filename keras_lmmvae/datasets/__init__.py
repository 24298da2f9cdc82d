"""Real correlated data that comes with the package: nothing is downloaded."""

from keras_lmmvae.datasets.houses import HOUSES_FEATURES, houses_features, load_houses

__all__ = ["HOUSES_FEATURES", "houses_features", "load_houses"]
