"""Pictures of a fitted model; each function draws on Matplotlib axes and returns them.

Matplotlib is imported by the first picture, not with this package.
"""

from keras_lmmvae.plots.caterpillar import plot_caterpillar
from keras_lmmvae.plots.effects_map import plot_effects_map
from keras_lmmvae.plots.latent import plot_latent
from keras_lmmvae.plots.reconstruction import plot_reconstruction
from keras_lmmvae.plots.shrinkage import plot_shrinkage
from keras_lmmvae.plots.training import plot_training
from keras_lmmvae.plots.trajectories import plot_trajectories
from keras_lmmvae.plots.variance_partition import plot_variance_partition

__all__ = [
    "plot_caterpillar",
    "plot_effects_map",
    "plot_latent",
    "plot_reconstruction",
    "plot_shrinkage",
    "plot_training",
    "plot_trajectories",
    "plot_variance_partition",
]
