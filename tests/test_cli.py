"""The command line: help with examples, exit states, one-line errors."""

import json
import shlex
import sys

import pytest
import typer
import yaml
from typer.testing import CliRunner

from keras_lmmvae import cli
from keras_lmmvae.runs import command as command_of_runs
from keras_lmmvae.runs import running

RUNNER = CliRunner()


def run_main(monkeypatch, *arguments):
    """Exit status of `keras-lmmvae ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["keras-lmmvae", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


COMMANDS = typer.main.get_command(cli.app).commands


def test_commands():
    """Those of the contract, and none without a test of its help."""
    names = {"fit", "evaluate", "transform", "export", "inspect", "simulate"}
    assert set(COMMANDS) == names


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_an_example(name):
    """And the example can be parsed, with every option it names."""
    result = RUNNER.invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0
    assert f"Example: keras-lmmvae {name}" in result.output
    program, command_name, *arguments = shlex.split(COMMANDS[name].epilog.removeprefix("Example: "))
    assert (program, command_name) == ("keras-lmmvae", name)
    context = COMMANDS[name].make_context(name, arguments)
    assert not context.args


def test_without_a_command_there_is_help():
    assert "evaluate" in RUNNER.invoke(cli.app, []).output


def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path):
    status = run_main(monkeypatch, "simulate", "nope", "--output", str(tmp_path / "x.csv"))
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert "There is no simulated suite 'nope'" in captured.err
    assert "Received: suite='nope'" in captured.err
    assert "Traceback" not in captured.err


def test_example_configuration_is_printed(capsys, monkeypatch):
    """Without any argument, ready to be redirected into a file."""
    assert run_main(monkeypatch, "fit", "--example") == 0
    output = capsys.readouterr().out
    assert set(yaml.safe_load(output)) == {"random_effects", "model", "training"}


def test_first_steps(monkeypatch, capsys, tmp_path):
    """The commands in the example's first lines work one after the other."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--table", "longitudinal", "--rows", "300", "-o", "patients.csv"]
    assert run_main(monkeypatch, "simulate", "tiny", *arguments) == 0
    config = yaml.safe_load(command_of_runs.example_config())
    config["training"]["epochs"] = 1
    monkeypatch.setattr(running, "draw_pictures", lambda *arguments: ["a picture"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    output = "runs/patients"
    assert run_main(monkeypatch, "fit", "config.yaml", "patients.csv", "-o", output) == 0
    capsys.readouterr()
    assert run_main(monkeypatch, "evaluate", output, "patients.csv", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 300
    assert run_main(monkeypatch, "transform", output, "patients.csv", "-o", "latents.csv") == 0
    assert "300 rows, 4 columns: latents.csv" in capsys.readouterr().out
    assert run_main(monkeypatch, "fit", "config.yaml", "patients.csv", "-o", output) == 2
    error = capsys.readouterr().err
    assert error.startswith("keras-lmmvae: The output holds a run already")
    assert error.count("\n") == 1


def test_interrupted_fit_is_one_line(monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt("interrupted after epoch 1 of 2.")

    monkeypatch.setattr(command_of_runs, "fit", stop)
    assert run_main(monkeypatch, "fit", "c.yaml", "d.csv", "-o", "run") == 130
    assert capsys.readouterr().err == "keras-lmmvae: interrupted after epoch 1 of 2.\n"


def test_files_that_cannot_be_written_are_one_line(monkeypatch, capsys):
    def fail(*arguments, **options):
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr(command_of_runs, "fit", fail)
    assert run_main(monkeypatch, "fit", "c.yaml", "d.csv", "-o", "run") == 2
    assert capsys.readouterr().err == "keras-lmmvae: [Errno 13] Permission denied: 'runs'\n"
