"""The log of a run: a file in its folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LOG", "run_log"]

LOG = logging.getLogger("keras_lmmvae.runs")
"""The logger of runs; without `run_log` it writes nowhere."""
LOG.addHandler(logging.NullHandler())
LOG.propagate = False

_FILE = "run.log"


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Appends what is logged to run.log, and the traceback of what ends the run.

    Args:
        folder: Folder of the run.
    """
    handler = logging.FileHandler(folder / _FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.addHandler(handler)
    level = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        yield
    except KeyboardInterrupt:
        LOG.warning("interrupted")
        raise
    except BaseException:
        LOG.exception("failed")
        raise
    finally:
        LOG.setLevel(level)
        LOG.removeHandler(handler)
        handler.close()
