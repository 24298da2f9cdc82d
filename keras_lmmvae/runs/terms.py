"""Random-effects terms as they stand in a configuration: a formula, or a list of mappings."""

import inspect
from typing import Any

import keras

from keras_lmmvae.effects.random_effect import RandomEffect, term_classes
from keras_lmmvae.formula import random_effects_from_formula
from keras_lmmvae.runs.keys import check_mapping
from keras_lmmvae.validation import received

__all__ = ["term_mapping", "terms_from"]

TYPE = "type"


def _types() -> dict[str, type[RandomEffect]]:
    """Name -> class, of all terms that can be saved: ours, and those imported beside them."""
    registered = keras.saving.get_registered_name
    return {kind.__name__: kind for kind in term_classes() if ">" in registered(kind)}


def terms_from(given: Any) -> list[RandomEffect]:
    """Terms of a formula, or of a list of mappings.

    Example:
        >>> (term,) = terms_from([{"type": "RandomIntercept", "column": "store"}])
        >>> (same,) = terms_from("(1 | store)")
        >>> term.columns == same.columns == ("store",)
        True
    """
    if given is None:
        return []
    if isinstance(given, str):
        return random_effects_from_formula(given)
    if not isinstance(given, list):
        raise ValueError(
            "`random_effects` must be a formula such as '(1 | store)', or a list of mappings such "
            "as {type: RandomIntercept, column: store}. " + received(random_effects=given)
        )
    return [_term_of(mapping) for mapping in given]


def _term_of(mapping: Any) -> RandomEffect:
    types = _types()
    if not isinstance(mapping, dict) or mapping.get(TYPE) not in list(types):
        raise ValueError(
            f"A term of `random_effects` needs a '{TYPE}' out of {list(types)}. "
            + received(term=mapping)
        )
    kind = types[mapping[TYPE]]
    valid = inspect.signature(kind).parameters
    arguments = check_mapping(f"the term {kind.__name__}", mapping, [TYPE, *valid])
    del arguments[TYPE]
    try:
        return kind(**arguments)
    except TypeError as error:  # a missing argument, or one of a kind nobody expected
        raise ValueError(
            f"The term {kind.__name__} could not be made: {error}. " + received(term=mapping)
        ) from error


def term_mapping(term: RandomEffect) -> dict[str, Any]:
    """The mapping that stands for a term, with all its arguments; `terms_from` reads it."""
    valid = inspect.signature(type(term)).parameters
    config = {name: value for name, value in term.get_config().items() if name in valid}
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in config.items()}
    return {TYPE: type(term).__name__, **plain}
