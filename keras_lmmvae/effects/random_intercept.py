"""Random intercepts of a grouping factor."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_lmmvae.effects.grouping import Grouping
from keras_lmmvae.effects.random_effect import Encoded, RandomEffect
from keras_lmmvae.effects.vocabulary import Vocabulary
from keras_lmmvae.validation import received

__all__ = ["RandomIntercept"]


@keras.saving.register_keras_serializable(package="keras_lmmvae")
class RandomIntercept(RandomEffect):
    """One effect per level of a factor: stores, patients, flights, players, places.

        x[i] = f(u[i]) + B[level[i]] + e[i],    B[l] ~ Normal(0, diag(effect_variance))

    Any number of factors, crossed or nested, can stand in one model. Fitting costs a gather
    and a scatter of the rows of a mini-batch, whatever the number of levels.

    Args:
        column: Name of the data column that holds the keys (strings or integers).
        name: Optional string, the term's name. Defaults to `column`.

    Raises:
        ValueError: If `column` is not a non-empty string, or is "x", the features' name.

    Example:
        >>> import keras_lmmvae as lmm
        >>> lmm.RandomIntercept("store").columns
        ('store',)

    References:
        - [Simchoni & Rosset, 2024](https://arxiv.org/abs/2412.16899), section 3.1.
    """

    def __init__(self, column: str, name: str | None = None) -> None:
        if not isinstance(column, str) or not column:
            raise ValueError(
                "Received an invalid value for `column`, expected the name of a data column. "
                + received(column=column)
            )
        super().__init__((column,), name or column)
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

    def encode(
        self, columns: dict[str, tf.Tensor], tables: dict[str, Any] | None = None
    ) -> Encoded:
        return {"codes": self.grouping.lookup(columns[self.column], tables)}

    def basis(self, encoded: Encoded) -> tf.Tensor | None:
        del encoded
        return None

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
