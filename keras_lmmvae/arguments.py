"""Checks of the arguments of the model."""

from collections.abc import Iterable, Sequence
from typing import Any

from keras_lmmvae.columns import FEATURES
from keras_lmmvae.effects.random_effect import RandomEffect
from keras_lmmvae.formula import as_terms
from keras_lmmvae.validation import check_positive, check_probability, received

__all__ = ["check_arguments", "clone_terms"]

_CHOICES = {
    "posterior": ("conjugate", "amortized"),
    "effects_kl_reduction": ("level", "row"),
    "feature_weights": ("equal", "precision"),
}


def check_arguments(
    *,
    latent_dim: Any,
    hidden_units: Any,
    posterior: Any,
    kl_weight: Any,
    effects_kl_weight: Any,
    effects_kl_reduction: Any,
    noise_variance: Any,
    feature_weights: Any,
    latent_epochs: Any,
    effects_dropout: Any,
) -> None:
    """Raises a ValueError on an argument of `LMMVAE` that is out of its range."""
    check_positive("latent_dim", latent_dim, integer=True, minimum=1)
    if not isinstance(hidden_units, Iterable) or isinstance(hidden_units, str):
        raise ValueError(
            "`hidden_units` must be a sequence of widths, such as (200, 100). "
            + received(hidden_units=hidden_units)
        )
    for units in hidden_units:
        check_positive("hidden_units", units, integer=True, minimum=1)
    if kl_weight != 0:
        check_positive("kl_weight", kl_weight)
    check_positive("effects_kl_weight", effects_kl_weight)
    if noise_variance is not None:
        check_positive("noise_variance", noise_variance)
    if latent_epochs != 0:
        check_positive("latent_epochs", latent_epochs, integer=True, minimum=1)
        if posterior == "amortized":
            raise ValueError(
                "`latent_epochs` goes with posterior='conjugate': the amortized posterior's "
                "effects are trained by gradient steps from the start. "
                + received(latent_epochs=latent_epochs, posterior=posterior)
            )
    if effects_dropout != 0:
        check_probability("effects_dropout", effects_dropout)
        if posterior == "amortized":
            raise ValueError(
                "`effects_dropout` goes with posterior='conjugate'. "
                + received(effects_dropout=effects_dropout, posterior=posterior)
            )
    given = {
        "posterior": posterior,
        "effects_kl_reduction": effects_kl_reduction,
        "feature_weights": feature_weights,
    }
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise ValueError(
                f"Received an invalid value for `{name}`, expected one of {list(_CHOICES[name])}. "
                + received(**{name: value})
            )


def clone_terms(terms: Sequence[RandomEffect] | str) -> list[RandomEffect]:
    """Copies of the terms, or of a formula's, so that two models share no state."""
    terms = as_terms(terms)
    for term in terms:
        if not isinstance(term, RandomEffect):
            raise ValueError(
                "Received an invalid element of `random_effects`, expected terms such as "
                "RandomIntercept('store'). " + received(element=term)
            )
        if FEATURES in term.columns:
            raise ValueError(
                f"An effect column cannot be called '{FEATURES}': that is the features' name. "
                + received(columns=term.columns)
            )
    labels = [term.label for term in terms]
    # Names of weights and signatures hold letters, digits, ".", "-" and "_". The name of a term has
    # "_" for all other characters, so different labels may have one name.
    names = [term.name for term in terms]
    if len(set(names)) != len(names):
        raise ValueError(
            "Two terms of `random_effects` have one name, or names that differ in special "
            "characters only: give one a `name=` of its own. " + received(names=labels)
        )
    return [type(term).from_config(term.get_config()) for term in terms]
