"""The card of a model: its parts, its data, and how it treats unknown keys."""

import hashlib
import platform
from importlib import metadata
from typing import Any

import keras
import numpy as np

from keras_lmmvae.feature_names import listed
from keras_lmmvae.fitted_model import FittedModel

__all__ = ["KEY_POLICY", "data_fingerprint", "model_card", "render_card"]

KEY_POLICY = (
    "A key or place never seen has effect 0 and adds the term's variance to the predictive "
    "variance; an empty string, the smallest int64 and NaN stand for a missing key or position: "
    "effect 0, nothing added. The outputs known_<term> are false in both cases."
)
_PACKAGES = ("keras_lmmvae", "tensorflow", "keras", "tensorflow_probability", "numpy")


def model_card(model: FittedModel) -> dict[str, Any]:
    """The facts about a fitted model, ready for JSON."""
    components = model.variance_components().mean(axis=1)
    noise = float(components["noise"])
    return {
        "model": type(model).__name__,
        "name": model.name,
        "posterior": model.posterior,
        "features": model.num_features,
        "feature_names": model.feature_names,
        "latent_dim": model.latent_dim,
        "parameters": int(
            model.networks.encoder.count_params() + model.networks.decoder.count_params()
        ),
        "terms": [_term_card(term, components) for term in model.random_effects],
        "noise_variance": noise,
        "icc": _intraclass_correlation(model),
        "key_policy": KEY_POLICY,
        "fingerprint": data_fingerprint(model),
        "versions": {**_versions(), "python": platform.python_version()},
    }


def _term_card(term: Any, components: Any) -> dict[str, Any]:
    card: dict[str, Any] = {
        "name": term.name,
        "label": term.label,
        "kind": type(term).__name__,
        "columns": list(term.columns),
        "levels": int(term.num_levels),
        "basis": int(term.basis_size),
        "mean_variance": {name: float(components[name]) for name in term.component_names()},
    }
    length_scale = term.fitted_length_scale
    return card if length_scale is None else {**card, "length_scale": float(length_scale)}


def _intraclass_correlation(model: FittedModel) -> dict[str, float]:
    """Each term's share of the variance around f(u) at an average row, mean over features."""
    variances = {}
    for term, effects in model.mixed_model.pairs():
        share = 1.0 if effects.is_amortized else effects.mean_prior_share()
        variances[term.label] = share * np.asarray(effects.effect_variance, np.float64)
    total = np.asarray(model.noise_variance, np.float64) + sum(variances.values())
    return {label: float((values / total).mean()) for label, values in variances.items()}


def data_fingerprint(model: FittedModel) -> str:
    """SHA-256 of moments, keys and row counts of the levels.

    The same training rows give the same fingerprint in any order. It reveals none of their values.
    """
    digest = hashlib.sha256()
    for variable in (model.feature_mean, model.feature_scale):
        digest.update(np.asarray(variable, np.float32).tobytes())
    for term, effects in model.mixed_model.pairs():
        digest.update(term.label.encode())
        for vocabulary in term.vocabularies().values():
            digest.update("\n".join(map(str, vocabulary.keys)).encode())
        if not effects.is_amortized:
            digest.update(np.asarray(effects.table.count, np.float32).tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return {**found, "keras_backend": keras.backend.backend()}


def render_card(card: dict[str, Any]) -> str:
    """The card as Markdown.

    Example:
        >>> card = {"model": "LMMVAE", "name": "m", "posterior": "conjugate", "features": 2}
        >>> card |= {"latent_dim": 1, "parameters": 10, "terms": [], "noise_variance": 0.5}
        >>> card |= {"icc": {}, "key_policy": "", "fingerprint": "ab", "versions": {}}
        >>> print(render_card(card).splitlines()[0])
        # m: LMMVAE, 2 features, 1 latent dimension
    """
    dims = f"{card['latent_dim']} latent dimension" + ("s" if card["latent_dim"] > 1 else "")
    lines = [f"# {card['name']}: {card['model']}, {card['features']} features, {dims}", ""]
    lines += [f"- posterior of the effects: {card['posterior']}"]
    lines += [f"- parameters of the networks: {card['parameters']:,}"]
    lines += [f"- noise variance, mean over features: {card['noise_variance']:.4g}"]
    names = card.get("feature_names", [])  # cards of version 0.1 have none
    if any(isinstance(name, str) for name in names):
        lines += [f"- features: {listed(names)}"]
    for term in card["terms"]:
        lines.append(f"- {_term_line(term, card['icc'])}")
    lines += ["", card["key_policy"], "", f"Data fingerprint: {card['fingerprint']}"]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    return "\n".join([*lines, "", f"Versions: {versions}"])


def _term_line(term: dict[str, Any], icc: dict[str, float]) -> str:
    parts = [f"{name} {value:.4g}" for name, value in term["mean_variance"].items()]
    levels, basis = term["levels"], term["basis"]
    size = f"{levels:,} levels" if levels > 1 else f"{basis} basis functions"
    facts = [size, f"mean variance {', '.join(parts)}", f"ICC {icc[term['label']]:.2f}"]
    if "length_scale" in term:
        facts.append(f"length scale {term['length_scale']:.4g}")
    return f"{term['kind']} of {', '.join(term['columns'])}: {'; '.join(facts)}"
