"""A SavedModel against the Python model: every signature, through TensorFlow's C API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_lmmvae.export.c_process import run_in_c_process
from keras_lmmvae.export.requests import example_columns, unseen_key
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.validation import received

__all__ = ["expected_answers", "verify_saved_model"]

TOLERANCE = 1e-3
"""Of a difference, relative to the spread of the answers of its kind; float32 gives about 1e-5."""


def verify_saved_model(
    model: FittedModel, folder: Path, requests: Sequence[Mapping[str, Any]]
) -> float:
    """Replays requests in a process without TensorFlow's Python and compares with the model.

    Args:
        model: The fitted model.
        folder: Folder of its SavedModel.
        requests: Dicts with "signature" and "inputs".

    Returns:
        The largest relative difference.

    Raises:
        ValueError: If an answer differs from the model's by more than 0.1 % of the spread of
            that output, or the served model fails.
    """
    try:
        responses = run_in_c_process(folder, requests)
    except RuntimeError as error:
        raise ValueError(f"The exported model does not answer: {error}") from error
    worst = 0.0
    for request, response in zip(requests, responses, strict=True):
        expected = expected_answers(model, request["signature"], request["inputs"])
        for name, values in expected.items():
            difference = _difference(response["outputs"][name], values)
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"The exported model answers other numbers than the Python model, in output "
                    f"'{name}' of signature '{request['signature']}'. "
                    + received(relative_difference=difference)
                )
            worst = max(worst, difference)
    return worst


def _difference(served: Any, expected: np.ndarray) -> float:
    answer = np.asarray(served, np.float64)
    truth = np.asarray(expected, np.float64)
    if answer.shape != truth.shape:
        return float("inf")
    scale = max(float(np.abs(truth).max(initial=0.0)), 1e-6)
    return float(np.abs(answer - truth).max(initial=0.0)) / scale


def expected_answers(
    model: FittedModel, signature: str, inputs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What the Python model says to a request.

    Args:
        model: The fitted model.
        signature: Name of a signature.
        inputs: Arrays by name.

    Returns:
        Arrays by the name of the output; those that Python has no method for are left out.
    """
    if signature == "serving_default":
        prediction = model.predictive(dict(inputs))
        return {
            "reconstruction": prediction.mean,
            "standard_deviation": prediction.standard_deviation,
            "latent_mean": model.encode(dict(inputs)),
        }
    if signature == "encode":
        return {"latent_mean": model.encode(dict(inputs))}
    if signature == "decode":
        return {"reconstruction": _decoded(model, inputs)}
    if signature == "anomaly_score":
        return _scores(model, inputs)
    for term in model.random_effects:
        if signature == f"random_effects_{term.name}":
            mean, deviation = _term_effects(model, term, inputs)
            return {"mean": mean, "standard_deviation": deviation}
        if signature == f"condition_{term.name}":
            return _conditioned(model, term, inputs)
    raise ValueError("The model has no such signature. " + received(signature=signature))


def _decoded(model: FittedModel, inputs: Mapping[str, Any]) -> np.ndarray:
    columns = {name: values for name, values in inputs.items() if name != "latent"}
    population = model.decode(inputs["latent"])
    rows = {**columns, "x": population}
    contributions = [model.term_effects(t.label, rows)[0] for t in model.random_effects]
    return np.asarray(population + sum(contributions))


def _scores(model: FittedModel, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    prediction = model.predictive(dict(inputs))
    x = np.asarray(inputs["x"], np.float64)
    squares = np.square((x - prediction.mean) / prediction.standard_deviation)
    observed = np.isfinite(x)
    squares = np.where(observed, squares, 0.0)
    score = squares.sum(axis=1) / np.maximum(observed.sum(axis=1), 1)
    return {"score": score, "squared_residual": squares}


def _term_effects(
    model: FittedModel, term: Any, inputs: Mapping[str, Any]
) -> tuple[np.ndarray, ...]:
    """Effects of one term; the columns of the others are filled with what they know."""
    count = len(next(iter(inputs.values())))
    usual = {name: np.repeat(v[:1], count, axis=0) for name, v in example_columns(model).items()}
    return model.term_effects(term.label, {**usual, **inputs})


def _conditioned(model: FittedModel, term: Any, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`condition` row by row, each with its own support; without support: the prior."""
    effects, deviations = [], []
    for row, mask in enumerate(np.asarray(inputs["support_mask"]) > 0):
        prefix = "support_"
        others = {
            name.removeprefix(prefix): np.asarray(values)[row][mask]
            for name, values in inputs.items()
            if name.startswith(prefix) and name != "support_mask"
        }
        support = np.asarray(inputs["support"])[row][mask]
        if not mask.any():
            effects.append(np.zeros(model.num_features))
            deviations.append(np.sqrt(model.variance_components().loc[term.label]))
            continue
        keys = np.repeat(unseen_key(term), len(support))
        found = model.condition({**others, "x": support, term.columns[0]: keys}, on=term.label)
        effects.append(found.effects[0])
        deviations.append(found.standard_deviation[0])
    return {"effects": np.array(effects), "standard_deviation": np.array(deviations)}
