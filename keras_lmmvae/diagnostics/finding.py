"""A finding, and the report that holds all of them."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

import pandas as pd

__all__ = ["Diagnosis", "Finding", "LMMVAEWarning", "Severity"]

Severity = Literal["warning", "note"]
"""A warning: results are worse than need be, or not to be trusted. A note: good to know."""

_WIDTH = 96


class LMMVAEWarning(UserWarning):
    """A finding of severity "warning", given at the end of `fit`; see `diagnose`."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        name: The check, such as "latent_collapse".
        severity: "warning" or "note".
        where: The subject: a latent dimension, a term, features, the held-out rows.
        numbers: What was measured, by name.
        message: What that means.
        remedy: What can be done.
    """

    name: str
    severity: Severity
    where: str
    numbers: dict[str, float]
    message: str
    remedy: str

    def __str__(self) -> str:
        measured = ", ".join(f"{name}={value:.4g}" for name, value in self.numbers.items())
        parts = [self.message, f"Measured: {measured}.", f"Remedy: {self.remedy}"]
        body = [textwrap.fill(part, _WIDTH, initial_indent="  ", subsequent_indent="  ")
                for part in parts]  # fmt: skip
        return "\n".join([f"{self.severity.upper()} {self.name}, {self.where}", *body])


@dataclass(frozen=True)
class Diagnosis:
    """The findings of `diagnose`, warnings first. Iterating over it gives the findings.

    Attributes:
        findings: All findings.
        checks: Names of the checks that were made.
        skipped: Check -> why it could not be made.
    """

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """Whether there is no finding of severity "warning"."""
        return not any(finding.severity == "warning" for finding in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __bool__(self) -> bool:
        """Always true, because a report without findings is a report, too; see `is_healthy`."""
        return True

    def __str__(self) -> str:
        warnings = sum(finding.severity == "warning" for finding in self.findings)
        notes = len(self.findings) - warnings
        head = f"{len(self.checks)} checks: {_count(warnings, 'warning')}, {_count(notes, 'note')}."
        skipped = [f"Not checked: {name}, {reason}" for name, reason in self.skipped.items()]
        skipped = [textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in skipped]
        return "\n\n".join(
            [head, *map(str, self.findings), *(["\n".join(skipped)] * bool(skipped))]
        )

    def to_frame(self) -> pd.DataFrame:
        """The findings as a DataFrame, one a row; "numbers" holds the dict of what was measured."""
        columns = [column.name for column in fields(Finding)]
        return pd.DataFrame([vars(finding) for finding in self.findings], columns=columns)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
