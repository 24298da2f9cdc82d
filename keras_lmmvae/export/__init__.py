"""Export to TensorFlow SavedModel, and publishing for TensorFlow Serving."""

from keras_lmmvae.export.publishing import Published, publish

__all__ = ["Published", "publish"]
