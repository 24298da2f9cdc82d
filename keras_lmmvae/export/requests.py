"""Example requests: usual rows, unseen and missing keys, missing cells."""

from typing import Any

import numpy as np

from keras_lmmvae.export.condition_signature import can_condition
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.validation import NULL_INTEGER

__all__ = ["example_columns", "example_requests", "unseen_key"]

NUM_ROWS = 4
UNSEEN_STRING, UNSEEN_INTEGER = "a key that was never seen", -(2**62)


def example_columns(model: FittedModel) -> dict[str, np.ndarray]:
    """Four rows: two usual ones, one with unseen keys, one with null keys and a missing cell.

    Features are within about a standard deviation of their means. Keys are the first and the last
    one of the model. Numbers and coordinates are typical values of the training rows.
    """
    rng = np.random.default_rng(0)
    mean, scale = np.asarray(model.feature_mean), np.asarray(model.feature_scale)
    x = (mean + scale * rng.standard_normal((NUM_ROWS, len(mean)))).astype(np.float32)
    x[-1, 0] = np.nan
    columns: dict[str, np.ndarray] = {"x": x}
    # If one term reads keys in a column and another numbers, requests hold keys.
    vocabularies = {k: v for term in model.random_effects for k, v in term.vocabularies().items()}
    for term in model.random_effects:
        for column, typical in term.typical_values().items():
            columns[column] = np.array([typical, typical, typical, np.nan], np.float32)
    return columns | {column: _keys(keys) for column, keys in vocabularies.items()}


def unseen_key(term: Any) -> int | str:
    """A key that a term with one key column does not know."""
    (vocabulary,) = term.vocabularies().values()
    return UNSEEN_INTEGER if vocabulary.is_integer else UNSEEN_STRING


def _keys(vocabulary: Any) -> np.ndarray:
    first, last = vocabulary.keys[0], vocabulary.keys[-1]
    if vocabulary.is_integer:
        return np.array([first, last, UNSEEN_INTEGER, NULL_INTEGER], np.int64)
    return np.array([first, last, UNSEEN_STRING, ""], object)


def example_requests(model: FittedModel) -> list[dict[str, Any]]:
    """A request for every signature of the export: dicts with "signature" and "inputs"."""
    columns = example_columns(model)
    effects = {name: values for name, values in columns.items() if name != "x"}
    latent = np.linspace(-1.0, 1.0, NUM_ROWS * model.latent_dim, dtype=np.float32)
    requests = [
        {"signature": name, "inputs": columns}
        for name in ("serving_default", "encode", "anomaly_score")
    ]
    decoded = {"latent": latent.reshape(NUM_ROWS, model.latent_dim), **effects}
    requests.append({"signature": "decode", "inputs": decoded})
    for term in model.random_effects:
        own = {column: columns[column] for column in term.columns}
        requests.append({"signature": f"random_effects_{term.name}", "inputs": own})
        if can_condition(model):
            inputs = _condition_inputs(model, term, columns)
            requests.append({"signature": f"condition_{term.name}", "inputs": inputs})
    return requests


def _condition_inputs(model: Any, term: Any, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Gives each row three support rows. The last two rows mask one of them, or all.

    A level that the term does not know is unknown to other terms with the same key, too.
    """
    rng = np.random.default_rng(1)
    mean, scale = np.asarray(model.feature_mean), np.asarray(model.feature_scale)
    noise = rng.standard_normal((NUM_ROWS, 3, len(mean)))
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]], np.float32)
    support = (mean + scale * (0.5 + noise)).astype(np.float32)
    inputs = {"x": columns["x"], "support": support, "support_mask": mask}
    others = [other for other in model.random_effects if other is not term]
    names = [name for other in others for name in other.columns]
    for column in dict.fromkeys([*names, *term.numbers]):
        values = columns[column]
        if column in term.keys:
            values = np.full_like(values, unseen_key(term))
        inputs[column] = values
        inputs[f"support_{column}"] = np.stack([values] * 3, axis=1)
    return inputs
