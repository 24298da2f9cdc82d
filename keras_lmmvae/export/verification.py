"""Checks a SavedModel: every signature must answer as the Python model does."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae import inspection
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.export import answer_requests
from keras_lmmvae.export.condition_signature import ConditionSignature
from keras_lmmvae.export.requests import example_columns
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.rows import Rows, encode_rows
from keras_lmmvae.validation import received

__all__ = ["expected_answers", "served_answers", "verify_saved_model"]

TOLERANCE = 1e-3
"""The largest relative difference that passes. Rounding in float32 gives about 1e-5."""

TIMEOUT = 600.0
"""Seconds after which the process that answers is ended."""


def verify_saved_model(
    model: FittedModel, folder: Path, requests: Sequence[Mapping[str, Any]]
) -> float:
    """Compares the answers of an export with those of the Python model."""
    answers = served_answers(folder, requests)
    worst = 0.0
    for request, answer in zip(requests, answers, strict=True):
        expected = expected_answers(model, request["signature"], request["inputs"])
        for name, values in expected.items():
            place = f"in output '{name}' of signature '{request['signature']}'"
            if name not in answer:
                raise ValueError(
                    f"The exported model leaves out an answer of the Python model, {place}. "
                    + received(outputs=sorted(answer))
                )
            difference = _difference(answer[name], values)
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"The exported model answers other numbers than the Python model, {place}. "
                    + received(relative_difference=difference)
                )
            worst = max(worst, difference)
    return worst


def served_answers(
    folder: str | Path, requests: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Asks a SavedModel in a fresh process that has TensorFlow, but not this package or Keras.

    The process runs on the CPU, because the caller may hold the memory of a GPU. The answers are
    dicts of nested lists. It raises a ValueError if the model does not load, refuses a request, or
    ends the process.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch, "requests.json"), Path(scratch, "answers.json")
        asked.write_text(json.dumps(list(requests), default=_plain), encoding="utf-8")
        # With -P Python does not import from the script's folder, which holds a `requests.py`.
        command = [sys.executable, "-P", answer_requests.__file__, str(folder)]
        try:
            subprocess.run(
                [*command, str(asked), str(answered)],
                env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
                capture_output=True,
                timeout=TIMEOUT,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            last = error.stderr.decode(errors="replace").strip()[-2000:]
            raise ValueError(
                "The exported model does not answer: the process died, expected exit status 0. "
                f"Its last words:\n{last}\n" + received(exit_status=error.returncode)
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                "The exported model does not answer: the process took too long. "
                + received(seconds=TIMEOUT)
            ) from error
        result: dict[str, Any] = json.loads(answered.read_bytes())
    if "error" in result:
        raise ValueError(f"The exported model does not answer: {result['error']}")
    return list(result["answers"])


def _plain(value: Any) -> Any:
    """Turns arrays and bytes into what JSON can hold."""
    return value.decode() if isinstance(value, bytes) else value.tolist()


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
    """The Python model's answers to a request, for the outputs that its methods compute."""
    if signature == "serving_default":
        prediction = inspection.predictive(model, dict(inputs))
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
    prediction = inspection.predictive(model, dict(inputs))
    variance = model.variance_given_latent(model.encode_data(dict(inputs)))
    x = np.asarray(inputs["x"], np.float64)
    errors = (x - prediction.mean) / np.asarray(model.feature_scale)
    squares = np.square(errors) / np.asarray(variance)
    observed = np.isfinite(x)
    squares = np.where(observed, squares, 0.0)
    score = squares.sum(axis=1) / np.maximum(observed.sum(axis=1), 1)
    return {"score": score, "squared_residual": squares}


def _term_effects(
    model: FittedModel, term: Any, inputs: Mapping[str, Any]
) -> tuple[np.ndarray, ...]:
    """Effects of one term. Columns of the other terms are filled with values that they know."""
    count = len(next(iter(inputs.values())))
    usual = {name: np.repeat(v[:1], count, axis=0) for name, v in example_columns(model).items()}
    return model.term_effects(term.label, {**usual, **inputs})


def _conditioned(
    model: FittedModel, term: RandomEffect, inputs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The answers of `condition_<term>`, with the keys looked up in Python."""
    mean, scale = np.asarray(model.feature_mean), np.asarray(model.feature_scale)

    def encode(columns: dict[str, tf.Tensor], terms: list[RandomEffect]) -> Rows:
        return encode_rows(columns, terms, mean, scale, keep_mask=True)

    signature = ConditionSignature(model, term, encode)
    answers = signature({name: tf.convert_to_tensor(values) for name, values in inputs.items()})
    return {name: np.asarray(values) for name, values in answers.items()}
