"""Files and folders that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["written_whole"]


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Gives a path to write to; what lies there when the block ends takes the place of `path`.

    The new file or folder is written beside its place and renamed. If the block fails, what was
    at `path` before stays as it was. Missing parent folders are made.

    Args:
        path: The file or folder to write. One that is there is replaced.

    Yields:
        A path of the same name in a scratch folder beside `path`. Nothing is there yet.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_whole(f"{folder}/notes.txt") as fresh:
        ...         _ = fresh.write_text("done")
        ...     Path(folder, "notes.txt").read_text()
        'done'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
        fresh = Path(scratch) / target.name
        yield fresh
        if target.is_dir():  # A rename replaces a file, but no folder that holds something.
            os.replace(target, Path(scratch) / ".before")
        os.replace(fresh, target)
