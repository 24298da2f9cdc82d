"""The results of a suite as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.published import published_comparison
from benchmarks.suites import Suite
from benchmarks.summary import (
    TABLE,
    Frame,
    ordered_methods,
    pivot,
    regret_ratios,
    within_one_error,
)

__all__ = ["markdown_table", "write_report"]

Section = Callable[[Frame], list[str]]


def write_report(suite: Suite, frame: Frame, path: Path) -> None:
    """Writes the tables of a suite's results.

    Args:
        suite: The suite.
        frame: Its results.
        path: The Markdown file.
    """
    lines = [f"# {suite.name}", "", suite.title + ".", ""]
    lines += [f"    python -m benchmarks {suite.name}", ""]
    for section in _sections(suite, frame):
        lines += [*section(frame), ""]
    lines += ["Versions: " + "; ".join(sorted(frame["versions"].unique())) + "."]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sections(suite: Suite, frame: Frame) -> list[Section]:
    if suite.measure == "classification":
        return [_classification]
    simulated = "oracle" in frame and frame["oracle"].notna().any()
    sections: list[Section] = [_errors]
    if simulated and "lmmvae" in set(frame["method"]):
        sections += [_regrets, _published, _recovery]
    return [*sections, _likelihood, _cost]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table.

    Example:
        >>> markdown_table(["a", "b"], [["1", "2"]])
        ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _errors(frame: Frame) -> list[str]:
    """Test MSE of all methods; bold: the best, and those within one standard error of it."""
    mean, error = pivot(frame, "mse")
    bold = within_one_error(frame)
    simulated = "oracle" in frame and frame["oracle"].notna().any()
    oracle: Frame = frame.groupby(TABLE, sort=False)["oracle"].mean() if simulated else None
    rows = []
    for table, values in mean.iterrows():
        cells = [
            _cell(value, error.loc[table, method], bool(bold.loc[table, method]))
            for method, value in values.items()
        ]
        rows.append([*_names(table), *([f"{oracle[table]:.3f}"] if simulated else []), *cells])
    header = [*TABLE, *(["oracle"] if simulated else []), *mean.columns]
    note = "Bold: lowest, or within one standard error of the lowest (of the paired difference)."
    return ["## Test MSE", "", note, "", *markdown_table(header, rows)]


def _regrets(frame: Frame) -> list[str]:
    """LMMVAE against the oracle and against the amortized posterior."""
    ratios = regret_ratios(frame)
    rows = [
        [*_names(table), *(_number(value) for value in values)]
        for table, values in ratios.iterrows()
    ]
    mean = ratios["regret"].mean() / ratios["amortized_regret"].mean()
    summary = (
        f"Mean regret of lmmvae: {ratios['regret'].mean():.3f}; of lmmvae-amortized: "
        f"{ratios['amortized_regret'].mean():.3f}; their ratio: {mean:.3f}; mean of the ratios: "
        f"{ratios['ratio'].mean():.3f}; largest: {ratios['ratio'].max():.3f}. Largest MSE over "
        f"the oracle's: {ratios['of_oracle'].max():.3f}."
    )
    header = [*TABLE, "lmmvae", "oracle", "over oracle", "regret", "amortized regret", "ratio"]
    return ["## Regret of LMMVAE", "", summary, "", *markdown_table(header, rows)]


def _published(frame: Frame) -> list[str]:
    """Our excess over the noise floor beside the published one."""
    rows = published_comparison(frame)
    if rows.empty:
        return []
    header = [*TABLE, "method", "MSE", "published MSE", "excess", "published excess", "ratio"]
    lines = [
        [*_names(row[:3]), str(row[3]), *(_number(value) for value in row[4:])]
        for row in rows.itertuples(index=False)
    ]
    return ["## Beside the published numbers", "", *markdown_table(header, lines)]


def _recovery(frame: Frame) -> list[str]:
    """Recovery of effects, variances and latents."""
    measures = ["effects_correlation", "coverage", "variance_error", "latent_correlation"]
    lmmvae = frame[frame["method"] == "lmmvae"].groupby(TABLE, sort=False)[measures].mean()
    other, _ = pivot(frame, "latent_correlation")
    header = [
        *TABLE,
        "r of effects",
        "90 % intervals cover",
        "variances off",
        *(f"r of u, {method}" for method in other.columns),
    ]
    rows = []
    for table, values in lmmvae.iterrows():
        cells = [_number(values["effects_correlation"]), _percent(values["coverage"])]
        cells += [_percent(values["variance_error"])]
        rows.append([*_names(table), *cells, *(_number(value) for value in other.loc[table])])
    return ["## Recovery of the truth", "", *markdown_table(header, rows)]


def _likelihood(frame: Frame) -> list[str]:
    """Negative log-likelihood: bound, and importance-weighted bound."""
    lines = ["## Negative log-likelihood, nats per row"]
    for column, name in (
        ("loglik_iw", "Importance-weighted, 20 draws (linear methods: exact)"),
        ("loglik", "Evidence bound"),
    ):
        mean, _ = pivot(frame, column)
        rows = []
        for table, values in mean.iterrows():
            # Printed numbers are compared, so that numbers that look equal are both bold.
            shown = [f"{-v:.2f}" if v == v else "" for v in values]
            best = f"{-values.max():.2f}"
            cells = [_bold(text, text == best) for text in shown]
            rows.append([*_names(table), *cells])
        lines += ["", name + ".", "", *markdown_table([*TABLE, *mean.columns], rows)]
    return lines


def _cost(frame: Frame) -> list[str]:
    """Seconds of a fit and peak memory, medians over tables and seeds."""
    cells = frame.groupby("method", sort=False)[["seconds", "cpu_seconds", "peak_mb"]].median()
    rows = [
        [method, *(_amount(value) for value in cells.loc[method])]
        for method in ordered_methods(frame)
    ]
    header = ["method", "seconds of a fit", "processor seconds", "peak memory of the process, MB"]
    return ["## Cost (medians)", "", *markdown_table(header, rows)]


def _classification(frame: Frame) -> list[str]:
    """Accuracy by classifier."""
    lines = ["## Accuracy on held-out groups"]
    for classifier, part in frame.groupby("classifier", sort=False):
        mean, error = pivot(part, "accuracy")
        rows = []
        for table, values in mean.iterrows():
            best = values.max()
            cells = [
                _cell(value, error.loc[table, method], value == best)
                for method, value in values.items()
            ]
            rows.append([*_names(table), *cells])
        lines += ["", f"{classifier}.", "", *markdown_table([*TABLE, *mean.columns], rows)]
    return lines


def _names(table: Sequence[object]) -> list[str]:
    return [str(part) for part in table]


def _cell(value: float, error: float, is_bold: bool) -> str:
    if value != value:
        return ""
    text = _number(value) if error != error else f"{_number(value)} ± {error:.3f}"
    return _bold(text, is_bold)


def _bold(text: str, is_bold: bool) -> str:
    return f"**{text}**" if is_bold else text


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _percent(value: float) -> str:
    return "" if value != value else f"{100 * value:.0f} %"
