"""`python -m benchmarks`: suites listed, exit states, one-line errors, interruptions."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer

from benchmarks import __main__ as cli
from benchmarks import command

ROOT = Path(__file__).parents[1]


def run_main(monkeypatch, *arguments):
    """Exit status of `python -m benchmarks ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


def test_help_has_an_example(monkeypatch, capsys):
    """And the example can be parsed, with every option it names."""
    assert run_main(monkeypatch, "--help") == 0
    output = capsys.readouterr().out
    assert "Usage: python -m benchmarks" in output
    assert "Example: python -m benchmarks paper-small" in output
    parsed = typer.main.get_command(cli.app)
    *program, suite, option, value = shlex.split(parsed.epilog.removeprefix("Example: "))
    assert program == ["python", "-m", "benchmarks"]
    parameters = parsed.make_context("benchmarks", [suite, option, value]).params
    assert (parameters["suite"], parameters["jobs"]) == ("paper-small", 2)


def test_suites_are_listed(monkeypatch, capsys):
    assert run_main(monkeypatch, "--list") == 0
    output = capsys.readouterr().out
    for name in ("tiny", "core", "paper-small", "paper-full", "real", "classification"):
        assert name in output


def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path):
    status = run_main(monkeypatch, "nope", "--output", str(tmp_path))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("benchmarks: There is no suite 'nope'")
    assert "Received: suite='nope'" in captured.err
    assert "Traceback" not in captured.err


def test_interruption(monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "benchmark", stop)
    assert run_main(monkeypatch, "tiny") == 130
    message = "benchmarks: interrupted; what was done is saved, run it again.\n"
    assert capsys.readouterr().err == message


@pytest.mark.slow
def test_processes_are_stopped_by_control_c(tmp_path):
    """Ctrl-C reaches all processes: cells that were done stay, one line, exit status 130."""
    arguments = ["tiny", "--jobs", "2", "--output", str(tmp_path)]
    arguments += ["--method", "pca", "--method", "lmmvae-amortized"]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        first = next(line for line in process.stdout if "mse" in line)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "pca" in first
    assert process.returncode == 130
    assert errors.endswith("benchmarks: interrupted; what was done is saved, run it again.\n")
    assert "Traceback" not in errors
    assert "pca" in list(pd.read_csv(tmp_path / "tiny.csv")["method"])


def test_part_of_a_suite(monkeypatch, tmp_path):
    """Options pick the part; the files lie where they were asked for."""
    arguments = ["--method", "pca", "--method", "blup-pca", "--table", "categorical", "--seed", "0"]
    arguments += ["--latent-dim", "1", "--output", str(tmp_path)]
    assert run_main(monkeypatch, "tiny", *arguments) == 0
    lines = (tmp_path / "tiny.csv").read_text().splitlines()
    assert len(lines) == 3
    assert run_main(monkeypatch, "tiny", "--report-only", "-o", str(tmp_path)) == 0


def test_failed_fits_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "benchmark", lambda *arguments, **options: 3)
    assert run_main(monkeypatch, "tiny", "-o", str(tmp_path)) == 1
