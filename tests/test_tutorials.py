"""Tutorials run from top to bottom on reduced data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.py"))


def test_tutorials_are_found() -> None:
    """Discovery does not rot to nothing."""
    assert "quickstart.py" in [path.name for path in TUTORIALS]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path: Path, tmp_path: Path) -> None:
    """A tutorial finishes without an error, is short, and has the header of the Keras site."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 300
    assert text.startswith('"""\nTitle: ')
    environment = {**os.environ, "KERAS_LMMVAE_FAST": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    run = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
