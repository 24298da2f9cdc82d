"""What a fitted model says: predictions, tables, variance components, likelihoods."""

from keras_lmmvae.inspection.conditioning import Conditioned, condition
from keras_lmmvae.inspection.information_criteria import information_criteria
from keras_lmmvae.inspection.intervals import variance_intervals
from keras_lmmvae.inspection.likelihood_ratio import likelihood_ratio_test
from keras_lmmvae.inspection.partition import variance_partition
from keras_lmmvae.inspection.prediction import Prediction, log_likelihood, predictive, term_effects
from keras_lmmvae.inspection.representation import encode
from keras_lmmvae.inspection.tables import (
    coefficient_covariance,
    random_effects_table,
    variance_components,
)

__all__ = [
    "Conditioned",
    "Prediction",
    "coefficient_covariance",
    "condition",
    "encode",
    "information_criteria",
    "likelihood_ratio_test",
    "log_likelihood",
    "predictive",
    "random_effects_table",
    "term_effects",
    "variance_components",
    "variance_intervals",
    "variance_partition",
]
