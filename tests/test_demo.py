"""The demo runs from data to a served request, and the census tracts to a map, on part of each."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from examples import houses_demo, us_tracts

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


@pytest.mark.slow
def test_census_tracts_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both splits and both models are in the printed table, and the map is not blank."""
    monkeypatch.setenv("KERAS_LMMVAE_FAST", "1")
    monkeypatch.setattr(sys, "argv", ["us_tracts.py", str(tmp_path / "map.png")])
    us_tracts.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Test MSE of 25 standardised features, d = 2:"
    assert printed[1].split() == ["held-out", "tracts", "held-out", "counties"]
    errors = {line[:9]: [float(x) for x in line[9:].split()] for line in printed[2:4]}
    assert list(errors) == ["plain VAE", "LMMVAE   "]
    assert all(0.0 < error < 1.0 for row in errors.values() for error in row)
    assert image.imread(tmp_path / "map.png").std() > 0.01
