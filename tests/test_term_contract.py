"""Every term of the package keeps the contract of terms; a new one is found without a list."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from term_contract import check_term

import keras_lmmvae as lmm
from keras_lmmvae import effects, kernels
from keras_lmmvae.effects.grouped_effect import GroupedEffect
from keras_lmmvae.effects.random_effect import RandomEffect, term_classes

ROWS, LEVELS = 48, 6
RNG = np.random.default_rng(0)
CODES = np.concatenate([np.arange(LEVELS), RNG.integers(0, LEVELS, ROWS - LEVELS)])
TIME = RNG.uniform(2000.0, 2010.0, ROWS)
PLACES = RNG.uniform(0.0, 10.0, (9, 2))
AT = np.concatenate([np.arange(9), RNG.integers(0, 9, ROWS - 9)])
DATA: dict[str, Any] = {
    "x": RNG.normal(size=(LEVELS, 3))[CODES] * [1.0, 5.0, 0.2] + RNG.normal(size=(ROWS, 3)),
    "store": np.array(["c", "a", "b b", "d", "e", "f"])[CODES],
    "number": np.array([30, -1, 4, 7, 8, 9])[CODES],
    "time": TIME,
    "dose": RNG.exponential(1e-2, ROWS),
    "east": PLACES[AT, 0],
    "north": PLACES[AT, 1],
}
DATA["x"] = DATA["x"] + 0.1 * (TIME[:, None] - 2005.0) + 0.2 * PLACES[AT, :1]

ABSTRACT: set[type[RandomEffect]] = {GroupedEffect}
"""Bases of terms, of which there are no terms."""

# The cases of every class of terms. A new class needs an entry here, and nothing else.
CASES: dict[type[RandomEffect], dict[str, Callable[[], RandomEffect]]] = {
    lmm.RandomIntercept: {
        "integers": lambda: lmm.RandomIntercept("number", name="a number"),
    },
    lmm.RandomSlopes: {
        "strings": lambda: lmm.RandomSlopes("store", time="time", degree=2, covariates=["dose"]),
    },
    lmm.SpatialEffect: {
        "few points of a sum": lambda: lmm.SpatialEffect(
            ("east", "north"),
            kernel=kernels.Stationary("rbf") + kernels.Stationary("matern32"),
            length_scale=2.0,
            num_inducing=4,
        ),
        "globe": lambda: lmm.SpatialEffect(("east", "north"), metric="haversine"),
    },
}


def package_terms() -> list[type[RandomEffect]]:
    """The concrete subclasses of RandomEffect in the package, whether exported or not."""
    for module in pkgutil.walk_packages(effects.__path__, f"{effects.__name__}."):
        importlib.import_module(module.name)
    found = dict.fromkeys(term_classes(RandomEffect))
    return [
        kind
        for kind in found
        if kind.__module__.startswith("keras_lmmvae.") and kind not in ABSTRACT
    ]


def test_every_term_has_a_case():
    """A term without a case is not checked: it must have one."""
    terms = package_terms()
    assert lmm.RandomIntercept in terms
    missing = [kind.__name__ for kind in terms if not CASES.get(kind)]
    assert not missing, f"{missing} are terms without a case: add one to CASES in this file"
    for kind, cases in CASES.items():
        assert all(type(make()) is kind for make in cases.values()), kind


def test_discovery_finds_a_new_class():
    """A subclass that is defined anywhere in the package is found, and lacks a case."""
    kind = type("Unheard", (GroupedEffect,), {"__module__": "keras_lmmvae.effects.unheard"})
    try:
        assert kind in package_terms()
        with pytest.raises(AssertionError, match=r"\['Unheard'\] are terms without a case"):
            test_every_term_has_a_case()
    finally:
        kind.__module__ = "tests"  # out of the way of the other tests


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in package_terms() for name in CASES.get(kind, {})]
)
def test_term_keeps_the_contract(kind, name, tmp_path):
    """The term is saved, served, conditioned and tabled as every term, and is its dense Z."""
    check_term(CASES[kind][name], DATA, tmp_path)
