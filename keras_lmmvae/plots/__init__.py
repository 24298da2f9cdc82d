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

from keras_lmmvae.plots.model import (
    plot_latent,
    plot_reconstruction,
    plot_training,
    plot_variance_partition,
)
from keras_lmmvae.plots.terms import (
    plot_caterpillar,
    plot_effects_map,
    plot_shrinkage,
    plot_trajectories,
)

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
