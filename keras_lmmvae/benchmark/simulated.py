"""Simulated tables: the paper's law at three sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keras_lmmvae.benchmark.table import Source, Table
from keras_lmmvae.effects import RandomIntercept, RandomSlopes, SpatialEffect
from keras_lmmvae.simulation import (
    Simulation,
    simulate_categorical,
    simulate_longitudinal,
    simulate_spatial,
    simulate_spatial_categorical,
)

__all__ = ["Simulator", "core", "paper_full", "paper_small", "tiny"]

PLACE = ("lon", "lat")


@dataclass(frozen=True)
class Simulator:
    """The `load` of a simulated table.

    Attributes:
        function: One of `simulate_...`.
        settings: Its arguments, all but latent dimension and seed.
    """

    function: Callable[..., Simulation]
    settings: dict[str, Any]

    def __call__(self, latent_dim: int, seed: int) -> Source:
        simulation = self.simulate(latent_dim, seed)
        return Source(simulation.data, simulation)

    def simulate(self, latent_dim: int, seed: int, num_rows: int | None = None) -> Simulation:
        """Simulates the table.

        Args:
            latent_dim: Positive int, `d`.
            seed: Non-negative int.
            num_rows: Optional positive int, another number of rows.
        """
        settings = self.settings if num_rows is None else {**self.settings, "n": num_rows}
        return self.function(**settings, latent_dim=latent_dim, seed=seed)


def paper_small() -> list[Table]:
    """n = 20,000, d = 1: each structure with nominal variances 0.3 and 3."""
    nested, sparse = (200, 600, 1000), (5000, 10_000)
    tables = []
    for v in (0.3, 3.0):
        tables += [
            _categorical(f"nested-{v:g}", 20_000, nested, v),
            _categorical(f"crossed-{v:g}", 20_000, nested, v, order="crossed"),
            *_longitudinal(f"longitudinal-{v:g}", 20_000, 2000, (v,) * 3),
            *_spatial(f"spatial-{v:g}", 20_000, 2000, v, 0.3),
            _spatial_categorical(f"spatial-categorical-{v:g}", 20_000, 2000, v),
        ]
    return [
        *tables,
        _categorical("sparse-0.3", 20_000, sparse, 0.3, order="crossed"),
        _categorical("no-effect", 20_000, (10_000,), 0.0),
    ]


def core() -> list[Table]:
    """The nine tables that a change of the model is tried on first; one has two latents."""
    tables = {table.name: table for table in paper_small()}
    names = ["nested-3/rows", "crossed-3/rows", "sparse-0.3/rows", "no-effect/rows"]
    names += ["longitudinal-3/rows", "longitudinal-3/future"]
    names += ["spatial-3/rows", "spatial-3/groups"]
    low = replace(tables["nested-0.3/rows"], latent_dims=(2,))
    return [low, *(tables[name] for name in names)]


def paper_full() -> list[Table]:
    """The paper's grid: n = 100,000, every combination of variances and length scales."""
    low_high = (0.3, 3.0)
    grid = [(a, b, c) for a in low_high for b in low_high for c in low_high]
    tables = []
    for variances in grid:
        name = "-".join(f"{v:g}" for v in variances)
        categorical = _categorical(f"categorical-{name}", 100_000, (1000, 3000, 5000), variances)
        longitudinal = _longitudinal(f"longitudinal-{name}", 100_000, 1000, variances)
        for table in (categorical, *longitudinal):
            kind = "categorical" if table is categorical else "longitudinal"
            tables.append(_published(table, kind, variances))
    for v in low_high:
        for scale in low_high:
            name = f"spatial-{v:g}-scale-{scale:g}"
            for table in _spatial(name, 100_000, 10_000, v, scale):
                tables.append(_published(table, "spatial", (v,), scale))
    return tables


def tiny() -> list[Table]:
    """A table of each structure and split, with 1,500 rows and 10 features."""
    _, future = _longitudinal("longitudinal", 1500, 100, (1.0, 1.0, 1.0), num_features=10)
    _, unseen = _spatial("spatial", 1500, 100, 1.0, 0.3, num_features=10)
    return [_categorical("categorical", 1500, (10, 30), 1.0, num_features=10), future, unseen]


def _categorical(
    name: str, n: int, levels: Sequence[int], variances: float | Sequence[float], **settings: Any
) -> Table:
    values = (variances,) * len(levels) if isinstance(variances, float) else tuple(variances)
    groups = tuple(f"group_{k}" for k in range(len(levels)))
    return Table(
        name,
        Simulator(
            simulate_categorical,
            {"n": n, "cardinalities": levels, "effect_variances": values, **settings},
        ),
        lambda: [RandomIntercept(group) for group in groups],
        groups=groups,
    )


def _longitudinal(
    name: str, n: int, subjects: int, variances: Sequence[float], **settings: Any
) -> list[Table]:
    """Held-out rows, and the last rows by time."""
    rows = Table(
        name,
        Simulator(
            simulate_longitudinal,
            {
                "n": n,
                "num_subjects": subjects,
                "effect_variances": tuple(variances),
                **settings,
            },
        ),
        lambda: [RandomSlopes("subject", time="t", degree=2)],
        groups=("subject",),
        subject="subject",
        time="t",
    )
    return [rows, replace(rows, split="future", split_on="t")]


def _spatial(
    name: str, n: int, locations: int, variance: float, scale: float, **settings: Any
) -> list[Table]:
    """Held-out rows, and held-out locations."""
    rows = Table(
        name,
        Simulator(
            simulate_spatial,
            {
                "n": n,
                "num_locations": locations,
                "effect_variance": variance,
                "squared_length_scale": scale,
                **settings,
            },
        ),
        lambda: [SpatialEffect(PLACE)],
        groups=("location",),
        coordinates=PLACE,
    )
    return [rows, replace(rows, split="groups", split_on="location")]


def _spatial_categorical(name: str, n: int, locations: int, variance: float) -> Table:
    return Table(
        name,
        Simulator(
            simulate_spatial_categorical,
            {
                "n": n,
                "num_locations": locations,
                "effect_variance": variance,
                "squared_length_scale": 0.3,
                "cardinalities": (locations // 2,),
                "effect_variances": (variance,),
                "order": "crossed",
            },
        ),
        lambda: [SpatialEffect(PLACE), RandomIntercept("group_0")],
        groups=("location", "group_0"),
        coordinates=PLACE,
    )


def _published(
    table: Table, kind: str, variances: Sequence[float], scale: float | None = None
) -> Table:
    """The table with the key of its cell in the paper's results."""
    split = {"rows": "random", "groups": "unknown", "future": "future"}[table.split]
    key: dict[str, Any] = {"suite": f"simulated-{kind}", "split": split}
    key |= {f"effect_variance_{k}": v for k, v in enumerate(variances)}
    if scale is not None:
        key["squared_length_scale"] = scale
    return replace(table, published=key)
