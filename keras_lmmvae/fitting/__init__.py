"""Two ways to fit the random effects: in closed form, and by the paper's second encoder."""

from keras_lmmvae.fitting.amortized import AmortizedFit
from keras_lmmvae.fitting.conjugate import ConjugateFit
from keras_lmmvae.fitting.effects_fit import EffectsFit, EffectsSchedule
from keras_lmmvae.fitting.new_levels import fit_new_levels

__all__ = ["AmortizedFit", "ConjugateFit", "EffectsFit", "EffectsSchedule", "fit_new_levels"]
