"""The suites: which methods meet on which tables, with which networks, and how often."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks import real, simulated
from benchmarks.classification import LDA, RAW
from benchmarks.methods import METHODS, applies
from benchmarks.settings import Training
from benchmarks.table import Table
from keras_lmmvae.validation import received

__all__ = ["SUITES", "Cell", "Suite", "find_suite"]


@dataclass(frozen=True)
class Cell:
    """One fit: a method on a table, with `d` latent variables and a seed."""

    table: Table
    latent_dim: int
    seed: int
    method: str


@dataclass(frozen=True)
class Suite:
    """Methods x tables x latent dimensions x seeds.

    Attributes:
        name: By which it is called, and the name of its files.
        title: What it shows, one line.
        tables: Gives its tables.
        training: Networks and their training, for all methods.
        methods: Names of the methods; those that do not apply to a table are left out there.
        latent_dims: Latent dimensions `d`.
        seeds: Seeds of data, split and method.
        measure: "reconstruction", or "classification" of the labels by the latents.
    """

    name: str
    title: str
    tables: Callable[[], Sequence[Table]]
    training: Training = Training()
    methods: tuple[str, ...] = tuple(METHODS)
    latent_dims: tuple[int, ...] = (1,)
    seeds: tuple[int, ...] = (0,)
    measure: Literal["reconstruction", "classification"] = "reconstruction"

    def cells(self) -> list[Cell]:
        """All fits of the suite, those on the same rows next to each other."""
        return [
            Cell(table, latent_dim, seed, method)
            for table in self.tables()
            for latent_dim in (table.latent_dims or self.latent_dims)
            for seed in self.seeds
            for method in self.methods
            if applies(method, table)
        ]


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "tiny",
            "Every method on small simulated tables, seconds each: shows that all of it runs",
            simulated.tiny,
            Training(
                hidden_units=(32, 16),
                epochs=3,
                batch_size=64,
                amortized_epochs=5,
                refine=2,
                calibration_split=0.1,
            ),
        ),
        Suite(
            "core",
            "The tables that a change of the model is tried on first",
            simulated.core,
            Training(epochs=30),
            methods=("vae", "lmmvae"),
        ),
        Suite(
            "paper-small",
            "The paper's simulations at n = 20,000, two variances for each structure",
            simulated.paper_small,
            Training(epochs=30),
        ),
        Suite(
            "paper-full",
            "The paper's simulations at their full size, n = 100,000, beside the published numbers",
            simulated.paper_full,
            Training(epochs=18, batch_size=250, amortized_epochs=200),
            latent_dims=(1, 2),
            seeds=(0, 1, 2, 3, 4),
        ),
        Suite(
            "real",
            "Houses, flights, baseball, murders, pines, census tracts: standardised features",
            real.tables,
            Training(
                (200, 100),
                epochs=40,
                batch_size=256,
                kl_weight=0.1,
                refine=10,
                calibration_split=0.05,
                latent_epochs=(0, 5),
            ),
            latent_dims=(1, 2, 5),
            seeds=(0, 1, 2),
        ),
        Suite(
            "classification",
            "Labels of held-out groups, predicted from the latents",
            real.labelled,
            Training((200, 100), epochs=40, batch_size=256, kl_weight=0.1),
            methods=(RAW, LDA, *METHODS),
            latent_dims=(5,),
            seeds=(0, 1, 2),
            measure="classification",
        ),
    )
}


def find_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in SUITES:
        raise ValueError(
            f"There is no suite '{name}', expected one of {list(SUITES)}. " + received(suite=name)
        )
    return SUITES[name]
