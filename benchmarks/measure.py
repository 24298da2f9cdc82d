"""One cell of a suite: fit a method to a table and measure it."""

from __future__ import annotations

import platform
import time
from typing import Any

import keras
import numpy as np
import sklearn
import tensorflow as tf

from benchmarks.lmmvae_method import LMMVAEMethod
from benchmarks.memory import peak_megabytes, reset_peak
from benchmarks.methods import make_method
from benchmarks.recovery import latent_correlation, recovery
from benchmarks.settings import Training
from benchmarks.table import Problem, Table, load_problem
from keras_lmmvae.metrics import mse, noise_floor

__all__ = ["measure_reconstruction", "versions"]

IMPORTANCE_SAMPLES = 20
LIKELIHOOD_ROWS = 4000  # of the test rows, at random: importance weighting decodes each many times


def versions() -> str:
    """Versions of what the results depend on."""
    from keras_lmmvae import __version__

    return (
        f"keras_lmmvae {__version__}, tensorflow {tf.__version__}, keras {keras.__version__}, "
        f"scikit-learn {sklearn.__version__}, numpy {np.__version__}, "
        f"python {platform.python_version()}"
    )


def measure_reconstruction(
    table: Table, latent_dim: int, method: str, seed: int, training: Training
) -> list[dict[str, Any]]:
    """Fits a method and measures reconstruction, likelihood and recovery on the test rows.

    Args:
        table: Data set and split.
        latent_dim: Latent variables `d`, of the simulation and of the method.
        method: Name of the method.
        seed: Of data, split and method.
        training: The suite's settings.

    Returns:
        One dict: `mse`, `oracle`, `excess` over the noise floor and `regret` against the oracle
        (simulations), `loglik` (bound) and `loglik_iw` (importance-weighted, 20 draws), both
        nats per row, `seconds` and `cpu_seconds` of the fit, `peak_mb`, and what `recovery` gives.
    """
    problem = load_problem(table, latent_dim, seed)
    fitted = make_method(method, table, latent_dim, training, seed)
    reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    fitted.fit(problem.train)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = peak_megabytes()
    reconstruction = fitted.reconstruct(problem.test)
    row: dict[str, Any] = {"mse": mse(problem.test["x"], reconstruction)}
    row |= _against_truth(problem, row["mse"], latent_dim)
    some = _some_rows(problem, seed, whole_subjects=table.subject)
    row["loglik"] = float(fitted.log_likelihood(some).mean())
    row["loglik_iw"] = float(fitted.log_likelihood(some, IMPORTANCE_SAMPLES).mean())
    row |= {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak}
    if problem.source.simulation is not None:
        truth = problem.source.simulation.latent[problem.test_rows]
        row["latent_correlation"] = latent_correlation(fitted.transform(problem.test), truth)
    if isinstance(fitted, LMMVAEMethod):
        row |= recovery(fitted.model_, problem)
    if len(getattr(fitted, "latent_epochs", ())) > 1:
        row["latent_epochs"] = fitted.latent_epochs_
    return [row]


def _against_truth(problem: Problem, error: float, latent_dim: int) -> dict[str, Any]:
    """The oracle, the noise floor's excess and the regret of a simulated table."""
    simulation = problem.source.simulation
    if simulation is None:
        return {}
    floor = noise_floor(simulation.noise_variance, latent_dim, simulation.num_features)
    return {
        "oracle": problem.oracle,
        "excess": error - floor,
        "regret": error - float(problem.oracle or 0.0),
    }


def _some_rows(problem: Problem, seed: int, whole_subjects: str | None) -> dict[str, np.ndarray]:
    """Test rows for the likelihood: at most so many, sequences kept whole."""
    total = len(problem.test["x"])
    if total <= LIKELIHOOD_ROWS:
        return problem.test
    rng = np.random.default_rng(seed)
    if whole_subjects is None:
        keep = np.sort(rng.permutation(total)[:LIKELIHOOD_ROWS])
    else:
        subjects = problem.test[whole_subjects]
        levels = rng.permutation(np.unique(subjects))
        chosen = levels[: max(1, round(len(levels) * LIKELIHOOD_ROWS / total))]
        keep = np.flatnonzero(np.isin(subjects, chosen))
    return {name: values[keep] for name, values in problem.test.items()}
