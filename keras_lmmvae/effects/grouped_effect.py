"""Terms whose levels are the keys of a data column."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_lmmvae.effects.grouping import Grouping
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.vocabulary import Vocabulary

__all__ = ["GroupedEffect"]


class GroupedEffect(RandomEffect):
    """Base of the terms with a grouping factor: it knows the factor's levels.

    Args:
        column: Name of the data column that holds the keys of the levels.
        numbers: Names of further, numeric columns.
        name: Optional string, the term's name. Defaults to `column`.
    """

    def __init__(self, column: str, numbers: tuple[str, ...] = (), name: str | None = None) -> None:
        super().__init__((column, *numbers), name or column)
        self.column = column
        self.grouping = Grouping(column)

    def prepare(self, data: dict[str, Any]) -> dict[str, np.ndarray]:
        return {self.column: self.grouping.prepare(data[self.column])}

    def update_state(self, columns: dict[str, np.ndarray]) -> None:
        self.grouping.update_state(columns[self.column])

    def finalize_state(self) -> None:
        self.num_levels = self.grouping.finalize_state()

    def reset_state(self) -> None:
        self.grouping.reset_state()

    def add_levels(self, columns: dict[str, np.ndarray]) -> bool:
        num_levels = self.grouping.extend(columns[self.column])
        if num_levels == self.num_levels:
            return False
        self.grow(num_levels)
        return True

    def vocabularies(self) -> dict[str, Vocabulary]:
        return {self.column: self.grouping.vocabulary}

    def level_names(self) -> list[Any]:
        return list(self.grouping.vocabulary.keys)

    def adapted_state(self) -> dict[str, Any]:
        return {**super().adapted_state(), "grouping": self.grouping.state()}

    def restore_adapted_state(self, state: dict[str, Any]) -> None:
        super().restore_adapted_state(state)
        self.grouping.restore(state["grouping"])

    def save_assets(self, inner_path: str) -> None:
        self.grouping.save(inner_path)

    def load_assets(self, inner_path: str) -> None:
        self.grouping.load(inner_path)

    def get_config(self) -> dict[str, Any]:
        return {"column": self.column, **super().get_config()}
