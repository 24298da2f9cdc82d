"""Answers requests to a SavedModel with TensorFlow alone; a script for a process of its own.

    python -P answer_requests.py FOLDER REQUESTS.json ANSWERS.json

A server has neither this package nor Keras. So the process cannot import them: an export that
needs their code fails here and not in the server.
"""

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]

BLOCKED = ("keras_lmmvae", "keras", "tf_keras")


def main(folder: str, requests: str, answers: str) -> None:
    """Answers the requests of one file and writes the answers to another.

    The answers are `{"answers": [...]}`, nested lists by the name of the output, or
    `{"error": message}`.
    """
    for package in BLOCKED:
        sys.modules[package] = None  # type: ignore[assignment]  # Python then refuses to import it
    result: dict[str, Any]
    try:
        result = {"answers": _answers(folder, json.loads(Path(requests).read_bytes()))}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    text = json.dumps(result, default=bytes.decode)
    Path(answers).write_text(text, encoding="utf-8")


def _answers(folder: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import numpy as np
    import tensorflow as tf

    v1 = tf.compat.v1
    answers = []
    # A session goes by the names that clients use. `tf.saved_model.load` turns "a.b" into "a_b".
    with v1.Session(graph=tf.Graph()) as session:
        signatures = dict(v1.saved_model.load(session, ["serve"], folder).signature_def)
        for request in requests:
            signature = _find(signatures, request["signature"], request["inputs"])
            feeds = {}
            for name, values in request["inputs"].items():
                info = signature.inputs[name]
                dtype = tf.dtypes.as_dtype(info.dtype).as_numpy_dtype
                feeds[info.name] = np.asarray(values, dtype)
            fetches = {name: info.name for name, info in signature.outputs.items()}
            outputs = session.run(fetches, feeds)
            answers.append({name: values.tolist() for name, values in outputs.items()})
    return answers


def _find(signatures: dict[str, Any], name: str, inputs: dict[str, Any]) -> Any:
    """Returns the signature with this name, or raises if a request does not fit it."""
    if name not in signatures:
        known = sorted(key for key in signatures if not key.startswith("__"))
        raise ValueError(
            f"The model has no such signature, expected one of {known}. "
            f"Received: signature={name!r}"
        )
    expected = sorted(signatures[name].inputs)
    if sorted(inputs) != expected:
        raise ValueError(
            f"Signature '{name}' got missing or unknown inputs, expected exactly {expected}. "
            f"Received: inputs={sorted(inputs)}"
        )
    return signatures[name]


if __name__ == "__main__":
    main(*sys.argv[1:])
