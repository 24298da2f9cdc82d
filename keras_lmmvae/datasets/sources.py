"""Finding and checking the files of the loaders."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from keras_lmmvae.validation import received

__all__ = ["check_file_columns", "package_file"]


def package_file(package: str, file: str, install: str) -> Path:
    """Finds a data file of an installed package without importing that package.

    An import would be slow and may fail, because some packages are installed without their
    dependencies.

    Args:
        package: Name of the package in an import statement.
        file: Path of the file within the package, with forward slashes.
        install: Command that installs the package, for the error text.

    Returns:
        path: Path of the file.

    Raises:
        ImportError: If the package is not installed or does not have the file.

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
        f"These data are part of the package {package}, {reason}. "
        f"Install it with `{install}`. " + received(package=package, file=file)
    )


def check_file_columns(table: pd.DataFrame, columns: Iterable[str], file: str) -> None:
    """Checks that a table from a file has rows and the required columns.

    Args:
        table: DataFrame with the content of the file.
        columns: Names of the required columns.
        file: Name of the file, for the error text.

    Raises:
        ValueError: If a column is missing, or if there are no rows.

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
