"""The folder of a run: its place, its log and its model.

A run is written to a folder beside its place, which is renamed when it is whole.
"""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from keras_lmmvae.errors import received

if TYPE_CHECKING:
    from keras_lmmvae import LMMVAE

__all__ = ["CONFIG", "LOG", "MODEL_FILE", "RunFolder", "find_model", "load_run", "run_log"]

MODEL_FILE = "model.keras"
"""The model in the folder of a run."""
CONFIG = "config.yaml"
"""The configuration as it was given, in the folder of a run."""
LOG = logging.getLogger("keras_lmmvae.runs")
"""The logger of runs. It writes nothing without `run_log`."""
LOG.addHandler(logging.NullHandler())
LOG.propagate = False

_CHECKPOINTS, _LOG_FILE = "checkpoints", "run.log"


class RunFolder:
    """The folder of a run, and the folder `RUN.partial` beside it, in which the run is made.

    Args:
        path: The folder.

    Attributes:
        given: The path as it was given.
        path: The folder.
        partial: The folder beside it.
    """

    def __init__(self, path: Path) -> None:
        self.given = path
        self.path = path.resolve()
        self.partial = self.path.with_name(self.path.name + ".partial")

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints in `partial`."""
        return self.partial / _CHECKPOINTS

    @property
    def model(self) -> Path:
        """File of the model in `partial`."""
        return self.partial / MODEL_FILE

    @property
    def is_complete(self) -> bool:
        """Whether there is a finished run."""
        return (self.path / MODEL_FILE).exists()

    @property
    def is_resumable(self) -> bool:
        """Whether there is a checkpoint, or a fitted model without its results."""
        return self.model.exists() or any(self.checkpoints.glob("epoch-*"))

    def check(self, *, overwrite: bool, resume: bool) -> None:
        """Raises a ValueError if something is there that would be lost."""
        if overwrite and resume:
            raise ValueError(
                "Either `--overwrite` starts anew or `--resume` goes on, not both. "
                + received(overwrite=overwrite, resume=resume)
            )
        if not (_is_empty(self.path) or self.is_complete):
            raise ValueError(
                "The output is there and is no folder of a run, expected a new name. "
                + received(output=str(self.path))
            )
        if not (_is_empty(self.partial) or (self.partial / CONFIG).exists()):
            raise ValueError(
                "The folder in which the run would be made is there and is none of a run. "
                + received(partial=str(self.partial))
            )
        if self.is_complete and not (overwrite or resume):
            raise ValueError(
                "The output holds a run already: choose another folder, or `--overwrite` it. "
                + received(output=str(self.path))
            )
        if self.is_resumable and not (overwrite or resume):
            raise ValueError(
                "A run of this name was interrupted: go on with `--resume`, or start anew with "
                "`--overwrite`. " + received(partial=str(self.partial))
            )

    def start(self, files: dict[str, str]) -> None:
        """Makes `partial` anew, with some files in it."""
        self.discard()
        self.partial.mkdir(parents=True)
        for name, text in files.items():
            (self.partial / name).write_text(text, encoding="utf-8")

    def check_same(self, files: dict[str, str]) -> None:
        """Raises a ValueError unless an interrupted or finished run was made of these files."""
        folder = self.partial if self.is_resumable else self.path
        for name, text in files.items():
            kept = folder / name
            if not kept.exists() or kept.read_text(encoding="utf-8") != text:
                raise ValueError(
                    f"The run cannot be resumed: its {name} differs from what is given now. Use "
                    "the same configuration and data, or start anew with `--overwrite`. "
                    + received(file=str(kept))
                )

    def discard(self) -> None:
        """Removes `partial`."""
        if self.partial.exists():
            shutil.rmtree(self.partial)

    def finish(self) -> None:
        """Moves `partial` into place. A run that was there is removed afterwards."""
        if self.checkpoints.exists():
            shutil.rmtree(self.checkpoints)
        for scratch in self.partial.rglob(".writing-*"):  # A process was killed in `written_whole`.
            shutil.rmtree(scratch)
        before = self.path.with_name(self.path.name + ".before")
        if self.path.exists():
            if before.exists():  # A process was killed here.
                shutil.rmtree(before)
            os.rename(self.path, before)
        os.rename(self.partial, self.path)
        if before.exists():
            shutil.rmtree(before)


def _is_empty(path: Path) -> bool:
    """Whether nothing would be lost with a path."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Appends what is logged to run.log, and the traceback of an error that ends the run."""
    handler = logging.FileHandler(folder / _LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.addHandler(handler)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        yield
    except KeyboardInterrupt:
        LOG.warning("interrupted")
        raise
    except BaseException:
        LOG.exception("failed")
        raise
    finally:
        LOG.setLevel(level)
        LOG.removeHandler(handler)
        handler.close()


def find_model(path: Path) -> Path:
    """The file of a run's model; TensorFlow is not imported for this."""
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.exists():
        raise ValueError(
            f"There is no model, expected a folder with '{MODEL_FILE}', a '.keras' file or a "
            "published model. " + received(path=str(path))
        )
    if not zipfile.is_zipfile(file):
        raise ValueError("The file is damaged or no Keras model. " + received(path=str(file)))
    return file


def load_run(path: Path) -> LMMVAE:
    """Loads the model of a run, in Keras' safe mode."""
    file = find_model(path)
    import keras

    from keras_lmmvae import LMMVAE

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
