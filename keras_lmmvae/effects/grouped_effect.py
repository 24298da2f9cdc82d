"""Terms whose levels are the keys of a data column."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.effects.scaling import ColumnScaling
from keras_lmmvae.effects.vocabulary import Grouping, Vocabulary

__all__ = ["GroupedEffect"]


class GroupedEffect(RandomEffect):
    """Base of the terms with a grouping factor: it knows the factor's levels.

    Of further columns with numbers it learns centre and spread, in `scaling`.

    Args:
        column: Name of the data column that holds the keys of the levels.
        numbers: Names of further, numeric columns.
        name: Optional string, the term's name. Defaults to `column`.
    """

    def __init__(self, column: str, numbers: tuple[str, ...] = (), name: str | None = None) -> None:
        super().__init__((column,), numbers, name or column)
        self.column = column
        self.grouping = Grouping(column)
        self.scaling = ColumnScaling(numbers)

    def conform(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {self.column: self.grouping.conform(columns[self.column])}

    def update_state(self, columns: dict[str, np.ndarray]) -> None:
        self.grouping.update_state(columns[self.column])
        if self.numbers:
            self.scaling.update_state(columns)

    def finalize_state(self) -> None:
        if self.numbers:
            self.scaling.finalize_state()
        self.num_levels = self.grouping.finalize_state()

    def reset_state(self) -> None:
        self.grouping.reset_state()
        self.scaling.reset_state()

    def codes(self, columns: dict[str, tf.Tensor], tables: Mapping[str, Any] | None) -> tf.Tensor:
        return self.grouping.lookup(columns[self.column], tables)

    def add_levels(self, columns: dict[str, np.ndarray]) -> bool:
        before, self.num_levels = self.num_levels, self.grouping.extend(columns[self.column])
        return self.num_levels > before

    def vocabularies(self) -> dict[str, Vocabulary]:
        return {self.column: self.grouping.vocabulary}

    def typical_values(self) -> dict[str, float]:
        return dict(zip(self.scaling.columns, self.scaling.center, strict=True))

    def level_names(self) -> list[Any]:
        return list(self.grouping.vocabulary.keys)

    def adapted_state(self) -> dict[str, Any]:
        grouping, scaling = self.grouping.state(), self.scaling.state()
        return {**super().adapted_state(), "grouping": grouping, "scaling": scaling}

    def restore_adapted_state(self, state: dict[str, Any]) -> None:
        super().restore_adapted_state(state)
        self.grouping.restore(state["grouping"])
        self.scaling.restore(state["scaling"])

    def save_assets(self, inner_path: str) -> None:
        self.grouping.save(inner_path)

    def load_assets(self, inner_path: str) -> None:
        self.grouping.load(inner_path)

    def get_config(self) -> dict[str, Any]:
        return {"column": self.column, **super().get_config()}
