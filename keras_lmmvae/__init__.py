"""Variational autoencoders with random effects: LMMVAE for Keras 3 on TensorFlow.

    x[i] = f(u[i]) + sum{ Z_k[i] @ B_k : k=1...K } + e[i]

See `LMMVAE` for the model, and `RandomIntercept`, `RandomSlopes`, `SpatialEffect` for its terms.

A name is imported when it is first used, and TensorFlow with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from keras_lmmvae._backend import when_keras_is_there
from keras_lmmvae.version import __version__ as __version__

if TYPE_CHECKING:
    from keras_lmmvae import (
        baselines,
        callbacks,
        datasets,
        layers,
        metrics,
        plots,
        simulation,
    )
    from keras_lmmvae.data_frame import from_dataframe
    from keras_lmmvae.diagnostics.diagnose import diagnose
    from keras_lmmvae.diagnostics.finding import LMMVAEWarning
    from keras_lmmvae.effects import RandomIntercept, RandomSlopes, SpatialEffect
    from keras_lmmvae.formula import random_effects_from_formula
    from keras_lmmvae.inspection.likelihood_ratio import likelihood_ratio_test
    from keras_lmmvae.lmmvae import LMMVAE
    from keras_lmmvae.transformer import LMMVAETransformer

__all__ = [
    "LMMVAE",
    "LMMVAETransformer",
    "LMMVAEWarning",
    "RandomIntercept",
    "RandomSlopes",
    "SpatialEffect",
    "baselines",
    "callbacks",
    "datasets",
    "diagnose",
    "from_dataframe",
    "layers",
    "likelihood_ratio_test",
    "metrics",
    "plots",
    "random_effects_from_formula",
    "simulation",
]

# The modules that define the names above which are no modules themselves.
_MODULES = {
    "LMMVAE": "lmmvae",
    "LMMVAETransformer": "transformer",
    "LMMVAEWarning": "diagnostics",
    "RandomIntercept": "effects",
    "RandomSlopes": "effects",
    "SpatialEffect": "effects",
    "diagnose": "diagnostics",
    "from_dataframe": "data_frame",
    "likelihood_ratio_test": "inspection",
    "random_effects_from_formula": "formula",
}


def __getattr__(name: str) -> Any:
    """Imports a name of this package when it is first used."""
    if name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


when_keras_is_there()
