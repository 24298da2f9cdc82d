"""Checks that the columns of a model can be the inputs of a served model."""

import keyword
import re
from collections.abc import Iterable, Iterator

from keras_lmmvae.columns import FEATURES
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.export.condition_signature import MASK, SUPPORT, can_condition
from keras_lmmvae.fitted_model import FittedModel
from keras_lmmvae.validation import received

__all__ = ["LATENT", "check_input_names"]

LATENT = "latent"
"""The input of `decode` that is not a column."""

# Names that TensorFlow allows for an operation, and so for the input of a SavedModel.
_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
# TensorFlow makes Python functions of signatures, with the inputs as their parameters.
_NO_PARAMETERS = {*keyword.kwlist, "self"}


def check_input_names(model: FittedModel) -> None:
    """Raises a ValueError if a column of the model's terms cannot be the input of a SavedModel.

    TensorFlow notices this only while it writes, and its error does not name the column.
    """
    for column in _columns(model.random_effects):
        if not _NAME.fullmatch(column) or column in _NO_PARAMETERS:
            raise ValueError(
                f"The column '{column}' cannot be the input of a SavedModel: rename it in the data "
                "and fit again. Expected ASCII letters, digits, '_', '.' and '-', a letter or a "
                "digit first, and no word of Python's such as 'class'. " + received(column=column)
            )
    for names in _signatures(model):
        _check_distinct(names)


def _check_distinct(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        # TensorFlow ignores case and punctuation when it compares names.
        plain = re.sub(r"\W", "_", name.lower())
        if plain in seen:
            raise ValueError(
                f"The column '{name}' cannot be the input of a SavedModel beside the input "
                f"'{seen[plain]}', for TensorFlow takes no notice of case and punctuation: rename "
                "it in the data and fit again. Expected names that differ in letters or digits. "
                + received(column=name)
            )
        seen[plain] = name


def _signatures(model: FittedModel) -> Iterator[list[str]]:
    """The names of each signature's inputs; those that are not columns come first."""
    columns = _columns(model.random_effects)
    yield [FEATURES, *columns]
    yield [LATENT, *columns]
    for term in model.random_effects:
        if can_condition(model):
            others = _columns([other for other in model.random_effects if other is not term])
            names = list(dict.fromkeys([*others, *term.numbers]))
            yield [FEATURES, SUPPORT, MASK, *(f"{SUPPORT}_{name}" for name in names), *names]


def _columns(terms: list[RandomEffect]) -> list[str]:
    return list(dict.fromkeys(column for term in terms for column in term.columns))
