"""How often the intervals of variance components hold the truth.

    python benchmarks/variance_intervals.py        # about 6 minutes on one core

Linear mixed models (the decoder is 0 and stays so) on simulated rows with known variances. Every
feature is a repetition: features share the design and nothing else. A case's coverage has a
standard error of sqrt(0.09 / repetitions). Last, the same with networks and a true latent part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

import keras_lmmvae as lmm

__all__ = [
    "Case",
    "fitted",
    "intercepts",
    "main",
    "measure",
    "slopes",
    "two_factors",
    "with_latent",
]

RESULTS = Path(__file__).parent / "results"
LEVEL = 0.9
PSI = np.array([[2.0, -0.4], [-0.4, 0.5]])


@dataclass(frozen=True)
class Case:
    """Simulated rows, the terms to fit, and the true variance of every component."""

    data: dict[str, np.ndarray]
    terms: list[Any]
    truth: Mapping[str, float | np.ndarray]
    has_networks: bool = False


def intercepts(levels: int, rows: int, variance: float, is_even: bool = True) -> Any:
    """One factor; `rows` a level, or 1 to twice as many."""

    def make(rng: np.random.Generator, p: int) -> Case:
        sizes = np.full(levels, rows) if is_even else rng.integers(1, 2 * rows, levels)
        g = np.repeat(np.arange(levels), sizes)
        x = np.sqrt(variance) * rng.normal(size=(levels, p))[g] + rng.normal(size=(len(g), p))
        truth = {"g": variance, "noise": 1.0}
        return Case({"x": x, "g": g}, [lmm.RandomIntercept("g")], truth)

    return make


def two_factors(a_levels: int, b_levels: int, rows: int, b_variance: float, nested: bool) -> Any:
    """Two factors, crossed, or b within a."""

    def make(rng: np.random.Generator, p: int) -> Case:
        b = rng.integers(0, b_levels, rows)
        a = b * a_levels // b_levels if nested else rng.integers(0, a_levels, rows)
        x = rng.normal(size=(a_levels, p))[a] + rng.normal(size=(rows, p))
        x += np.sqrt(b_variance) * rng.normal(size=(b_levels, p))[b]
        terms = [lmm.RandomIntercept("a"), lmm.RandomIntercept("b")]
        return Case({"x": x, "a": a, "b": b}, terms, {"a": 1.0, "b": b_variance, "noise": 1.0})

    return make


def slopes(levels: int, rows: int) -> Any:
    """Correlated intercepts and slopes."""

    def make(rng: np.random.Generator, p: int) -> Case:
        g = np.repeat(np.arange(levels), rows)
        t = rng.uniform(0.0, 4.0, len(g))
        effects = np.linalg.cholesky(PSI) @ rng.normal(size=(levels, 2, p))
        x = effects[g, 0] + effects[g, 1] * t[:, None] + rng.normal(size=(len(g), p))
        truth = {"g: intercept": 2.0, "g: t": 0.5, "noise": 1.0}
        return Case({"x": x, "g": g, "t": t}, [lmm.RandomSlopes("g", time="t")], truth)

    return make


def with_latent(rng: np.random.Generator, p: int) -> Case:
    """One factor and a bent latent, which networks have to learn."""
    seed = int(rng.integers(2**31))
    simulation = lmm.simulation.simulate_categorical(
        n=3000, num_features=p, cardinalities=(100,), effect_variances=(1.0,), seed=seed
    )
    truth = {"g": simulation.effect_variance["group_0"][0], "noise": 1.0}
    data = {"x": simulation.data["x"], "g": simulation.data["group_0"]}
    return Case(data, [lmm.RandomIntercept("g")], truth, has_networks=True)


# Name -> features, repetitions, how to make one.
CASES: dict[str, tuple[int, int, Callable[[np.random.Generator, int], Case]]] = {
    "100 levels of 10 rows": (100, 10, intercepts(100, 10, 1.0)),
    "20 levels of 10 rows": (100, 10, intercepts(20, 10, 1.0)),
    "6 levels of 200 rows": (100, 10, intercepts(6, 200, 1.0)),
    "150 levels of 1 to 5 rows, variance 0.5": (100, 10, intercepts(150, 3, 0.5, False)),
    "100 levels of 4 rows, variance 0.05": (100, 10, intercepts(100, 4, 0.05)),
    "100 levels of 4 rows, variance 0.0001": (100, 10, intercepts(100, 4, 1e-4)),
    "60 and 30 crossed, 1500 rows": (100, 6, two_factors(60, 30, 1500, 0.5, False)),
    "200 within 40, 2000 rows": (100, 6, two_factors(40, 200, 2000, 1.0, True)),
    "200 of variance 4 within 40, 2000 rows": (100, 6, two_factors(40, 200, 2000, 4.0, True)),
    "60 lines of 12 rows": (100, 6, slopes(60, 12)),
    "60 lines of 12 rows, one feature": (1, 100, slopes(60, 12)),
    "100 levels of 30 rows, networks": (40, 10, with_latent),
}


def fitted(case: Case) -> lmm.LMMVAE:
    """The model of a case: its networks, or none."""
    p = case.data["x"].shape[1]
    if case.has_networks:
        model = lmm.LMMVAE(1, case.terms, hidden_units=(64, 32), seed=0)
    else:
        head = keras.layers.Dense(p, kernel_initializer="zeros", trainable=False)
        decoder = keras.Sequential([keras.Input((1,)), head])
        model = lmm.LMMVAE(1, case.terms, hidden_units=(8,), decoder=decoder, seed=0)
    model.adapt(case.data)
    model.compile("adam")
    rows = len(case.data["x"])
    epochs, batch_size = (25, 50) if case.has_networks else (1, rows)
    model.fit(case.data, epochs=epochs, batch_size=batch_size, verbose=0)
    return model


def measure(name: str) -> list[dict[str, Any]]:
    """Coverage and misses of a case's components."""
    features, repetitions, make = CASES[name]
    found: dict[str, list[pd.DataFrame]] = {}
    for seed in range(repetitions):
        case = make(np.random.default_rng(seed), features)
        intervals = fitted(case).variance_intervals(LEVEL)
        for component, variance in case.truth.items():
            table = intervals.loc[component].reset_index(drop=True)
            found.setdefault(component, []).append(table.div(variance, axis=0))
    results = []
    for component, tables in found.items():
        table = pd.concat(tables)
        below, above = (table["upper"] < 1.0).mean(), (table["lower"] > 1.0).mean()
        results.append(
            {
                "case": name,
                "component": component,
                "intervals": len(table),
                "coverage": 1.0 - below - above,
                "truth_above": below,
                "truth_below": above,
                "estimate_over_truth": table["estimate"].mean(),
                "median_width_over_truth": (table["upper"] - table["lower"]).median(),
            }
        )
    return results


def main() -> None:
    """Measures the cases and writes variance_intervals.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    options = parser.parse_args()
    results = []
    for name in options.case:
        found = measure(name)
        print(pd.DataFrame(found).round(3).to_string(index=False), flush=True)
        results += found
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "variance_intervals.csv"
    pd.DataFrame(results).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
