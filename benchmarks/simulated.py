"""Simulated tables with their terms and splits. `simulation.tables` has how they are simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.table import Source, Table
from keras_lmmvae.effects import RandomIntercept, RandomSlopes, SpatialEffect
from keras_lmmvae.simulation import (
    simulate_categorical,
    simulate_longitudinal,
    simulate_spatial,
    simulate_spatial_categorical,
)
from keras_lmmvae.simulation.tables import SIMULATED_SUITES, SimulatedTable

__all__ = ["core", "paper_full", "paper_small", "tiny"]

PLACE = ("lon", "lat")


def tiny() -> list[Table]:
    """Three structures, each with another split."""
    return _picked("tiny", ["categorical/rows", "longitudinal/future", "spatial/groups"])


def core() -> list[Table]:
    """The nine tables that a change of the model is tried on first; one has two latents."""
    names = ["nested-0.3/rows", "nested-3/rows", "crossed-3/rows", "sparse-0.3/rows"]
    names += ["no-effect/rows", "longitudinal-3/rows", "longitudinal-3/future"]
    low, *others = _picked("core", [*names, "spatial-3/rows", "spatial-3/groups"])
    return [replace(low, latent_dims=(2,)), *others]


def paper_small() -> list[Table]:
    """n = 20,000, d = 1: each structure with nominal variances 0.3 and 3."""
    return _tables("paper-small")


def paper_full() -> list[Table]:
    """The paper's grid, n = 100,000. Each table has the key of its cell in the paper's results."""
    suite = SIMULATED_SUITES["paper-full"]
    return [
        replace(table, published=_published_key(table, suite[table.dataset].settings))
        for table in _tables("paper-full")
    ]


def _tables(suite: str) -> list[Table]:
    return [
        table
        for name, simulated in SIMULATED_SUITES[suite].items()
        for table in _STRUCTURES[simulated.function](name, simulated)
    ]


def _picked(suite: str, names: Sequence[str]) -> list[Table]:
    tables = {table.name: table for table in _tables(suite)}
    return [tables[name] for name in names]


def _load(simulated: SimulatedTable, latent_dim: int, seed: int) -> Source:
    simulation = simulated.simulate(latent_dim, seed)
    return Source(simulation.data, simulation)


def _categorical(name: str, simulated: SimulatedTable) -> list[Table]:
    groups = tuple(f"group_{k}" for k in range(len(simulated.settings["cardinalities"])))

    def effects() -> list[RandomIntercept]:
        return [RandomIntercept(group) for group in groups]

    return [Table(name, partial(_load, simulated), effects, groups=groups)]


def _longitudinal(name: str, simulated: SimulatedTable) -> list[Table]:
    """Held-out rows, and the last rows by time."""
    rows = Table(
        name,
        partial(_load, simulated),
        lambda: [RandomSlopes("subject", time="t", degree=2)],
        groups=("subject",),
        subject="subject",
        time="t",
    )
    return [rows, replace(rows, split="future", split_on="t")]


def _spatial(name: str, simulated: SimulatedTable) -> list[Table]:
    """Held-out rows, and held-out locations."""
    rows = Table(
        name,
        partial(_load, simulated),
        lambda: [SpatialEffect(PLACE)],
        groups=("location",),
        coordinates=PLACE,
    )
    return [rows, replace(rows, split="groups", split_on="location")]


def _spatial_categorical(name: str, simulated: SimulatedTable) -> list[Table]:
    table = Table(
        name,
        partial(_load, simulated),
        lambda: [SpatialEffect(PLACE), RandomIntercept("group_0")],
        groups=("location", "group_0"),
        coordinates=PLACE,
    )
    return [table]


_STRUCTURES: dict[Callable[..., Any], Callable[[str, SimulatedTable], list[Table]]] = {
    simulate_categorical: _categorical,
    simulate_longitudinal: _longitudinal,
    simulate_spatial: _spatial,
    simulate_spatial_categorical: _spatial_categorical,
}


def _published_key(table: Table, settings: dict[str, Any]) -> dict[str, Any]:
    """The key of the table's cell in the paper's results."""
    kind = table.dataset.split("-")[0]
    split = {"rows": "random", "groups": "unknown", "future": "future"}[table.split]
    key: dict[str, Any] = {"suite": f"simulated-{kind}", "split": split}
    variances = settings.get("effect_variances") or (settings["effect_variance"],)
    key |= {f"effect_variance_{k}": v for k, v in enumerate(variances)}
    if "squared_length_scale" in settings:
        key["squared_length_scale"] = settings["squared_length_scale"]
    return key
