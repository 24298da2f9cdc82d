"""Plots draw what they say, on the axes they are given."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import keras_lmmvae as lmm
from keras_lmmvae import plots

mpl.use("Agg")


@pytest.fixture(scope="module")
def fitted() -> tuple[lmm.LMMVAE, dict[str, Any], dict[str, list[float]]]:
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(size=(2, 120))
    data = {"x": rng.normal(size=(120, 4)) + np.sin(5 * lon)[:, None], "lon": lon, "lat": lat}
    terms = [lmm.SpatialEffect(("lon", "lat"), num_features=20)]
    model = lmm.LMMVAE(2, terms, hidden_units=(8,), seed=0)
    model.adapt(data)
    model.compile()
    return model, data, model.fit(data, epochs=2, verbose=0, validation_data=data).history


def test_effects_map_shows_the_effect_at_every_row(fitted: Any) -> None:
    """Colours are the term's contributions, around zero; deviations are positive."""
    model, data, _ = fitted
    ax = plots.plot_effects_map(model, "lon_lat", data, 1, scale=2.0)
    points = ax.collections[0]
    expected = model.predictive(data).contributions["lon_lat"][:, 1]
    np.testing.assert_allclose(points.get_array(), expected, atol=1e-5)
    np.testing.assert_allclose(points.get_offsets()[:, 0], data["lon"] / 2.0)
    assert points.norm.vmin == -points.norm.vmax
    assert ax.get_xlabel() == "lon"
    deviations = plots.plot_effects_map(model, "lon_lat", data, 1, std=True)
    assert (deviations.collections[0].get_array() > 0).all()


def test_latent_scatter_has_a_point_a_row(fitted: Any) -> None:
    """Points are the latent means."""
    model, data, _ = fitted
    ax = plots.plot_latent(model, data, data["lon"], label="longitude")
    np.testing.assert_allclose(ax.collections[0].get_offsets(), model.encode(data), atol=1e-5)


def test_training_curves_have_the_loss_and_its_parts(fitted: Any) -> None:
    """One line a part, the loss, and the held-out loss, over the epochs."""
    history = fitted[2]
    ax = plots.plot_training(history)
    labels = [line.get_label() for line in ax.lines]
    assert labels[0] == "loss"
    assert labels[-1] == "loss, held out"
    assert len(labels) == 5
    np.testing.assert_allclose(ax.lines[0].get_ydata(), history["loss"])
