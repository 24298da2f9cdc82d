"""What may be wrong with a fitted model: findings with numbers and a remedy."""

from keras_lmmvae.diagnostics.diagnose import diagnose
from keras_lmmvae.diagnostics.finding import Diagnosis, Finding, LMMVAEWarning

__all__ = ["Diagnosis", "Finding", "LMMVAEWarning", "diagnose"]
