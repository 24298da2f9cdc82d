"""What this package does when Keras is imported beside it: a check, and names for saved files.

Keras finds the classes of a saved file in its register, and a class registers itself when its
module is imported. `import keras_lmmvae` imports no such module, so stand-ins are registered for
these classes. A stand-in imports the class when a file asks for it.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from keras_lmmvae.errors import received

__all__ = ["REGISTERED", "require_tensorflow", "when_keras_is_there"]

_PACKAGE = "keras_lmmvae"
REGISTERED = (
    "DesignMatrixLayer",
    "EffectsEncoder",
    "EffectsTable",
    "GaussianLikelihood",
    "LatentDecoder",
    "LatentEncoder",
    "LatentNetworks",
    "LatentPrior",
    "LevelEffects",
    "LevelPrior",
    "MixedModel",
    "Product",
    "RandomEffectsAggregator",
    "Stationary",
    "Sum",
    "compact_codes",
)
"""What saved files may name, beside the classes that the package itself exports."""
# All of them are registered when these names are imported.
_REGISTERING = ("LMMVAE", "layers")


def when_keras_is_there() -> None:
    """Checks Keras' backend and registers stand-ins: now, or as soon as Keras is imported.

    Raises:
        ImportError: If Keras runs on another backend than TensorFlow. If Keras is imported later,
            that import raises it.
    """
    if "keras" in sys.modules:
        _meet_keras()
    else:
        sys.meta_path.insert(0, _KerasFinder())


def _meet_keras() -> None:
    require_tensorflow()
    _register_stand_ins()


def require_tensorflow() -> None:
    """Raises an ImportError if Keras runs on another backend than TensorFlow."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            "keras_lmmvae needs Keras on the TensorFlow backend: set the environment variable "
            "KERAS_BACKEND=tensorflow before Keras is imported. "
            + received(backend=keras.backend.backend())
        )


class _KerasFinder(importlib.abc.MetaPathFinder):
    """Finds Keras as Python does, and meets it when its import is done."""

    def __init__(self) -> None:
        self._is_searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "keras" or self._is_searching:
            return None
        self._is_searching = True  # The search below asks this finder again.
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_searching = False
        if spec is not None and spec.loader is not None:
            # Typed as Any, because a method of the loader is replaced.
            loader: Any = spec.loader
            loader.exec_module = self._then_meet(loader.exec_module)
        return spec

    def _then_meet(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def exec_module(module: ModuleType) -> None:
            execute(module)
            _meet_keras()
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        return exec_module


def _register_stand_ins() -> None:
    import keras

    known = keras.saving.get_custom_objects()
    exported = [name for name in sys.modules[_PACKAGE].__all__ if name[0].isupper()]
    for name in (*exported, *REGISTERED):
        if f"{_PACKAGE}>{name}" in known:
            continue
        if name[0].isupper():
            known[f"{_PACKAGE}>{name}"] = _ClassStandIn(name)
        else:
            # Keras tells the name of a function only if the function itself is registered.
            function = _function_stand_in(name)
            keras.saving.register_keras_serializable(_PACKAGE, name)(function)


class _ClassStandIn:
    """Takes the place of a registered class until a file asks for it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def from_config(self, config: dict[str, Any]) -> Any:
        return _registered(self.name).from_config(config)


def _function_stand_in(name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return _registered(name)(*arguments, **options)

    call.__name__ = name
    return call


def _registered(name: str) -> Any:
    """The object of a name, which its module registers in place of the stand-in."""
    package = importlib.import_module(_PACKAGE)
    for module in _REGISTERING:
        getattr(package, module)
    import keras

    found = keras.saving.get_custom_objects()[f"{_PACKAGE}>{name}"]
    if isinstance(found, _ClassStandIn):
        raise ValueError(f"The file names a class that cannot be saved. {received(name=name)}")
    return found
