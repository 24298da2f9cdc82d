"""Where the loaders find their files, and checks of what is in them."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from keras_lmmvae.validation import received

__all__ = ["check_file_columns", "package_file"]


def package_file(package: str, file: str, install: str) -> Path:
    """Finds a data file of an installed package, without importing that package.

    Importing would be slow, and some of these packages need more than their data does.

    Args:
        package: Name under which the package is imported.
        file: Path of the file within the package, with forward slashes.
        install: The command that installs the package, for the error.

    Returns:
        path: Of the file, which exists.

    Raises:
        ImportError: If the package is not installed or has no such file.

    Example:
        >>> package_file("keras_lmmvae", "datasets/sources.py", "pip install keras_lmmvae").name
        'sources.py'
    """
    spec = find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in folders:
        if (path := Path(folder, file)).is_file():
            return path
    reason = "which is not installed" if not folders else f"which has no file {file}"
    raise ImportError(
        f"These data are read out of the package {package}, {reason}. "
        f"Install it with `{install}`. " + received(package=package, file=file)
    )


def check_file_columns(table: pd.DataFrame, columns: Iterable[str], file: str) -> None:
    """Checks that a table read from a file has rows and the columns.

    Args:
        table: DataFrame as it was read.
        columns: Names of the columns that are needed.
        file: Name of the file, for the error.

    Raises:
        ValueError: If a column is missing, or there is no row.

    Example:
        >>> check_file_columns(pd.DataFrame({"Store": [1]}), ["Store"], "store.csv")
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"{file} lacks the column(s) {missing}. " + received(columns=list(table.columns))
        )
    if table.empty:
        raise ValueError(f"{file} has no rows, expected at least one. " + received(rows=0))
