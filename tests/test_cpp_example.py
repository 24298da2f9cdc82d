"""The C++ example: built against the installed TensorFlow, it answers as `predict` does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import fit_briefly, small_model

import keras_lmmvae as lmm

EXAMPLE = Path(__file__).parents[1] / "examples" / "cpp"

pytestmark = [
    pytest.mark.slow,  # The compiler takes long; `test_c_api` asks the same library.
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("cpp") / "reconstruct"
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(
        [EXAMPLE / "build.sh", target], env=environment, check=True, capture_output=True, text=True
    )
    return target


def test_reconstruction_equals_predict(program, tmp_path):
    """A row of zeros with an unseen key, as the program asks."""
    rng = np.random.default_rng(0)
    store = rng.integers(0, 9, 150)
    names = np.array([f"store {number}" for number in store])
    x = rng.normal(size=(9, 4))[store] + rng.normal(size=(150, 4))
    data = {"x": x, "store": names, "city": store % 3}
    model = small_model([lmm.RandomIntercept("store"), lmm.RandomIntercept("city")])
    fit_briefly(model, data, 50)
    model.export(tmp_path / "shop" / "1")
    process = subprocess.run(
        [program, tmp_path / "shop" / "1"], check=True, capture_output=True, text=True
    )
    printed = np.array(process.stdout.split(), float)
    row = {"x": np.zeros((1, 4)), "store": np.array(["a new key"]), "city": np.array([-1])}
    np.testing.assert_allclose(printed, model.predict(row, verbose=0)[0], rtol=1e-4)


def test_wrong_folder_is_an_error(program, tmp_path):
    process = subprocess.run([program, tmp_path], check=False, capture_output=True, text=True)
    assert process.returncode == 1
    assert "Could not find SavedModel" in process.stderr
    usage = subprocess.run([program], check=False, capture_output=True, text=True)
    assert usage.returncode == 2
    assert "usage" in usage.stderr
