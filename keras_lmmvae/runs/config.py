"""CONFIG.yaml: features, random effects, model and training of a run, checked by pydantic.

Nothing here imports TensorFlow until terms or a model are made, so a mistake is told at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from keras_lmmvae.errors import received
from keras_lmmvae.runs.keys import unknown_key

if TYPE_CHECKING:
    from keras_lmmvae import LMMVAE
    from keras_lmmvae.effects.random_effect import RandomEffect

__all__ = [
    "Config",
    "ModelSettings",
    "TrainingSettings",
    "Validation",
    "parse_config",
    "read_config",
]

# A description says what is expected. It stands in the error if the value is something else.
Count = Annotated[int, Field(ge=1, description="an integer of at least 1")]
Seed = Annotated[int, Field(ge=0, description="an integer of at least 0")]
Positive = Annotated[float, Field(gt=0, description="a finite number above 0")]
Weight = Annotated[float, Field(ge=0, description="a finite number of at least 0")]
Share = Annotated[float, Field(ge=0, lt=1, description="a number in [0, 1)")]
Flag = Annotated[bool, Field(description="true or false")]
_UNKNOWN = ("extra_forbidden", "invalid_key")


class _Settings(BaseModel):
    """A part of a configuration. Unknown keys are errors, and text is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Validation(_Settings):
    """Rows that are held out.

    Attributes:
        fraction: Share of the rows; for "groups", share of the levels.
        by: "rows" at random, whole "groups", or the "future".
        column: Column of the groups or of the time.
    """

    fraction: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="a number in (0, 1); 0 or null instead hold nothing out",
    )
    by: Literal["rows", "groups", "future"] = "rows"
    column: str | None = Field(default=None, description="a column's name")

    @model_validator(mode="after")
    def _has_a_column_if_needed(self) -> Validation:
        if (self.by == "rows") != (self.column is None):
            raise ValueError(
                "`training.validation` by 'groups' or 'future' needs a `column`, by 'rows' none. "
                + received(by=self.by, column=self.column)
            )
        return self


class TrainingSettings(_Settings):
    """How a model is trained.

    Attributes:
        epochs: Most epochs.
        batch_size: Rows in a step.
        learning_rate: Learning rate of Adam at the first step.
        schedule: "cosine": the rate falls to 0 along half a cosine; "constant".
        patience: Training stops after so many epochs without a lower loss of the held-out rows,
            and goes back to the best weights; `None`: all epochs.
        validation: Rows that are held out: a share, or a mapping; `None`: none.
        seed: Fixes the split, initial weights and sampling.
    """

    epochs: Count = 50
    batch_size: Count = 256
    learning_rate: Positive = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    patience: Count | None = None
    validation: Validation | None = Validation()
    seed: Seed = 0

    @field_validator("validation", mode="before")
    @classmethod
    def _from_a_share(cls, given: Any) -> Any:
        if given is None or isinstance(given, (Mapping, Validation)):
            return given
        is_nothing = given == 0 and not isinstance(given, bool)
        return None if is_nothing else {"fraction": given}


class ModelSettings(_Settings):
    """Arguments of `LMMVAE` that a file can hold; see there for what they mean."""

    latent_dim: Count
    hidden_units: list[Count] = Field(
        default=[1000, 500], description="a list of widths, integers of at least 1"
    )
    activation: str = Field(default="relu", description="the name of an activation of Keras")
    posterior: Literal["conjugate", "amortized"] = "conjugate"
    shared_encoder: Flag = False
    kl_weight: Weight = 1.0
    effects_kl_weight: Positive = 1.0
    effects_kl_reduction: Literal["level", "row"] = "level"
    noise_variance: Positive | None = None
    feature_weights: Literal["equal", "precision"] = "equal"
    latent_epochs: Seed = 0
    effects_dropout: Share = 0.0
    normalize: Flag = True
    seed: Seed | None = None


class Config(_Settings):
    """A configuration.

    Attributes:
        features: Feature columns; `None`: all numeric columns that nothing else uses.
        random_effects: Terms as they are written: a formula, or a list of mappings.
        model: Arguments of `LMMVAE`, all but the terms.
        training: How it is trained.
    """

    features: list[str] | None = Field(
        default=None,
        min_length=1,
        description="a list of column names; leave it out for all numeric columns",
    )
    random_effects: str | list[Any] | None = Field(
        default=None,
        description="a formula such as '(1 | store)', or a list of mappings such as "
        "{type: RandomIntercept, column: store}",
    )
    model: ModelSettings
    training: TrainingSettings = TrainingSettings()

    @property
    def seed(self) -> int | None:
        """Seed of the model: its own if it is given one, else that of the training."""
        return self.model.seed if "seed" in self.model.model_fields_set else self.training.seed

    def with_features(self, features: Sequence[str]) -> Config:
        """The configuration with its features named."""
        return self.model_copy(update={"features": list(features)})

    def terms(self) -> list[RandomEffect]:
        """Fresh terms."""
        from keras_lmmvae.runs.terms import terms_from

        return terms_from(self.random_effects)

    def make_model(self) -> LMMVAE:
        """A fresh model."""
        from keras_lmmvae import LMMVAE

        arguments = {**self.model.model_dump(), "seed": self.seed}
        try:
            return LMMVAE(random_effects=self.terms(), **arguments)
        except TypeError as error:
            raise ValueError(
                f"The model could not be made: {error}. " + received(model=arguments)
            ) from error

    def mapping(self) -> dict[str, Any]:
        """The configuration as plain values with all defaults, which `parse_config` reads."""
        from keras_lmmvae.runs.terms import term_mapping

        return {
            "features": self.features,
            "random_effects": [term_mapping(term) for term in self.terms()],
            "model": {**self.model.model_dump(), "seed": self.seed},
            "training": self.training.model_dump(),
        }


def read_config(path: Path) -> Config:
    """Reads a configuration from a YAML file."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())  # YAML's messages have many lines.
        raise ValueError(
            f"The configuration cannot be read: {problem}. " + received(file=str(path))
        ) from error
    return parse_config(given)


def parse_config(given: Any) -> Config:
    """Checks a configuration: its keys, and the type and range of every value.

    Terms and activation are checked when they are made, because only their classes know them.

    Example:
        >>> parse_config({"model": {"latent_dim": 2}}).training.epochs
        50
        >>> parse_config({"model": {"latent_dim": 2}, "training": {"epochs": 0}})
        Traceback (most recent call last):
        ...
        ValueError: Received an invalid value for `training.epochs`, expected an integer of at
        least 1. Received: training.epochs=0
    """
    parts = given
    if isinstance(given, Mapping):
        # A part that is left out or empty has its defaults.
        empty: dict[str, Any] = {
            name: {} for name in ("model", "training") if given.get(name) is None
        }
        parts = {**given, **empty}
    try:
        return Config.model_validate(parts)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelled key explains why another one is missing.
        problems.sort(key=lambda problem: problem["type"] not in _UNKNOWN)
        raise ValueError(_message(parts, problems[0])) from None


def _message(given: Any, problem: Any) -> str:
    """One line about a problem that pydantic found."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    path = [str(name) for name in problem["loc"]]
    part, depth = _part_at(path)
    above = ".".join(path[:depth])
    named = f"`{above}`" if above else "the configuration"
    valid = list(part.model_fields)
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"Expected a mapping for {named}, with keys out of {valid}. " + received(
            given=problem["input"]
        )
    name, setting = path[depth], ".".join(path[: depth + 1])
    value = _value_at(given, path[: depth + 1])
    if problem["type"] in _UNKNOWN:
        return unknown_key(named, name, value, valid)
    expected = _expected(part.model_fields[name])
    if problem["type"] == "missing":
        return f"{named} needs a '{name}', {expected}. " + received(**{above: problem["input"]})
    if "number" in expected and _is_number_as_text(value):
        expected += "; YAML takes 1e-3 for text: write 0.001 or 1.0e-3"
    return f"Received an invalid value for `{setting}`, expected {expected}. " + received(
        **{setting: value}
    )


def _options(field: FieldInfo) -> tuple[Any, ...]:
    """The type of a field and, if it is a union, the types in it."""
    return (field.annotation, *get_args(field.annotation))


def _part_at(path: Sequence[str]) -> tuple[type[_Settings], int]:
    """The innermost part on a path, and how many names lead to it.

    The next name is the setting. Those behind it are places in a list, or types that were tried.
    """
    part: type[_Settings] = Config
    for depth, name in enumerate(path):
        options = _options(part.model_fields[name]) if name in part.model_fields else ()
        inner = [one for one in options if isinstance(one, type) and issubclass(one, _Settings)]
        if not inner:
            return part, depth
        part = inner[0]
    return part, len(path)


def _expected(field: FieldInfo) -> str:
    for option in _options(field):
        if get_origin(option) is Literal:
            return f"one of {list(get_args(option))}"
    if field.description is not None:
        return field.description
    # The description of `Count | None` is that of `Count`.
    return str(get_args(_options(field)[1])[1].description)


def _is_number_as_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _value_at(given: Any, path: Sequence[str]) -> Any:
    for name in path:
        if isinstance(given, Mapping):  # A share stands for the mapping {fraction: share}.
            given = next((value for key, value in given.items() if str(key) == name), None)
    return given
