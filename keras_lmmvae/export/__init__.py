"""Export to TensorFlow SavedModel, publishing for TensorFlow Serving, and proofs of both."""

from keras_lmmvae.export.c_process import run_in_c_process
from keras_lmmvae.export.publishing import Published, publish

__all__ = ["Published", "publish", "run_in_c_process"]
