"""The most memory that a piece of work used."""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak_megabytes", "reset_peak"]

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak() -> None:
    """Starts a new measurement. Only Linux can; elsewhere the peak is that of the process."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")  # resets the peak resident set size, see proc(5)


def peak_megabytes() -> float:
    """Largest resident set size since `reset_peak`, MB, with libraries and data."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
