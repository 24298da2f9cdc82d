"""Real tables: standardised by their training rows, at most 20,000 rows."""

from __future__ import annotations

from keras_lmmvae.benchmark.table import Table

__all__ = ["labelled", "tables"]


def tables() -> list[Table]:
    """Real tables."""
    return []


def labelled() -> list[Table]:
    """Tables with labels."""
    return []
