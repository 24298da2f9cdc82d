"""US census tracts: what the place does to incomes, and how well unseen tracts are described.

    python examples/us_tracts.py [PICTURE]

Fits LMMVAE, with a surface over the globe and an intercept per county, and a plain VAE with the
same networks to 25 features of 71,666 census tracts. Prints test errors for held-out tracts and
for held-out counties, and draws a map of the effect of the place on the income per head. With
KERAS_LMMVAE_FAST=1 it takes few tracts and epochs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import keras_lmmvae as lmm
from keras_lmmvae.baselines import VAEBaseline
from keras_lmmvae.baselines.schedule import cosine_adam
from keras_lmmvae.datasets import US_TRACTS_FEATURES, load_us_tracts
from keras_lmmvae.simulation import split, take
from keras_lmmvae.simulation.splits import SplitKind

__all__ = ["compare", "draw", "fit_lmmvae", "load_data", "main"]

LATENT_DIM = 2
SURFACE = "longitude_latitude"
NETWORKS: dict[str, Any] = {"hidden_units": (200, 100), "kl_weight": 0.1, "seed": 0}
BATCH_SIZE = 256
LEARNING_RATE = 2e-3
SPLITS: dict[SplitKind, str] = {"rows": "held-out tracts", "groups": "held-out counties"}


def load_data(num_rows: int | None = None) -> dict[str, np.ndarray]:
    """Features, places and counties of the tracts, all of them or a random part."""
    tracts = load_us_tracts()
    if num_rows is not None:
        tracts = tracts.sample(num_rows, random_state=0)
    places = {name: tracts[name].to_numpy() for name in ("longitude", "latitude")}
    features = tracts[list(US_TRACTS_FEATURES)].to_numpy()
    return {"x": features, **places, "county": tracts["county"].to_numpy(str)}


def fit_lmmvae(rows: dict[str, Any], epochs: int, num_inducing: int) -> lmm.LMMVAE:
    """A fitted LMMVAE. The distances of its surface are kilometres on the globe."""
    surface = lmm.SpatialEffect(
        ("longitude", "latitude"), "matern12", metric="haversine", num_inducing=num_inducing
    )
    model = lmm.LMMVAE(LATENT_DIM, [surface, lmm.RandomIntercept("county")], **NETWORKS)
    model.adapt(rows, feature_names=US_TRACTS_FEATURES)
    model.compile(optimizer=cosine_adam(LEARNING_RATE, len(rows["x"]), BATCH_SIZE, epochs))
    model.fit(rows, epochs=epochs, batch_size=BATCH_SIZE, verbose=0)
    return model


def compare(
    data: dict[str, np.ndarray], epochs: int, num_inducing: int
) -> tuple[pd.DataFrame, lmm.LMMVAE]:
    """Test errors in variances of the features, and the LMMVAE of the split by rows."""
    errors: dict[str, dict[str, float]] = {}
    models: list[lmm.LMMVAE] = []
    for kind, title in SPLITS.items():
        on = "county" if kind == "groups" else None
        rows, held_out = (take(data, part) for part in split(data, kind, on=on, seed=0))
        vae = VAEBaseline(
            LATENT_DIM,
            epochs=epochs,
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            **NETWORKS,
        ).fit(rows)
        models.append(fit_lmmvae(rows, epochs, num_inducing))
        scale = rows["x"].std(axis=0)
        fitted: dict[str, Any] = {"plain VAE": vae, "LMMVAE": models[-1]}
        errors[title] = {
            name: lmm.metrics.mse(held_out["x"] / scale, model.reconstruct(held_out) / scale)
            for name, model in fitted.items()
        }
    return pd.DataFrame(errors), models[0]


def draw(model: lmm.LMMVAE, data: dict[str, np.ndarray], path: Path) -> None:
    """Writes a map of the surface of `log_income`, a point per tract."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, ax = pyplot.subplots(figsize=(8.4, 4.7), layout="constrained")
    label = "effect on log(income per head)\n0.1: about 10 % more"
    lmm.plots.plot_effects_map(model, SURFACE, data, "log_income", label=label, ax=ax)
    ax.set(xlabel="longitude, degrees", ylabel="latitude, degrees")
    ax.set_title("Income per head in US census tracts: the effect of the place")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    # A palette makes the file three times smaller.
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128).save(path, optimize=True)


def main() -> None:
    """Command line of the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", default="us_tracts.png", help="file of the map")
    picture = Path(parser.parse_args().picture)
    is_fast = os.environ.get("KERAS_LMMVAE_FAST") == "1"
    data = load_data(2000 if is_fast else None)
    errors, model = compare(data, epochs=2 if is_fast else 10, num_inducing=48 if is_fast else 256)
    print(f"Test MSE of {len(US_TRACTS_FEATURES)} standardised features, d = {LATENT_DIM}:")
    print(errors.round(3))
    reach = model.find_term(SURFACE).fitted_length_scale
    print(f"length scale {reach:.0f} km; shares of the variance:")
    print(model.variance_partition(data).T.round(2))
    draw(model, data, picture)


if __name__ == "__main__":
    main()
