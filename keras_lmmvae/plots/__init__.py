"""Plots of a fitted model. Each function draws on Matplotlib axes and returns them.

Matplotlib is imported when the first plot is made.

Example:
    The examples of the functions use this `model` and its `data`:

    >>> import numpy as np
    >>> import keras_lmmvae as lmm
    >>> rng = np.random.default_rng(0)
    >>> keys = {"store": rng.integers(0, 20, 200), "patient": rng.integers(0, 10, 200)}
    >>> t, lon, lat = rng.uniform(size=(3, 200))
    >>> x = rng.normal(size=(20, 3))[keys["store"]] + rng.normal(size=(200, 3))
    >>> data = {"x": x, **keys, "t": t, "lon": lon, "lat": lat}
    >>> terms = [
    ...     lmm.RandomIntercept("store"),
    ...     lmm.RandomSlopes("patient", time="t"),
    ...     lmm.SpatialEffect(("lon", "lat"), num_inducing=20, name="place"),
    ... ]
    >>> model = lmm.LMMVAE(2, terms, hidden_units=(8,), seed=0)
    >>> model.adapt(data, feature_names=["price", "size", "age"])
    >>> model.compile()
    >>> history = model.fit(data, epochs=2, verbose=0)
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
