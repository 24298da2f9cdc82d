"""Writes the tutorials as notebooks, without output: python docs/notebooks.py [FOLDER]

The .py files are the source; notebooks are made on demand and never committed. A tutorial is a
header, as on the site of Keras, and cells in the percent format, which Jupytext reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

__all__ = ["as_notebook", "main"]

ROOT = Path(__file__).parents[1]
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def as_notebook(path: Path) -> Any:
    """The notebook of a tutorial: its header as a title, then its cells.

    Args:
        path: The .py file.

    Raises:
        ValueError: If it does not start with a header of `Title:` and `Description:`.
    """
    notebook = jupytext.read(path, fmt="py:percent")
    title = nbformat.v4.new_markdown_cell(_title(path, notebook.cells[0].source))
    cells = [title, *notebook.cells[1:]]
    for number, cell in enumerate(cells):
        # Those of Jupytext are random, and a file should be made twice alike.
        cell["id"] = f"cell-{number}"
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def _title(path: Path, header: str) -> str:
    lines = (line.partition(":") for line in header.strip().strip('"').strip().splitlines())
    entries = {name: value.strip() for name, _, value in lines}
    if not {"Title", "Description"} <= set(entries):
        raise ValueError(
            "A tutorial must start with a docstring of `Title:` and `Description:`. "
            f"Received: path={path}, entries={sorted(entries)}"
        )
    return f"# {entries['Title']}\n\n{entries['Description']}"


def main(folder: Path) -> None:
    """Writes one notebook a tutorial.

    Args:
        folder: Where to; made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "tutorials").glob("*.py")):
        target = folder / f"{path.stem}.ipynb"
        nbformat.write(as_notebook(path), target)
        print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "notebooks")
