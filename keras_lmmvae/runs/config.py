"""CONFIG.yaml: features, random effects, model and training of a run, checked strictly."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.lmmvae import LMMVAE
from keras_lmmvae.runs.keys import check_mapping
from keras_lmmvae.runs.terms import term_mapping, terms_from
from keras_lmmvae.simulation.splits import SplitKind
from keras_lmmvae.validation import check_positive, received

__all__ = ["Config", "TrainingSettings", "Validation", "parse_config", "read_config"]

_PARTS = ("features", "random_effects", "model", "training")
SCHEDULES = ("cosine", "constant")
# Arguments of the model that a configuration has elsewhere, or that no file can hold.
_NOT_IN_FILES = ("self", "random_effects", "encoder", "decoder", "kwargs")


@dataclass(frozen=True)
class Validation:
    """Rows that are held out.

    Attributes:
        fraction: Float in (0, 1), share of the rows; for "groups", of the levels.
        by: "rows" at random, whole "groups", or the "future".
        column: Column of the groups or of the time.
    """

    fraction: float = 0.1
    by: SplitKind = "rows"
    column: str | None = None


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

    Attributes:
        epochs: Positive int, most epochs.
        batch_size: Positive int, rows a step.
        learning_rate: Positive float, of Adam at the first step.
        schedule: "cosine": the rate falls to 0 along half a cosine; "constant".
        patience: Optional positive int: epochs without a lower loss of the held-out rows after
            which training stops, and goes back to the best; `None`: all epochs.
        validation: Rows that are held out; `None`: none.
        seed: Non-negative int, of the split, of initial weights and of sampling.
    """

    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    patience: int | None = None
    validation: Validation | None = Validation()
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """A configuration.

    Attributes:
        features: Feature columns; `None`: all numeric columns that nothing else uses.
        random_effects: Terms.
        model: Arguments of `LMMVAE`, all but the terms.
        training: How it is trained.
    """

    features: tuple[str, ...] | None
    random_effects: tuple[RandomEffect, ...]
    model: dict[str, Any]
    training: TrainingSettings

    def with_features(self, features: Sequence[str]) -> Config:
        """The configuration with its features named."""
        return replace(self, features=tuple(features))

    def mapping(self) -> dict[str, Any]:
        """The configuration as plain values with all defaults, which `parse_config` reads."""
        return {
            "features": None if self.features is None else list(self.features),
            "random_effects": [term_mapping(term) for term in self.random_effects],
            "model": self.model,
            "training": asdict(self.training),
        }

    def make_model(self) -> LMMVAE:
        """A fresh model.

        Raises:
            ValueError: If an argument is out of its range.
        """
        try:
            return LMMVAE(random_effects=self.random_effects, **self.model)
        except TypeError as error:
            raise ValueError(
                f"The model could not be made: {error}. " + received(model=self.model)
            ) from error


def read_config(path: Path) -> Config:
    """Reads a configuration from a YAML file.

    Args:
        path: The file.

    Raises:
        ValueError: If there is no such file, or it is no configuration.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())  # YAML's messages have many lines
        raise ValueError(
            f"The configuration cannot be read: {problem}. " + received(file=str(path))
        ) from error
    return parse_config(given)


def parse_config(given: Any) -> Config:
    """Checks a configuration.

    Args:
        given: What a YAML file holds.

    Raises:
        ValueError: On an unknown key or a value out of its range.

    Example:
        >>> parse_config({"model": {"latent_dim": 2}}).training.epochs
        50
    """
    parts = check_mapping("the configuration", given, _PARTS)
    training = _training(parts.get("training") or {})
    config = Config(
        _features(parts.get("features")),
        tuple(terms_from(parts.get("random_effects"))),
        _model(parts.get("model"), training.seed),
        training,
    )
    config.make_model()  # its checks, before any data are read
    return config


def _features(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or not given or not all(isinstance(x, str) for x in given):
        raise ValueError(
            "`features` must be a list of column names; leave it out for all numeric columns. "
            + received(features=given)
        )
    return tuple(given)


def _model(given: Any, seed: int) -> dict[str, Any]:
    parameters = inspect.signature(LMMVAE.__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if k not in _NOT_IN_FILES}
    model = check_mapping("`model`", given or {}, defaults)
    if "latent_dim" not in model:
        raise ValueError(
            "`model` needs a 'latent_dim', the number of latent variables. " + received(model=model)
        )
    model = {**defaults, "seed": seed, **model}
    if not isinstance(model["hidden_units"], (list, tuple)):
        raise ValueError(
            "`hidden_units` of `model` must be a list of widths. "
            + received(hidden_units=model["hidden_units"])
        )
    return {**model, "hidden_units": list(model["hidden_units"])}


def _training(given: Any) -> TrainingSettings:
    names = [field.name for field in fields(TrainingSettings)]
    given = check_mapping("`training`", given, names)
    if "validation" in given:
        given["validation"] = _validation(given["validation"])
    settings = TrainingSettings(**given)
    for name in ("epochs", "batch_size"):
        check_positive(name, getattr(settings, name), integer=True, minimum=1)
    if settings.patience is not None:
        check_positive("patience", settings.patience, integer=True, minimum=1)
    check_positive("seed", settings.seed, integer=True)
    if isinstance(settings.learning_rate, str):
        raise ValueError(
            "`learning_rate` must be a number; YAML takes 1e-3 for text: write 0.001 or 1.0e-3. "
            + received(learning_rate=settings.learning_rate)
        )
    check_positive("learning_rate", settings.learning_rate)
    _check_choice("schedule", settings.schedule, SCHEDULES)
    return settings


def _validation(given: Any) -> Validation | None:
    """From a fraction, a mapping, or nothing."""
    if given is None or (given == 0 and not isinstance(given, bool)):
        return None
    names = [field.name for field in fields(Validation)]
    if not isinstance(given, dict):
        given = {"fraction": given}
    settings = Validation(**check_mapping("`validation`", given, names))
    _check_choice("by", settings.by, get_args(SplitKind))
    fraction = settings.fraction
    if isinstance(fraction, bool) or not isinstance(fraction, float) or not 0.0 < fraction < 1.0:
        raise ValueError(
            "The `fraction` of `validation` must lie in (0, 1); 0 or null hold nothing out. "
            + received(fraction=fraction)
        )
    if (settings.by == "rows") != (settings.column is None):
        raise ValueError(
            "`validation` by 'groups' or 'future' needs a `column`, by 'rows' none. "
            + received(by=settings.by, column=settings.column)
        )
    return settings


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(
            f"Received an invalid value for `{name}`, expected one of {list(choices)}. "
            + received(**{name: value})
        )
