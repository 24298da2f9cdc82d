"""Tables in files: CSV and Parquet, by the suffix."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from keras_lmmvae.errors import received
from keras_lmmvae.files import written_whole

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_suffix", "check_table", "read_table", "write_table"]

CSV, PARQUET = ".csv", ".parquet"


def check_suffix(path: Path) -> str:
    """The suffix of a table's file."""
    suffix = path.suffix.lower()
    if suffix not in (CSV, PARQUET):
        raise ValueError(
            f"A table must be a file '*{CSV}' or '*{PARQUET}'. " + received(file=str(path))
        )
    if suffix == PARQUET and find_spec("pyarrow") is None:
        raise ImportError(
            "Parquet files need PyArrow: install it with `pip install keras-lmmvae[parquet]`, "
            "or use a .csv file."
        )
    return suffix


def check_table(path: Path) -> str:
    """The suffix of a table's file that can be opened; pandas is not imported for this."""
    suffix = check_suffix(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(
            f"The table cannot be read: {error}. " + received(file=str(path))
        ) from error
    return suffix


def read_table(path: Path) -> pd.DataFrame:
    """Reads a table. Empty cells and "NA" are missing values."""
    suffix = check_table(path)
    import pandas as pd

    try:
        if suffix == CSV:
            # In chunks, a column could change its type on the way.
            frame = pd.read_csv(path, low_memory=False)
        else:
            frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(
            f"The table cannot be read: {problem}. " + received(file=str(path))
        ) from error
    frame.columns = [str(name) for name in frame.columns]
    if frame.empty:
        raise ValueError("The table has no rows. " + received(file=str(path)))
    return frame


def write_table(frame: pd.DataFrame, path: Path, *, index: bool = False) -> None:
    """Writes a table, whole or not at all."""
    suffix = check_suffix(path)
    # Both formats get plain columns with text as names.
    frame = frame.reset_index() if index else frame
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    twice = frame.columns[frame.columns.duplicated()].tolist()
    if twice:
        raise ValueError(
            "A table cannot have two columns of one name: rename those of the data. "
            + received(columns=twice)
        )
    with written_whole(path) as fresh:
        if suffix == CSV:
            frame.to_csv(fresh, index=False)
        else:
            frame.to_parquet(fresh, engine="pyarrow", index=False)
