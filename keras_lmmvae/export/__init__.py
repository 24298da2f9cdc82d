"""Export to TensorFlow SavedModel, and its proof without TensorFlow's Python."""

from keras_lmmvae.export.c_process import run_in_c_process

__all__ = ["run_in_c_process"]
