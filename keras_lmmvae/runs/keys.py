"""Unknown keys of a configuration are told, with the key that was meant."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_lmmvae.errors import received

__all__ = ["check_mapping", "unknown_key"]


def unknown_key(part: str, key: str, value: Any, valid: Sequence[str]) -> str:
    """The error of a key that nobody knows. It names the nearest valid one.

    Example:
        >>> unknown_key("`training`", "epoch", 3, ["epochs", "seed"])
        "Unknown key 'epoch' in `training`: did you mean 'epochs'? Expected keys out of ['epochs',
        'seed']. Received: epoch=3"
    """
    near = difflib.get_close_matches(key, valid, n=1)
    hint = f": did you mean '{near[0]}'?" if near else "."
    return f"Unknown key '{key}' in {part}{hint} Expected keys out of {list(valid)}. " + received(
        **{key: value}
    )


def check_mapping(part: str, given: Any, valid: Iterable[str]) -> dict[str, Any]:
    """Returns a part of a configuration as a dict, if it has no unknown key."""
    valid = list(valid)
    if not isinstance(given, Mapping):
        raise ValueError(
            f"Expected a mapping for {part}, with keys out of {valid}. " + received(given=given)
        )
    for key, value in given.items():
        if key not in valid:
            raise ValueError(unknown_key(part, str(key), value, valid))
    return dict(given)
