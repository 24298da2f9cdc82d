"""Publishes a model: export, card, warm-up requests and a check, all of them or nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_lmmvae.export.input_names import check_input_names
from keras_lmmvae.export.model_card import model_card
from keras_lmmvae.export.requests import example_requests
from keras_lmmvae.export.saved_model import write_saved_model
from keras_lmmvae.export.verification import verify_saved_model
from keras_lmmvae.export.warmup import read_warmup_requests, write_warmup_requests
from keras_lmmvae.files import written_whole
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.validation import received

__all__ = ["CARD_FILE", "Published", "publish", "read_card"]

CARD_FILE = Path("assets.extra") / "model_card.json"
"""Place of the card in the folder of a SavedModel. TensorFlow Serving does not read it."""


@dataclass(frozen=True)
class Published:
    """A published version and what its check found.

    Attributes:
        folder: The version's folder.
        card: The model card.
        requests: Number of requests that were replayed.
        largest_difference: The largest difference between a served and a Python answer,
            relative to the largest absolute value of that output.
    """

    folder: Path
    card: dict[str, Any]
    requests: int
    largest_difference: float


def publish(model: FittedModel, filepath: str | Path, *, warmup: bool = True) -> Published:
    """Writes `models/<name>/<version>` for TensorFlow Serving, checked before it appears.

    The SavedModel, its card (`assets.extra/model_card.json`) and warm-up requests are written to
    a folder beside the target. TensorFlow then loads them in a fresh process that can import
    neither this package nor Keras, and answers a request of every signature. If the answers agree
    with the Python model's, the folder is renamed. So a server that watches `models/<name>` never
    sees half of a version.

    Args:
        model: A fitted model.
        filepath: Folder of the version, whose name is a whole number; or of the model, to which
            the next version is added.
        warmup: Whether to add warm-up requests, which needs `tensorflow-serving-api`.

    Returns:
        A `Published`.

    Raises:
        ValueError: If the model is not fitted, the name of a column cannot be the input of a
            SavedModel, the version exists, or the export does not answer as the Python model.
        ImportError: If warm-up requests are wanted and `tensorflow-serving-api` is missing.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import keras_lmmvae as lmm
        >>> rng = np.random.default_rng(0)
        >>> data = {"x": rng.normal(size=(100, 3)), "store": rng.integers(0, 10, 100)}
        >>> model = lmm.LMMVAE(1, [lmm.RandomIntercept("store")], hidden_units=(8,), seed=0)
        >>> model.adapt(data)
        >>> model.compile()
        >>> history = model.fit(data, epochs=1, verbose=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     published = publish(model, f"{folder}/stores", warmup=False)
        >>> published.folder.name
        '1'
    """
    model.require_fitted()
    check_input_names(model)
    target = _version_folder(Path(filepath))
    card = model_card(model)
    with written_whole(target) as fresh:
        write_saved_model(model, fresh)
        requests = example_requests(model)
        if warmup:
            write_warmup_requests(fresh, requests, target.parent.name)
            requests = read_warmup_requests(fresh)
        difference = verify_saved_model(model, fresh, requests)
        path = fresh / CARD_FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _require_new(target)  # Another process may have published it meanwhile.
    return Published(target, card, len(requests), difference)


def _version_folder(path: Path) -> Path:
    """The folder to write: the given version, or the next version of the model."""
    if not path.name.isdecimal():
        versions = [int(p.name) for p in path.glob("*") if p.name.isdecimal()]
        return path / str(max(versions, default=0) + 1)
    _require_new(path)
    return path


def _require_new(path: Path) -> None:
    """Raises a ValueError if the version exists, because a server may be reading it."""
    if path.exists():
        raise ValueError(
            "This version is there already: choose another number, because a server may be "
            "reading it. " + received(filepath=str(path))
        )


def read_card(folder: str | Path) -> dict[str, Any]:
    """Reads the card of a published model, and raises a ValueError if there is none."""
    path = Path(folder) / CARD_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            "The folder holds no model card, expected a model that was published. "
            + received(folder=str(folder))
        ) from error
    return dict(card)
