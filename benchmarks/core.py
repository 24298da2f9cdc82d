"""Test error of LMMVAE on the simulated cases it is held to.

    python benchmarks/core.py                      # all cases, about 10 minutes on 2 cores
    python benchmarks/core.py nested crossed       # some
    python benchmarks/core.py --amortized          # the paper's inference at the paper's settings

Writes benchmarks/results/core.csv (or core-amortized.csv), a row per case and seed; rows
already there are replaced.
"""

from __future__ import annotations

import argparse
import platform
import resource
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from cases import CASES, EPOCHS, Outcome, run_case

import keras_lmmvae as lmm

RESULTS = Path(__file__).parent / "results"
# The paper's loss is squared error + 0.01 * (KL_u + KL_B): a noise variance of one half.
PUBLISHED: dict[str, Any] = {
    "posterior": "amortized",
    "normalize": False,
    "noise_variance": 0.5,
    "kl_weight": 0.01,
    "effects_kl_weight": 0.01,
    "effects_kl_reduction": "row",
    "epochs": 150,
    "batch_size": 1000,
    "learning_rate": None,
}
AUTHORS = {"nested": 2.00, "longitudinal": 2.07}


def variance_error(outcome: Outcome) -> float:
    """Largest relative error over the terms of the variances, averaged over the features."""
    errors = []
    for term in outcome.model.random_effects:
        name = term.label if term.label in outcome.simulation.effect_variance else "location"
        truth = outcome.simulation.effect_variance[name].mean(axis=1)
        if truth.max() == 0.0:
            continue
        table = outcome.model.variance_components()
        rows = [label for label in table.index if label.split(": ")[0] == term.label]
        errors.append(np.abs(table.loc[rows].to_numpy().mean(axis=1) / truth - 1.0).max())
    return float(max(errors)) if errors else float("nan")


def measure(name: str, seed: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """One row of the results."""
    case = CASES[name]
    outcome = run_case(case, seed, **arguments)
    row = {
        "case": name,
        "split": case.split,
        "seed": seed,
        "epochs": arguments.get("epochs", EPOCHS),
        "mse": outcome.mse,
        "at_most": case.most,
        "oracle": outcome.oracle,
        "regret": outcome.mse - outcome.oracle,
        "variance_error": variance_error(outcome),
        "seconds": outcome.seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": f"keras_lmmvae {lmm.__version__}, tensorflow {tf.__version__}, "
        f"keras {keras.__version__}, python {platform.python_version()}",
    }
    if arguments:
        row |= {"at_most": 1.1 * AUTHORS[name], "variance_error": float("nan")}
    elif name in ("no-effect", "sparse"):
        plain = run_case(case, seed, terms=())
        row["plain_vae_mse"] = plain.mse
        row["at_most"] = 1.02 * plain.mse if name == "no-effect" else case.most
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amortized", action="store_true")
    options = parser.parse_args()
    names = options.cases or (list(AUTHORS) if options.amortized else list(CASES))
    path = RESULTS / ("core-amortized.csv" if options.amortized else "core.csv")
    RESULTS.mkdir(exist_ok=True)
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["case", "seed"])
    for name in names:
        row = measure(name, options.seed, PUBLISHED if options.amortized else {})
        keep = (done["case"] != name) | (done["seed"] != options.seed)
        done = pd.concat([done[keep], pd.DataFrame([row])], ignore_index=True)
        done.to_csv(path, index=False, float_format="%.5g")
        print({key: value for key, value in row.items() if key != "versions"}, flush=True)


if __name__ == "__main__":
    main()
