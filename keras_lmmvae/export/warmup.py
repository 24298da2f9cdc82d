"""Warm-up requests, which TensorFlow Serving replays when it loads a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["WARMUP_FILE", "read_warmup_requests", "write_warmup_requests"]

WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
"""Where TensorFlow Serving looks, within the folder of a SavedModel."""


def write_warmup_requests(
    folder: Path, requests: Sequence[Mapping[str, Any]], model_name: str
) -> None:
    """Writes requests as TensorFlow Serving's `PredictionLog` records.

    It raises an ImportError if `tensorflow-serving-api` is not installed.
    """
    predict, prediction_log = _protocols()
    path = folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            message = predict.PredictRequest()
            message.model_spec.name = model_name
            message.model_spec.signature_name = request["signature"]
            for name, values in request["inputs"].items():
                message.inputs[name].CopyFrom(tf.make_tensor_proto(_plain(values)))
            log = prediction_log.PredictLog(request=message)
            entry = prediction_log.PredictionLog(predict_log=log)
            writer.write(entry.SerializeToString())


def read_warmup_requests(folder: Path) -> list[dict[str, Any]]:
    """Reads what `write_warmup_requests` wrote: dicts with "signature" and "inputs"."""
    _, prediction_log = _protocols()
    requests = []
    for record in tf.data.TFRecordDataset(str(folder / WARMUP_FILE)).as_numpy_iterator():
        message = prediction_log.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in message.inputs.items()}
        requests.append({"signature": message.model_spec.signature_name, "inputs": inputs})
    return requests


def _plain(values: Any) -> np.ndarray:
    """Arrays as TensorFlow takes them: text as bytes."""
    array = np.asarray(values)
    return np.char.encode(array.astype(str), "utf-8") if array.dtype.kind in "OU" else array


def _protocols() -> tuple[Any, Any]:
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "Warm-up requests need tensorflow-serving-api: install it with "
            "`pip install keras-lmmvae[serving]`, or publish without them."
        ) from error
    return predict_pb2, prediction_log_pb2
