"""Methods side by side on the paper's experiments; `keras-lmmvae benchmark SUITE` runs them."""

from keras_lmmvae.benchmark.runner import Outcome, pick_cells, run_suite
from keras_lmmvae.benchmark.suites import SUITES, Suite, find_suite

__all__ = ["SUITES", "Outcome", "Suite", "find_suite", "pick_cells", "run_suite"]
