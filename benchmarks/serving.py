"""Latency and throughput of an export through TensorFlow's C API, beside a plain VAE's.

    python benchmarks/serving.py                  # about 5 minutes on 2 cores

Both SavedModels hold the same networks (50-1000-500-2, mirrored) with fresh weights: the time does
not depend on them. The plain VAE is a functional Keras model exported by Keras; it takes "x" and
returns the reconstruction and the latent mean. LMMVAE's `serving_default` also looks a key up,
gathers its effects, and returns standard deviations and `known` flags. Turns of both alternate;
the ratio of every pair is taken, the median quoted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

import keras_lmmvae as lmm

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from runtimes.c_api import run  # noqa: E402 - the client of the tests

__all__ = [
    "fitted_lmmvae",
    "latencies",
    "main",
    "measure",
    "plain_vae",
]

NUM_FEATURES, HIDDEN, LATENT_DIM = 50, (1000, 500), 2
RESULTS = Path(__file__).parent / "results" / "serving.csv"
LOAD = """
import sys, time, tensorflow as tf
start = time.perf_counter()
tf.saved_model.load(sys.argv[1])
print(time.perf_counter() - start)
"""


def plain_vae() -> keras.Model:
    """Encoder and decoder of the same layers, at posterior means."""
    x = hidden = keras.Input((NUM_FEATURES,), name="x")
    for units in HIDDEN:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
    mean = hidden = keras.layers.Dense(LATENT_DIM)(hidden)
    for units in HIDDEN[::-1]:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
    output = keras.layers.Dense(NUM_FEATURES)(hidden)
    return keras.Model({"x": x}, {"reconstruction": output, "latent_mean": mean})


def fitted_lmmvae(levels: int) -> lmm.LMMVAE:
    """A model with so many levels; one step of training, for speed does not depend on more."""
    rng = np.random.default_rng(0)
    store = np.repeat(np.arange(levels), 2)
    names = np.char.add("store ", store.astype(str)) if levels <= 1000 else store
    data = {"x": rng.normal(size=(2 * levels, NUM_FEATURES)).astype(np.float32), "store": names}
    term = lmm.RandomIntercept("store")
    model = lmm.LMMVAE(LATENT_DIM, [term], hidden_units=HIDDEN, seed=0)
    model.adapt(data)
    model.compile("adam")
    few = {name: values[:1024] for name, values in data.items()}
    model.fit(few, epochs=1, batch_size=1024, verbose=0)
    return model


def latencies(folder: Path, inputs: dict[str, Any], repeat: int) -> dict[str, float]:
    """p50 and p99, milliseconds. The first run is left out: TensorFlow then prepares its graph."""
    (seconds,) = run(folder, [{"inputs": inputs}], repeat=repeat + 1)["seconds"]
    p50, p99 = 1000.0 * np.percentile(seconds[1:], (50, 99), method="inverted_cdf")
    return {"p50": p50, "p99": p99}


def measure(levels: int, turns: int) -> list[dict[str, Any]]:
    """Rows of the results for one number of levels."""
    rows = []
    with tempfile.TemporaryDirectory() as base:
        ours, plain = Path(base) / "lmmvae", Path(base) / "plain"
        model = fitted_lmmvae(levels)
        start = time.perf_counter()
        model.export(ours)
        exporting = time.perf_counter() - start
        plain_vae().export(str(plain), verbose=False)
        command = [sys.executable, "-c", LOAD, str(ours)]
        loading = float(subprocess.run(command, capture_output=True, check=True).stdout)
        rng = np.random.default_rng(1)
        keys = model.random_effects[0].level_names()
        for batch, repeat in ((1, 2000), (1024, 60)):
            x = rng.normal(size=(batch, NUM_FEATURES)).astype(np.float32)
            store = [keys[number] for number in rng.integers(0, levels, batch)]
            pairs = [
                (
                    latencies(ours, {"x": x, "store": store}, repeat),
                    latencies(plain, {"x": x}, repeat),
                )
                for _ in range(turns)
            ]
            ratios = [one["p50"] / other["p50"] for one, other in pairs]
            row: dict[str, Any] = {"levels": levels, "batch": batch}
            for name in ("p50", "p99"):
                row[f"lmmvae_{name}_ms"] = np.median([one[name] for one, _ in pairs])
                row[f"plain_{name}_ms"] = np.median([other[name] for _, other in pairs])
            row["lmmvae_rows_per_s"] = 1000.0 * batch / row["lmmvae_p50_ms"]
            row["plain_rows_per_s"] = 1000.0 * batch / row["plain_p50_ms"]
            row |= {"ratio": np.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
            row |= {"export_s": exporting, "load_s": loading}
            rows.append(row)
    return rows


def main() -> None:
    """Measures exports with so many levels and writes serving.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--levels", type=int, nargs="*", default=[1000, 1_000_000])
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for levels in options.levels:
        rows += measure(levels, options.turns)
        print(json.dumps(rows[-2:], default=float, indent=1), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_csv(RESULTS, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
