"""SavedModel export: raw keys and coordinates in, reconstructions out."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import tensorflow as tf

from keras_lmmvae.export.input_names import check_input_names
from keras_lmmvae.export.serving_module import ServingModule
from keras_lmmvae.fitted_model import FittedModel

__all__ = ["export_saved_model", "write_saved_model"]


def export_saved_model(
    model: FittedModel, filepath: str | Path, *, keys_in_graph: bool = False
) -> None:
    """Writes the SavedModel of a fitted model; see `LMMVAE.export`.

    The folder is written beside its place and renamed: a failed export leaves what was there
    before.

    Args:
        model: A fitted model.
        filepath: Folder to write.
        keys_in_graph: Whether keys are constants of the graph instead of asset files.

    Raises:
        ValueError: If a column's name cannot be that of a SavedModel's input.
    """
    check_input_names(model)
    target = Path(filepath)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        fresh = Path(folder) / "model"
        write_saved_model(model, fresh, None if keys_in_graph else Path(folder) / "vocabularies")
        if target.exists():
            os.replace(target, Path(folder) / "old")
        os.replace(fresh, target)


def write_saved_model(model: FittedModel, folder: Path, vocabularies: Path | None) -> None:
    """Writes the SavedModel of a fitted model into a folder that does not exist yet.

    Args:
        model: A fitted model.
        folder: Folder to write.
        vocabularies: Folder for files of keys, which are copied into the SavedModel; `None`:
            the keys are constants of the graph.
    """
    if vocabularies is not None:
        vocabularies.mkdir()
    module = ServingModule(model, vocabularies)
    tf.saved_model.save(module, str(folder), signatures=module.signatures())
