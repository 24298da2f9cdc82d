"""What `keras-lmmvae export` and `inspect` do."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras
from rich.console import Console

from keras_lmmvae.export.model_card import model_card, render_card
from keras_lmmvae.export.publishing import CARD_FILE, publish, read_card
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.validation import received

__all__ = ["MODEL_FILE", "export", "inspect", "load_run"]

MODEL_FILE = "model.keras"
"""The model in the folder of a run."""


def export(run: Path, output: Path, *, warmup: bool = True, console: Console | None = None) -> None:
    """Publishes the model of a run for TensorFlow Serving; see `publish`.

    Args:
        run: Folder of a run, or a `.keras` file.
        output: Folder of the version, or of the model.
        warmup: Whether to add warm-up requests.
        console: Where to print; standard output by default.

    Raises:
        ValueError: If the run holds no fitted model, or the export fails its check.
        ImportError: If warm-up requests are wanted and `tensorflow-serving-api` is missing.
    """
    console = console or Console()
    published = publish(load_run(run), output, warmup=warmup)
    kind = "warm-up requests" if warmup else "requests (none was added for warm-up)"
    console.print(
        f"{published.requests} {kind} were answered by TensorFlow in a process without "
        "keras_lmmvae and Keras. The largest relative difference to the Python model is "
        f"{published.largest_difference:.1e}.",
        highlight=False,
    )
    console.print(f"published: {published.folder}", highlight=False, soft_wrap=True)


def inspect(path: Path, console: Console | None = None) -> None:
    """Prints the card of a run, a `.keras` file or a published model.

    Args:
        path: Folder of a run or of a SavedModel, or a `.keras` file.
        console: Where to print; standard output by default.

    Raises:
        ValueError: If there is no model.
    """
    is_published = (path / CARD_FILE).exists()
    card = read_card(path) if is_published else model_card(load_run(path))
    (console or Console()).print(render_card(card), highlight=False, markup=False, soft_wrap=True)


def load_run(path: Path) -> LMMVAE:
    """Loads the model of a run, in Keras' safe mode.

    Args:
        path: Folder of a run, or a `.keras` file.

    Raises:
        ValueError: If there is no model, or the file is damaged or of another kind.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.exists():
        raise ValueError(
            f"There is no model, expected a folder with '{MODEL_FILE}', a '.keras' file or a "
            "published model. " + received(path=str(path))
        )
    try:
        model = keras.saving.load_model(file, compile=False)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The file is damaged or no Keras model: {error}. " + received(path=str(file))
        ) from error
    if not isinstance(model, LMMVAE):
        raise ValueError(
            "The file holds another kind of model, expected an LMMVAE. "
            + received(model=type(model).__name__)
        )
    return model
