"""SavedModel export: raw keys and coordinates in, reconstructions out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tensorflow as tf

from keras_lmmvae.export.input_names import check_input_names
from keras_lmmvae.export.serving_module import ServingModule
from keras_lmmvae.files import written_whole
from keras_lmmvae.fitted_model import FittedModel

__all__ = ["export_saved_model", "write_saved_model"]


def export_saved_model(
    model: FittedModel, filepath: str | Path, *, keys_in_graph: bool = False
) -> None:
    """Writes the SavedModel of a fitted model; see `LMMVAE.export`.

    A failed export leaves what was there before.

    Args:
        model: A fitted model.
        filepath: Folder to write. A folder that is there is replaced.
        keys_in_graph: Whether keys are constants of the graph instead of asset files.

    Raises:
        ValueError: If a column's name cannot be that of a SavedModel's input.
    """
    check_input_names(model)
    with written_whole(filepath) as fresh:
        write_saved_model(model, fresh, keys_in_graph=keys_in_graph)


def write_saved_model(model: FittedModel, folder: Path, *, keys_in_graph: bool = False) -> None:
    """Writes the SavedModel of a fitted model into a folder that does not exist yet.

    Args:
        model: A fitted model.
        folder: Folder to write.
        keys_in_graph: Whether keys are constants of the graph instead of asset files.
    """
    # TensorFlow copies the files of keys into the SavedModel.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".vocabularies-") as vocabularies:
        module = ServingModule(model, None if keys_in_graph else Path(vocabularies))
        tf.saved_model.save(module, str(folder), signatures=module.signatures())
