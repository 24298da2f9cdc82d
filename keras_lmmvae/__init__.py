"""Variational autoencoders with random effects: LMMVAE for Keras 3 on TensorFlow.

    x[i] = f(u[i]) + sum{ Z_k[i] @ B_k : k=1...K } + e[i]

See `LMMVAE` for the model, and `RandomIntercept`, `RandomSlopes`, `SpatialEffect` for its terms.
"""

from keras_lmmvae._backend import require_tensorflow

require_tensorflow()

from keras_lmmvae import (  # noqa: E402
    baselines,
    callbacks,
    datasets,
    layers,
    metrics,
    plots,
    simulation,
)
from keras_lmmvae.data_frame import from_dataframe  # noqa: E402
from keras_lmmvae.diagnostics import LMMVAEWarning, diagnose  # noqa: E402
from keras_lmmvae.effects import RandomIntercept, RandomSlopes, SpatialEffect  # noqa: E402
from keras_lmmvae.formula import random_effects_from_formula  # noqa: E402
from keras_lmmvae.lmmvae import LMMVAE  # noqa: E402
from keras_lmmvae.transformer import LMMVAETransformer  # noqa: E402
from keras_lmmvae.version import __version__  # noqa: E402

__all__ = [
    "LMMVAE",
    "LMMVAETransformer",
    "LMMVAEWarning",
    "RandomIntercept",
    "RandomSlopes",
    "SpatialEffect",
    "__version__",
    "baselines",
    "callbacks",
    "datasets",
    "diagnose",
    "from_dataframe",
    "layers",
    "metrics",
    "plots",
    "random_effects_from_formula",
    "simulation",
]
