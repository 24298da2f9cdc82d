"""Docstrings of everything public have the house form, and name their arguments as they are."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import keras_lmmvae as lmm
from keras_lmmvae import diagnostics, export

ROOMS = [lmm, diagnostics, export]
ROOMS += [getattr(lmm, name) for name in lmm.__all__ if inspect.ismodule(getattr(lmm, name))]
PUBLIC = {
    f"{room.__name__}.{name}": getattr(room, name)
    for room in ROOMS
    for name in room.__all__
    if callable(getattr(room, name))
}
SECTIONS = "Args Attributes Returns Raises Warns Example References".split()
SECTIONS.insert(2, "Call arguments")

# Contracts, and what others return: the examples are with what makes them.
WITHOUT_EXAMPLE = {
    "keras_lmmvae.LMMVAEWarning",
    "keras_lmmvae.baselines.Baseline",
    "keras_lmmvae.diagnostics.Diagnosis",
    "keras_lmmvae.diagnostics.Finding",
    "keras_lmmvae.diagnostics.LMMVAEWarning",
    "keras_lmmvae.export.Published",
    "keras_lmmvae.layers.LevelPosterior",
    "keras_lmmvae.simulation.Simulation",
}


def sections_of(docstring: str) -> dict[str, str]:
    """Text of every section by its heading, in their order."""
    parts = re.split(r"^([A-Z][a-z]+(?: [a-z]+)?):\n", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries_of(section: str) -> set[str]:
    """Names that a section explains: `mean:`, or `lon, lat:`, at the first indent."""
    lines = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*):", section, re.MULTILINE)
    return {name.strip(" *") for line in lines for name in line.split(",")}


def fields_of(public: Any) -> set[str]:
    """Fields of a record; classes that are none have none."""
    if dataclasses.is_dataclass(public):
        return {field.name for field in dataclasses.fields(public)}
    return set(getattr(public, "_fields", ()))


def arguments_of(function: Callable[..., Any]) -> tuple[set[str], set[str]]:
    """Arguments that must be explained, and those that may: `*args` and `**kwargs`."""
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("self", None)
    parameters.pop("cls", None)
    loose = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    return set(parameters) - loose, loose


def unlike(explained: set[str], function: Callable[..., Any]) -> Iterator[str]:
    """In what the explained arguments differ from those of a function."""
    needed, loose = arguments_of(function)
    if needed - explained:
        yield f"does not explain {sorted(needed - explained)}"
    if explained - needed - loose:
        yield f"explains what is no argument: {sorted(explained - needed - loose)}"


def faults_of_form(docstring: str | None) -> Iterator[str]:
    """In what a docstring differs from one line, a gap, and sections in the order of the house."""
    first, *others = (docstring or "").split("\n")
    if not re.match(r"[`A-Z].*\.$", first):
        yield f"does not start with a sentence on one line: {first!r}"
    if others and others[0]:
        yield "has no gap after its first line"
    headings = list(sections_of(docstring or ""))
    if headings != [name for name in SECTIONS if name in headings]:
        yield f"has sections {headings}, expected some of {SECTIONS} in this order"


def faults_of(name: str, public: Any) -> Iterator[str]:
    """In what the docstring of something public differs from the house form."""
    docstring = inspect.getdoc(public)
    yield from faults_of_form(docstring)
    sections = sections_of(docstring or "")
    is_class = inspect.isclass(public)
    if fields := fields_of(public):
        if missing := fields - entries_of(sections.get("Attributes", "")):
            yield f"does not explain {sorted(missing)}"
    elif not (is_class and issubclass(public, Exception)):
        yield from unlike(
            entries_of(sections.get("Args", "")), public.__init__ if is_class else public
        )
    if not is_class and "Returns" not in sections:
        if inspect.signature(public).return_annotation not in (None, "None"):
            yield "does not say what it returns"
    if name not in WITHOUT_EXAMPLE and ">>> " not in sections.get("Example", ""):
        yield "has no example"


def methods_of(public: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Methods with docstrings of ours, wherever in the package they are defined."""
    for name, method in inspect.getmembers(public, inspect.isfunction):
        if not name.startswith("_") and method.__module__.startswith("keras_lmmvae"):
            if method.__doc__:
                yield name, method


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name(name: str) -> None:
    """One line, then the sections; every argument and nothing else; a result; an example."""
    assert not list(faults_of(name, PUBLIC[name]))


@pytest.mark.parametrize("name", sorted(x for x, y in PUBLIC.items() if inspect.isclass(y)))
def test_methods(name: str) -> None:
    """Methods have the form, too; a section of arguments names them all, in one line none need."""
    faults = []
    for method_name, method in methods_of(PUBLIC[name]):
        docstring = inspect.getdoc(method) or ""
        found = list(faults_of_form(docstring))
        explained = entries_of(sections_of(docstring).get("Args", ""))
        found += unlike(explained, method) if explained else ()
        faults += [f"{method_name} {fault}" for fault in found]
    assert not faults


def test_exceptions_are_few_and_true() -> None:
    """Nothing stands in the list that is gone, or has an example by now."""
    docstrings = {name: inspect.getdoc(PUBLIC[name]) or "" for name in WITHOUT_EXAMPLE}
    assert not [name for name, text in docstrings.items() if "Example" in sections_of(text)]
    assert len(PUBLIC) > 4 * len(WITHOUT_EXAMPLE)


def some_function(first: int, second: int) -> int:
    return first + second


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        (None, "does not start with a sentence on one line: ''"),
        ("adds.", "does not start with a sentence on one line: 'adds.'"),
        ("Adds\n    two.", "does not start with a sentence on one line: 'Adds'"),
        ("Adds.\n    Two.", "has no gap after its first line"),
        ("Adds.\n\n    Args:\n        first: One.\n", "does not explain ['second']"),
        ("Adds.\n\n    Args:\n        third: One.\n", "explains what is no argument: ['third']"),
        ("Adds.", "does not say what it returns"),
        ("Adds.", "has no example"),
        (
            "Adds.\n\n    Returns:\n        A sum.\n\n    Args:\n        first: One.\n",
            f"has sections ['Returns', 'Args'], expected some of {SECTIONS} in this order",
        ),
    ],
)
def test_faults_are_found(docstring: str | None, fault: str) -> None:
    """The checks above can fail."""
    some_function.__doc__ = docstring
    assert fault in list(faults_of("some_function", some_function))


def test_a_good_docstring_has_no_faults() -> None:
    """And they can pass."""
    some_function.__doc__ = """Adds.

    Args:
        first, second: Ints.

    Returns:
        Their sum.

    Example:
        >>> some_function(1, 2)
        3
    """
    assert not list(faults_of("some_function", some_function))
