"""How near a surface comes to kriging with the true parameters, at places never seen.

    python benchmarks/surface_error.py        # half a minute on two cores

A rough Gaussian process over 25,000 random places of a square, `fit(epochs=0)`: a linear mixed
model. Kriging knows the kernel, the length scale and all variances, and takes the 200 nearest rows
of each place.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

import keras_lmmvae as lmm

__all__ = ["kriging", "main", "measure", "simulate"]

RESULTS = Path(__file__).parent / "results"
SIDE, LENGTH_SCALE, NOISE_VARIANCE = 2.0, 0.15, 0.5
FEATURES, TEST_ROWS, NEIGHBOURS = 2, 2_000, 200
_WAVES = 2_000


def simulate(num_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places `(n, 2)`, surfaces of variance 1 `(n, p)` and rows; the last 2,000 are for tests.

    The process is a sum of random waves whose frequencies have the spectral density of the Matern
    3/2 kernel, Student's t with 3 degrees of freedom.

    References:
        - Rahimi, A. & Recht, B. (2007), Random features for large-scale kernel machines.
    """
    rng = np.random.default_rng(seed)
    places = rng.uniform(-SIDE / 2, SIDE / 2, (num_rows + TEST_ROWS, 2))
    surfaces = np.zeros((len(places), FEATURES))
    for feature in range(FEATURES):
        radius = np.sqrt(rng.chisquare(3, (_WAVES, 1)) / 3)
        waves = rng.normal(size=(_WAVES, 2)) / radius / LENGTH_SCALE
        phases = rng.uniform(0, 2 * np.pi, _WAVES)
        for part in np.array_split(np.arange(len(places)), 20):
            heights = np.cos(places[part] @ waves.T + phases)
            surfaces[part, feature] = np.sqrt(2 / _WAVES) * heights.sum(axis=1)
    noise = np.sqrt(NOISE_VARIANCE) * rng.normal(size=surfaces.shape)
    return places, surfaces, surfaces + noise


def _covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    distance = np.sqrt(3) * cdist(one, other) / LENGTH_SCALE
    return np.asarray((1 + distance) * np.exp(-distance))


def kriging(places: np.ndarray, rows: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Predictions at new places from their nearest rows, all parameters known, `(m, p)`."""
    found = []
    for place, near in zip(new, cKDTree(places).query(new, NEIGHBOURS)[1], strict=True):
        covariance = _covariance(places[near], places[near]) + NOISE_VARIANCE * np.eye(NEIGHBOURS)
        found.append(
            _covariance(place[None], places[near]) @ np.linalg.solve(covariance, rows[near])
        )
    return np.concatenate(found)


def measure(num_rows: int, num_inducing: int | None, seed: int) -> dict[str, float]:
    """Errors of a fit and of kriging at places never seen, with the seconds of the fit."""
    places, surfaces, rows = simulate(num_rows, seed)
    columns = {"east": places[:, 0], "north": places[:, 1]}
    train = {"x": rows[:num_rows], **{name: c[:num_rows] for name, c in columns.items()}}
    test = {"x": rows[num_rows:], **{name: c[num_rows:] for name, c in columns.items()}}
    surface = lmm.SpatialEffect(
        ("east", "north"), kernel="matern32", num_inducing=num_inducing, name="surface"
    )
    model = lmm.LMMVAE(1, [surface], hidden_units=(8,), seed=0)
    start = time.perf_counter()
    model.adapt(train)
    model.compile()
    model.fit(train, epochs=0, verbose=0)
    seconds = time.perf_counter() - start
    _, deviation = model.term_effects("surface", test)
    # Without networks the reconstruction is the intercept and the surface.
    error = model.reconstruct(test) - surfaces[num_rows:]
    best = kriging(places[:num_rows], rows[:num_rows], places[num_rows:])
    (term,) = model.random_effects
    return {
        "rows": num_rows,
        "points": term.basis_size,
        "seed": seed,
        "rmse": float(np.sqrt(np.mean(error**2))),
        "kriging": float(np.sqrt(np.mean((best - surfaces[num_rows:]) ** 2))),
        "coverage": float(np.mean(np.abs(error) < 1.6448536 * deviation)),
        "length_scale": float(term.fitted_length_scale or 0.0),
        "seconds": seconds,
    }


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=25_000)
    rows = parser.parse_args().rows
    table = pd.DataFrame([measure(rows, points, 0) for points in (256, None)])
    print(table.round(3).to_string(index=False))
    table.to_csv(RESULTS / "surface_error.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
