"""Base of layers whose weights are state: saved, in float32, and never trained by gradients."""

import inspect
from typing import Any

import keras

__all__ = ["StateLayer"]


class StateLayer(keras.Layer):
    """A layer that holds what is known, not what is trained: tables, variances, scales.

    A subclass stores its arguments under their own names, and makes its weights by `state`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "trainable": False, "dtype": "float32"})

    def state(
        self, name: str, shape: tuple[int, ...], initializer: Any = "zeros"
    ) -> keras.Variable:
        """Adds a weight that is saved but not trained, in float32 whatever the policy."""
        return self.add_weight(
            name=name, shape=shape, initializer=initializer, trainable=False, autocast=False
        )

    def get_config(self) -> dict[str, Any]:
        """The name and the arguments, as they were given."""
        names = list(inspect.signature(type(self)).parameters)
        return {"name": self.name, **{n: getattr(self, n) for n in names if n != "kwargs"}}
