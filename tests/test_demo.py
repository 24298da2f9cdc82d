"""The demo runs from data to a served request, on part of the houses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from examples import houses_demo

mpl.use("Agg")


# `make demo` runs it with all its epochs.
@pytest.mark.slow
def test_demo_writes_everything_and_serves(tmp_path: Path) -> None:
    """All methods on both splits, pictures that are not blank, a model that answers."""
    text = io.StringIO()
    console = Console(file=text, width=120)
    results = houses_demo.run(tmp_path, epochs=2, num_inducing=32, num_rows=2000, console=console)
    assert set(results["method"]) == set(houses_demo.METHODS)
    assert set(results["split"]) == set(houses_demo.SPLITS.values())
    assert np.isfinite(results["mse"]).all()
    for name in ("effects_map.png", "latent.png", "training.png"):
        assert image.imread(tmp_path / name).std() > 0.01
    for name in ("results.csv", "variance_components.csv", "houses.keras"):
        assert (tmp_path / name).stat().st_size > 0
    assert (tmp_path / "models" / "houses" / "1" / "saved_model.pb").exists()
    body = json.loads((tmp_path / "request.json").read_text())
    assert body["signature_name"] == "serving_default"
    assert set(body["inputs"]) == {"x", "easting", "northing", "syear"}
    printed = text.getvalue()
    assert "place missing" in printed
    difference = printed.split("largest difference over all features: ")[1].split()[0]
    assert float(difference) < 1e-4
