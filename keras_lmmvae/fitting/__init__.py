"""Two ways to fit the random effects: in closed form, and by the paper's second encoder."""

from keras_lmmvae.fitting.amortized import AmortizedFit
from keras_lmmvae.fitting.conjugate import ConjugateFit
from keras_lmmvae.fitting.effects_fit import EffectsFit, EffectsSchedule

__all__ = ["AmortizedFit", "ConjugateFit", "EffectsFit", "EffectsSchedule"]
