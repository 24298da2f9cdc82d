"""Keys of a configuration, checked strictly."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from keras_lmmvae.validation import received

__all__ = ["check_mapping"]


def check_mapping(part: str, given: Any, valid: Iterable[str]) -> dict[str, Any]:
    """Returns a part of a configuration as a dict, if it has no unknown key.

    Args:
        part: What it is, for the message.
        given: What was read.
        valid: The keys that may stand there.

    Raises:
        ValueError: If `given` is no mapping, or a key is unknown; names the nearest valid one.

    Example:
        >>> check_mapping("`training`", {"epoch": 3}, ["epochs", "seed"])
        Traceback (most recent call last):
        ...
        ValueError: Unknown key 'epoch' in `training`: did you mean 'epochs'? Expected keys out of
        ['epochs', 'seed']. Received: epoch=3
    """
    valid = list(valid)
    if not isinstance(given, Mapping):
        raise ValueError(
            f"Expected a mapping for {part}, with keys out of {valid}. " + received(given=given)
        )
    for key, value in given.items():
        if key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1)
            hint = f": did you mean '{near[0]}'?" if near else "."
            raise ValueError(
                f"Unknown key '{key}' in {part}{hint} Expected keys out of {valid}. "
                + received(**{str(key): value})
            )
    return dict(given)
