"""How near the variance components and effects come to those of exact REML.

    python benchmarks/variance_efficiency.py        # about 10 minutes on two cores

Linear mixed models on simulated rows, `fit(epochs=0)` with a decoder that is 0. Every feature is a
repetition. The peer maximises REML's likelihood exactly, one feature after the other, by sparse
factorisation: its estimates are those of lme4. An efficiency is the peer's mean squared error over
ours. The last case has networks as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy import optimize
from scipy.sparse.linalg import splu

import keras_lmmvae as lmm

__all__ = [
    "ExactREML",
    "against_peer",
    "constant_within_levels",
    "effects_of_three_factors",
    "factors",
    "few_rows_a_level",
    "fitted",
    "main",
    "slopes",
    "sparse_crossed",
]

RESULTS = Path(__file__).parent / "results"
INTERVAL = 1.6448536  # half width of a 90 % interval, in standard deviations

Measures = dict[str, float]


class ExactREML:
    """REML of `values = intercept + sum{ Z_k b_k } + e` for one feature at a time.

    Args:
        codes: Levels of the rows for every factor, int arrays `(n,)`.
    """

    def __init__(self, codes: list[np.ndarray]) -> None:
        rows = len(codes[0])
        parts = [sp.csr_matrix((np.ones(rows), (np.arange(rows), c))) for c in codes]
        self.sizes = [part.shape[1] for part in parts]
        self.design = sp.hstack(parts).tocsc()
        self.gram = (self.design.T @ self.design).tocsc()
        self.ones = np.ones(rows)

    def _solve(self, ratios: np.ndarray, values: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Criterion, noise variance and effects at variances over the noise's."""
        prior = np.repeat(1.0 / ratios, self.sizes)
        matrix = (self.gram + sp.diags(prior)).tocsc()
        factor = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0)
        log_det = np.log(np.abs(factor.U.diagonal())).sum() - np.log(prior).sum()
        ones = self.ones - self.design @ factor.solve(self.design.T @ self.ones)
        intercept = (ones @ values) / ones.sum()
        effects = factor.solve(self.design.T @ (values - intercept))
        left = values - intercept - self.design @ effects
        noise = float(values @ left) / (len(values) - 1)
        criterion = (len(values) - 1) * np.log(noise) + log_det + np.log(ones.sum())
        return float(criterion), noise, effects

    def fit(self, values: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Variances of the factors and of the noise, and the effects' predictions (BLUPs)."""
        options = {"xatol": 1e-3, "fatol": 1e-3}
        found = optimize.minimize(
            lambda log: self._solve(np.exp(log), values)[0],
            np.log(start),
            method="Nelder-Mead",
            options=options,
        )
        _, noise, effects = self._solve(np.exp(found.x), values)
        return np.append(np.exp(found.x) * noise, noise), np.split(
            effects, np.cumsum(self.sizes)[:-1]
        )


def fitted(
    terms: list[Any], data: dict[str, np.ndarray], epochs: int = 0, has_networks: bool = False
) -> lmm.LMMVAE:
    """A model of these terms; its decoder is 0 unless it has networks."""
    p = data["x"].shape[1]
    options: dict[str, Any] = {"hidden_units": (64, 32)}
    if not has_networks:
        head = keras.layers.Dense(p, kernel_initializer="zeros", trainable=False)
        options = {"hidden_units": (8,), "decoder": keras.Sequential([keras.Input((1,)), head])}
    model = lmm.LMMVAE(1, terms, seed=0, normalize=False, **options)
    model.adapt(data)
    model.compile("adam")
    model.fit(data, epochs=epochs, batch_size=500, verbose=0)
    return model


def factors(
    sizes: tuple[int, ...], rows: int, p: int, variance: float, seed: int
) -> tuple[dict[str, np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Rows of crossed factors with noise variance 1: data, codes and true effects."""
    rng = np.random.default_rng(seed)
    codes = [np.unique(rng.integers(0, size, rows), return_inverse=True)[1] for size in sizes]
    effects = [np.sqrt(variance) * rng.normal(size=(code.max() + 1, p)) for code in codes]
    x = rng.normal(size=(rows, p))
    for code, effect in zip(codes, effects, strict=True):
        x += effect[code]
    data = {"x": x} | {f"g{number}": code for number, code in enumerate(codes)}
    return data, codes, effects


def against_peer(
    data: dict[str, np.ndarray], codes: list[np.ndarray], variance: float
) -> list[Measures]:
    """Efficiency of every component, and the largest difference from the peer's estimate."""
    start = time.perf_counter()
    model = fitted([lmm.RandomIntercept(f"g{number}") for number in range(len(codes))], data)
    seconds = time.perf_counter() - start
    ours = model.variance_components().to_numpy()
    peer, starts = ExactREML(codes), np.full(len(codes), variance)
    start = time.perf_counter()
    theirs = np.stack([peer.fit(column, starts)[0] for column in data["x"].T], axis=1)
    peer_seconds = time.perf_counter() - start
    truth = np.append(np.full(len(codes), variance), 1.0)[:, None]
    return [
        {
            "component": name,
            "efficiency": np.mean((b - t) ** 2) / np.mean((a - t) ** 2),
            "relative_rmse": np.sqrt(np.mean((a / t - 1.0) ** 2)),
            "largest_difference": np.max(np.abs(a / b - 1.0)),
            "seconds_over_peer": seconds / peer_seconds,
        }
        for name, a, b, t in zip(
            model.variance_components().index, ours, theirs, truth, strict=True
        )
    ]


def few_rows_a_level(seed: int) -> list[Measures]:
    """3,000 levels of 1 to 5 rows, 50 features."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(3000), rng.integers(1, 6, 3000))
    x = rng.normal(size=(3000, 50))[code] + rng.normal(size=(len(code), 50))
    return against_peer({"x": x, "g0": code}, [code], 1.0)


def sparse_crossed(seed: int) -> list[Measures]:
    """2,000 x 4,000 crossed levels, 8,000 rows, 20 features."""
    data, codes, _ = factors((2000, 4000), 8000, 20, 0.5, seed)
    return against_peer(data, codes, 0.5)


def slopes(seed: int) -> list[Measures]:
    """2,000 subjects of 8 rows, slope variance 0.3, 10 features."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(2000), 8)
    t = rng.uniform(-1.0, 1.0, len(code))
    effects = rng.normal(size=(2, 2000, 10)) * np.sqrt([1.0, 0.3])[:, None, None]
    x = effects[0][code] + effects[1][code] * t[:, None] + rng.normal(size=(len(code), 10))
    model = fitted([lmm.RandomSlopes("g0", time="t")], {"x": x, "g0": code, "t": t})
    truth = pd.Series({"g0: intercept": 1.0, "g0: t": 0.3, "noise": 1.0})
    error = model.variance_components().div(truth, axis=0) - 1.0
    rmse = np.sqrt((error**2).mean(axis=1))
    return [{"component": name, "relative_rmse": value} for name, value in rmse.items()]


def constant_within_levels(seed: int) -> list[Measures]:
    """Features of variance 1 that are constant within 300 levels: no noise, no slopes."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(300), 6)
    t = rng.uniform(-1.0, 1.0, len(code))
    effects = rng.normal(size=(300, 8))
    model = fitted([lmm.RandomSlopes("g0", time="t")], {"x": effects[code], "g0": code, "t": t})
    found = model.variance_components().loc["g0: intercept"].to_numpy()
    rmse = np.sqrt(np.mean((found / effects.var(axis=0, ddof=1) - 1.0) ** 2))
    return [{"component": "g0: intercept", "relative_rmse": rmse}]


def effects_of_three_factors(seed: int) -> list[Measures]:
    """200, 600 and 1,000 crossed levels, 5,000 rows: effects of the 200, also after training."""
    data, codes, effects = factors((200, 600, 1000), 5000, 5, 1.0, seed)
    peer = ExactREML(codes)
    theirs = np.stack([peer.fit(column, np.ones(3))[1][0] for column in data["x"].T], axis=1)
    results = []
    for name, epochs, has_networks in (
        ("linear mixed model", 0, False),
        ("40 epochs, decoder 0", 40, False),
        ("40 epochs, networks", 40, True),
    ):
        terms = [lmm.RandomIntercept(f"g{number}") for number in range(3)]
        model = fitted(terms, data, epochs, has_networks)
        ours = model.random_effects_table("g0").to_numpy()
        deviation = model.random_effects_table("g0", std=True).to_numpy()
        error = ours - effects[0]
        ratio = np.sqrt(np.mean(error**2) / np.mean((theirs - effects[0]) ** 2))
        cover = float((np.abs(error) <= INTERVAL * deviation).mean())
        results.append({"component": name, "rmse_over_peer": ratio, "coverage": cover})
    return results


CASES: dict[str, Callable[[int], list[Measures]]] = {
    "3,000 levels of 1 to 5 rows": few_rows_a_level,
    "2,000 x 4,000 crossed, 8,000 rows": sparse_crossed,
    "2,000 subjects of 8 rows, slopes": slopes,
    "constant within 300 levels": constant_within_levels,
    "200 x 600 x 1,000 crossed, effects of the 200": effects_of_three_factors,
}


def main() -> None:
    """Measures the cases and writes variance_efficiency.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = []
    for name in options.case:
        found = [{"case": name, **one} for one in CASES[name](options.seed)]
        print(pd.DataFrame(found).round(3).to_string(index=False), flush=True)
        results += found
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "variance_efficiency.csv"
    pd.DataFrame(results).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
