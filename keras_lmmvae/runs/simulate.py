"""What `keras-lmmvae simulate` does: it writes a simulated table and its truth to files."""

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from keras_lmmvae.runs.tables import check_suffix, write_table
from keras_lmmvae.simulation import Simulation
from keras_lmmvae.simulation.tables import SIMULATED_SUITES, SimulatedTable
from keras_lmmvae.validation import received

__all__ = ["find_table", "simulate", "simulated_rows", "true_rows", "true_variances"]


def find_table(suite: str, table: str | None) -> SimulatedTable:
    """Finds a simulated table of a suite."""
    if suite not in SIMULATED_SUITES:
        raise ValueError(
            f"There is no simulated suite '{suite}', expected one of {list(SIMULATED_SUITES)}. "
            + received(suite=suite)
        )
    tables = SIMULATED_SUITES[suite]
    if table not in tables:
        raise ValueError(
            f"The suite '{suite}' needs a `--table` out of {list(tables)}. " + received(table=table)
        )
    return tables[table]


def simulated_rows(simulation: Simulation) -> pd.DataFrame:
    """The rows as a table: "x_0" ... and the columns of the effects."""
    columns = {name: values for name, values in simulation.data.items() if name != "x"}
    return pd.concat([_numbered("x", simulation.data["x"]), pd.DataFrame(columns)], axis=1)


def true_rows(simulation: Simulation) -> pd.DataFrame:
    """The truth behind the rows: latents, signal and what each effect adds.

    x = signal + sum of effects + noise,    signal = f(u) + mean
    """
    parts = {"u": simulation.latent, "signal": simulation.signal, **simulation.contribution}
    return pd.concat([_numbered(name, values) for name, values in parts.items()], axis=1)


def true_variances(simulation: Simulation) -> pd.DataFrame:
    """The variances, as `variance_components` has them: effects and noise x features."""
    rows = {}
    for name, variance in simulation.effect_variance.items():
        for power, values in enumerate(variance):
            coefficient = ("intercept", "t")[power] if power < 2 else f"t^{power}"
            rows[name if len(variance) == 1 else f"{name}: {coefficient}"] = values
    rows["noise"] = np.full(simulation.num_features, simulation.noise_variance)
    columns = [f"x_{feature}" for feature in range(simulation.num_features)]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename_axis("component")


def _numbered(name: str, values: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(values, columns=[f"{name}_{k}" for k in range(values.shape[1])])


def simulate(
    suite: str,
    output: Path,
    *,
    table: str | None = None,
    num_rows: int | None = None,
    latent_dim: int = 1,
    seed: int = 0,
    console: Console | None = None,
) -> None:
    """Writes a simulated table and, beside it, NAME_truth and NAME_variances."""
    check_suffix(output)
    simulation = find_table(suite, table).simulate(latent_dim, seed, num_rows)
    truth = output.with_stem(f"{output.stem}_truth")
    variances = output.with_stem(f"{output.stem}_variances")
    write_table(simulated_rows(simulation), output)
    write_table(true_rows(simulation), truth)
    write_table(true_variances(simulation), variances, index=True)
    console = console or Console()
    for file in (output, truth, variances):
        console.print(f"  {file}", highlight=False, markup=False, soft_wrap=True)
