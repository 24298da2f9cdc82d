"""The simulated tables of the benchmark's suites: each by its law and settings.

`keras-lmmvae simulate` writes them to files. `benchmarks/` fits methods to them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from keras_lmmvae.simulation.simulation import (
    Simulation,
    simulate_categorical,
    simulate_longitudinal,
    simulate_spatial,
    simulate_spatial_categorical,
)

__all__ = ["SIMULATED_SUITES", "SimulatedTable"]


@dataclass(frozen=True)
class SimulatedTable:
    """One of `simulate_...` with its arguments, without `latent_dim` and `seed`."""

    function: Callable[..., Simulation]
    settings: dict[str, Any]

    def simulate(self, latent_dim: int, seed: int, num_rows: int | None = None) -> Simulation:
        """Simulates the table, with another number of rows if that is given."""
        settings = self.settings if num_rows is None else {**self.settings, "n": num_rows}
        return self.function(**settings, latent_dim=latent_dim, seed=seed)


def _categorical(
    n: int, levels: tuple[int, ...], variances: tuple[float, ...], **settings: Any
) -> SimulatedTable:
    settings |= {"n": n, "cardinalities": levels, "effect_variances": variances}
    return SimulatedTable(simulate_categorical, settings)


def _longitudinal(
    n: int, subjects: int, variances: tuple[float, ...], **settings: Any
) -> SimulatedTable:
    settings |= {"n": n, "num_subjects": subjects, "effect_variances": variances}
    return SimulatedTable(simulate_longitudinal, settings)


def _spatial(
    n: int, locations: int, variance: float, scale: float, **settings: Any
) -> SimulatedTable:
    settings |= {"n": n, "num_locations": locations, "effect_variance": variance}
    return SimulatedTable(simulate_spatial, settings | {"squared_length_scale": scale})


def _spatial_categorical(n: int, locations: int, variance: float, scale: float) -> SimulatedTable:
    settings = {
        **_spatial(n, locations, variance, scale).settings,
        "cardinalities": (locations // 2,),
        "effect_variances": (variance,),
        "order": "crossed",
    }
    return SimulatedTable(simulate_spatial_categorical, settings)


def _tiny() -> dict[str, SimulatedTable]:
    """1,500 rows with 10 features."""
    return {
        "categorical": _categorical(1500, (10, 30), (1.0, 1.0), num_features=10),
        "longitudinal": _longitudinal(1500, 100, (1.0, 1.0, 1.0), num_features=10),
        "spatial": _spatial(1500, 100, 1.0, 0.3, num_features=10),
    }


def _paper_small() -> dict[str, SimulatedTable]:
    """20,000 rows, every structure with variances of 0.3 and of 3."""
    n, levels = 20_000, (200, 600, 1000)
    tables: dict[str, SimulatedTable] = {}
    for v in (0.3, 3.0):
        tables |= {
            f"nested-{v:g}": _categorical(n, levels, (v, v, v)),
            f"crossed-{v:g}": _categorical(n, levels, (v, v, v), order="crossed"),
            f"longitudinal-{v:g}": _longitudinal(n, 2000, (v, v, v)),
            f"spatial-{v:g}": _spatial(n, 2000, v, 0.3),
            f"spatial-categorical-{v:g}": _spatial_categorical(n, 2000, v, 0.3),
        }
    return tables | {
        "sparse-0.3": _categorical(n, (5000, 10_000), (0.3, 0.3), order="crossed"),
        "no-effect": _categorical(n, (10_000,), (0.0,)),
    }


def _core() -> dict[str, SimulatedTable]:
    tables = _paper_small()
    names = ["nested-0.3", "nested-3", "crossed-3", "sparse-0.3", "no-effect"]
    return {name: tables[name] for name in [*names, "longitudinal-3", "spatial-3"]}


def _paper_full() -> dict[str, SimulatedTable]:
    """100,000 rows, every combination of the paper's variances and length scales."""
    n, low_high = 100_000, (0.3, 3.0)
    tables = {}
    for variances in product(low_high, repeat=3):
        name = "-".join(f"{v:g}" for v in variances)
        tables[f"categorical-{name}"] = _categorical(n, (1000, 3000, 5000), variances)
        tables[f"longitudinal-{name}"] = _longitudinal(n, 1000, variances)
    for v, scale in product(low_high, repeat=2):
        tables[f"spatial-{v:g}-scale-{scale:g}"] = _spatial(n, 10_000, v, scale)
    return tables


SIMULATED_SUITES: dict[str, dict[str, SimulatedTable]] = {
    "tiny": _tiny(),
    "core": _core(),
    "paper-small": _paper_small(),
    "paper-full": _paper_full(),
}
"""Tables by suite and by name."""
