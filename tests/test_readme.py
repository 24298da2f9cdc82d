"""The README's ten lines run as they stand, and its files exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import keras_lmmvae as lmm

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ten_lines(monkeypatch, capsys):
    """On every twentieth house and for one epoch; the rest is as printed there."""
    pytest.importorskip("matplotlib").use("Agg")
    (block,) = re.findall(r"```python\n(import .*?)```", TEXT, re.DOTALL)
    load, fit = lmm.datasets.load_houses, lmm.LMMVAE.fit
    monkeypatch.setattr(lmm.datasets, "load_houses", lambda: load()[::20])
    monkeypatch.setattr(lmm.LMMVAE, "fit", lambda self, x, **k: fit(self, x, **{**k, "epochs": 1}))
    made: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), made)  # noqa: S102 - our own text
    printed = capsys.readouterr().out.splitlines()
    expected = re.search(r"```\n( +price.*?)```", TEXT, re.DOTALL)
    assert expected is not None
    shown = expected.group(1).splitlines()
    assert printed[0].split() == shown[0].split()
    assert [line.split()[0] for line in printed[1:]] == [line.split()[0] for line in shown[1:]]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    missing = [name for name in targets if "://" not in name and not (ROOT / name).exists()]
    assert targets
    assert not missing, missing
