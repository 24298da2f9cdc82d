"""The command line: help with examples, exit states, one-line errors."""

import sys

import pytest
from typer.testing import CliRunner

from keras_lmmvae import cli, demo
from keras_lmmvae.benchmark import command

RUNNER = CliRunner()


def run_main(monkeypatch, *arguments):
    """Exit status of `keras-lmmvae ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["keras-lmmvae", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


@pytest.mark.parametrize("name", ["benchmark", "suites", "export", "inspect", "demo"])
def test_help_has_an_example(name):
    result = RUNNER.invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: keras-lmmvae {name}" in result.output


def test_without_a_command_there_is_help():
    assert "benchmark" in RUNNER.invoke(cli.app, []).output


def test_suites_are_listed(monkeypatch, capsys):
    assert run_main(monkeypatch, "suites") == 0
    output = capsys.readouterr().out
    for name in ("tiny", "paper-small", "paper-full", "real", "classification"):
        assert name in output


def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path):
    status = run_main(monkeypatch, "benchmark", "nope", "--output", str(tmp_path))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert "There is no suite 'nope'" in captured.err
    assert "Received: suite='nope'" in captured.err
    assert "Traceback" not in captured.err


def test_interruption(monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "benchmark", stop)
    assert run_main(monkeypatch, "benchmark", "tiny") == 130
    assert "what was done is saved" in capsys.readouterr().err


def test_part_of_a_suite(monkeypatch, tmp_path):
    """Options pick the part; the files lie where they were asked for."""
    arguments = ["--method", "pca", "--method", "blup-pca", "--table", "categorical", "--seed", "0"]
    arguments += ["--latent-dim", "1", "--output", str(tmp_path)]
    assert run_main(monkeypatch, "benchmark", "tiny", *arguments) == 0
    lines = (tmp_path / "tiny.csv").read_text().splitlines()
    assert len(lines) == 3
    assert run_main(monkeypatch, "benchmark", "tiny", "--report-only", "-o", str(tmp_path)) == 0


def test_failed_fits_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "benchmark", lambda *arguments, **options: 3)
    assert run_main(monkeypatch, "benchmark", "tiny", "-o", str(tmp_path)) == 1


def test_demo_gets_its_options(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(demo, "run", lambda output, epochs: seen.update({output: epochs}))
    assert run_main(monkeypatch, "demo", "--output", str(tmp_path), "--epochs", "3") == 0
    assert seen == {tmp_path: 3}
