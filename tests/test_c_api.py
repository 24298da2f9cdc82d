"""A served model answers through TensorFlow's C API, without Python packages, as in Python."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtimes.c_api import ask, run
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm
from keras_lmmvae.export.requests import example_requests
from keras_lmmvae.export.verification import expected_answers
from keras_lmmvae.validation import NULL_INTEGER

pytestmark = pytest.mark.slow

ROWS = 160
SHORT = "x" * 22  # the longest string that a TF_TString holds in place
TEXTS = ["a", "æøå 数据 🙂", SHORT, SHORT + "y", "long " * 100]
NUMBERS = [7, 2**53, 2**53 + 1, 2**63 - 1, -(2**63) + 1]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def make_data() -> dict[str, np.ndarray]:
    """Rows of five levels of each key, with times and missing cells."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 5, ROWS)
    x = rng.normal(size=(5, 3))[group] + rng.normal(size=(ROWS, 3))
    x[::10, 0] = np.nan
    return {
        "x": x,
        "name": np.array(TEXTS)[group],
        "number": np.array(NUMBERS)[rng.permutation(5)[group]],
        "t": rng.uniform(0.0, 4.0, ROWS),
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[lmm.LMMVAE, Path]:
    """A fitted model with two kinds of keys, and two terms of one of them; and its SavedModel."""
    terms = [
        lmm.RandomIntercept("name"),
        lmm.RandomIntercept("number"),
        lmm.RandomSlopes("name", time="t", name="slopes"),
    ]
    model, data = small_model(terms), make_data()
    fit_briefly(model, data, 40)
    folder = tmp_path_factory.mktemp("c_api") / "model" / "1"
    model.export(folder)
    return model, folder


def test_every_signature_equals_python(served: tuple[lmm.LMMVAE, Path]) -> None:
    """C API = Python model for each signature, with unseen and null keys and a missing cell."""
    model, folder = served
    requests = example_requests(model)
    signatures = {request["signature"] for request in requests}
    assert {"serving_default", "encode", "decode", "anomaly_score"} < signatures
    assert {"random_effects_slopes", "condition_name", "condition_number"} < signatures
    for request, answer in zip(requests, ask(folder, requests), strict=True):
        signature = request["signature"]
        for name, expected in expected_answers(model, signature, request["inputs"]).items():
            message = f"{signature}: {name}"
            np.testing.assert_allclose(answer[name], expected, err_msg=message, **CLOSE)


@pytest.mark.parametrize(
    ("name", "keys", "others"),
    [
        ("name", TEXTS, ["", "A", SHORT[1:], SHORT + "z", "long " * 99, "a\0"]),
        ("number", NUMBERS, [NULL_INTEGER, 2**53 - 1, 2**53 + 2, 2**63 - 2, 0]),
    ],
)
def test_keys_arrive_whole(
    served: tuple[lmm.LMMVAE, Path], name: str, keys: list[Any], others: list[Any]
) -> None:
    """Every key of the training rows is known, its neighbours are not; text and int64 alike."""
    request = {"signature": f"random_effects_{name}", "inputs": {name: [*keys, *others]}}
    (answer,) = ask(served[1], [request])
    assert answer["known"] == [True] * len(keys) + [False] * len(others)
    table = served[0].random_effects_table(name)
    effects = np.asarray(answer["mean"])[: len(keys)]
    expected = [table.loc[key].to_numpy() for key in keys]
    np.testing.assert_allclose(effects, expected, **CLOSE)


def test_batch_sizes(served: tuple[lmm.LMMVAE, Path]) -> None:
    """All rows with their missing cells, one row and no row: what the Python model says."""
    model, folder = served
    data = make_data()
    sizes = (ROWS, 1, 0)
    inputs = [{name: column[:size] for name, column in data.items()} for size in sizes]
    many, one, none = ask(folder, [{"inputs": rows} for rows in inputs])
    np.testing.assert_allclose(many["reconstruction"], model.reconstruct(data), **CLOSE)
    np.testing.assert_allclose(one["reconstruction"], many["reconstruction"][:1], **CLOSE)
    assert none["reconstruction"] == []


def test_no_package_is_needed(served: tuple[lmm.LMMVAE, Path]) -> None:
    """A process that has answered has loaded modules of the standard library only."""
    model, folder = served
    modules = set(run(folder, example_requests(model)[:1])["modules"])
    assert "ctypes" in modules
    assert modules - set(sys.stdlib_module_names) == {"__main__"}


def test_errors_of_tensorflow(served: tuple[lmm.LMMVAE, Path], tmp_path: Path) -> None:
    """A missing input and a damaged export are errors with TensorFlow's own message."""
    _, folder = served
    request = {name: column[:2] for name, column in make_data().items() if name != "number"}
    with pytest.raises(RuntimeError, match=r"TF_SessionRun: .*serving_default_number"):
        ask(folder, [{"inputs": request}])
    shutil.copytree(folder, tmp_path / "model")
    (data,) = (tmp_path / "model" / "variables").glob("variables.data*")
    data.unlink()
    with pytest.raises(RuntimeError, match=r"TF_LoadSessionFromSavedModel: .*variables"):
        ask(tmp_path / "model", [])
