"""Baselines to compare with, as scikit-learn estimators: `fit`, `transform`, `reconstruct`."""

from keras_lmmvae.baselines.base import Baseline
from keras_lmmvae.baselines.group_means import GroupMeans
from keras_lmmvae.baselines.pca import BLUPPCA, PCABaseline
from keras_lmmvae.baselines.svgpvae import SVGPVAEBaseline
from keras_lmmvae.baselines.vae import BLUPVAE, VAEBaseline
from keras_lmmvae.baselines.vrae import VRAEBaseline

__all__ = [
    "BLUPPCA",
    "BLUPVAE",
    "Baseline",
    "GroupMeans",
    "PCABaseline",
    "SVGPVAEBaseline",
    "VAEBaseline",
    "VRAEBaseline",
]
