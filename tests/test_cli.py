"""The command line: help with examples, exit states, one-line errors."""

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

import keras_lmmvae
from keras_lmmvae import cli
from keras_lmmvae.runs import command, running

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
    assert "simulate" in RUNNER.invoke(cli.app, []).output


def test_version(capsys, monkeypatch):
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"keras-lmmvae {keras_lmmvae.__version__}\n"


TABLE, CONFIG = "a\n1\n", "model: {latent_dim: 1}\n"
MISTAKES = {
    "unknown command": (["fitt"], "No such command 'fitt'. Did you mean 'fit'?"),
    "unknown option": (["fit", "--overwrit"], "No such option"),
    "missing argument": (["fit", "config.yaml"], "Missing argument 'DATA'"),
    "missing option": (["fit", "config.yaml", "data.csv"], "Missing option"),
    "wrong type": (
        ["simulate", "tiny", "-o", "t.csv", "--rows", "x"],
        "Invalid value for '--rows'",
    ),
    "missing config": (["fit", "no.yaml", "data.csv", "-o", "run"], "file='no.yaml'"),
    "missing table": (["fit", "config.yaml", "no.csv", "-o", "run"], "file='no.csv'"),
    "suffix of a table": (
        ["fit", "config.yaml", "config.yaml", "-o", "run"],
        "must be a file '*.csv'",
    ),
    "no YAML": (
        ["fit", "broken.yaml", "data.csv", "-o", "run"],
        "The configuration cannot be read",
    ),
    "bad value": (["fit", "bad.yaml", "data.csv", "-o", "run"], "Received: training.epochs='ten'"),
    "unknown key": (["fit", "key.yaml", "data.csv", "-o", "run"], "did you mean 'training'?"),
    "output in the way": (["fit", "config.yaml", "data.csv", "-o", "."], "is no folder of a run"),
    "run in the way": (["fit", "config.yaml", "data.csv", "-o", "done"], "holds a run already"),
    "missing run": (["evaluate", "no", "data.csv"], "There is no model"),
    "damaged run": (["evaluate", "done", "data.csv"], "damaged or no Keras model"),
    "table of a run": (["evaluate", "done", "no.csv"], "file='no.csv'"),
    "suffix of latents": (["transform", "done", "data.csv", "-o", "out.txt"], "file='out.txt'"),
    "table as output": (["transform", "done", "data.csv", "-o", "data.csv"], "is the table itself"),
    "missing model": (["export", "no", "-o", "models/m"], "There is no model"),
    "version in the way": (["export", "zip.keras", "-o", "models/1"], "This version is there"),
    "missing card": (["inspect", "no"], "There is no model"),
    "suffix of rows": (["simulate", "tiny", "-o", "rows.txt"], "file='rows.txt'"),
}
ANSWERS = {
    "help": (["--help"], 0),
    "version": (["--version"], 0),
    "nothing": ([], 0),
    "example": (["fit", "--example"], 0),
    **{f"help of {name}": ([name, "--help"], 0) for name in COMMANDS},
    **{name: (arguments, 2) for name, (arguments, _) in MISTAKES.items()},
}
# Prints a line for each command: its exit status and the heavy packages imported by then.
PROGRAM = """
import json, sys
from keras_lmmvae import cli
heavy = {"tensorflow", "tensorflow_probability", "keras", "sklearn", "pandas"}
answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["keras-lmmvae", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        answers.append([stop.code or 0, sorted(heavy & set(sys.modules))])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files with mistakes in them."""
    folder = tmp_path_factory.mktemp("mistakes")
    texts = {
        "config.yaml": CONFIG,
        "broken.yaml": "model: {latent_dim: 1",
        "bad.yaml": CONFIG + "training: {epochs: ten}\n",
        "key.yaml": CONFIG + "trainin: {}\n",
        "data.csv": TABLE,
        "done/model.keras": "no model",
    }
    with zipfile.ZipFile(folder / "zip.keras", "w"):
        (folder / "models" / "1").mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    """Name -> status and heavy packages, all from one process; and what it wrote as errors."""
    commands = json.dumps([arguments for arguments, _ in ANSWERS.values()])
    root = str(Path(keras_lmmvae.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, commands],
        cwd=folder, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    return dict(zip(ANSWERS, found, strict=True)), result.stderr.splitlines()


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_without_tensorflow(answers, name):
    """Help, version and every mistake are told before heavy packages are imported."""
    status, heavy = answers[0][name]
    assert status == ANSWERS[name][1]
    assert heavy == []


def test_mistakes_are_one_line_each(answers):
    lines = answers[1]
    assert len(lines) == len(MISTAKES)
    for line, (name, (_, message)) in zip(lines, MISTAKES.items(), strict=True):
        assert line.startswith("keras-lmmvae: "), name
        assert message in line, name


def test_interruption(monkeypatch, capsys):
    """Wherever a command is, and Typer's own answer to Ctrl-C is not seen."""

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", stop)
    assert run_main(monkeypatch, "evaluate", "run", "d.csv") == 130
    assert capsys.readouterr().err == "keras-lmmvae: interrupted.\n"


def test_mistakes_of_ours_keep_their_traceback(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(command, "evaluate", fail)
    monkeypatch.setattr(sys, "argv", ["keras-lmmvae", "evaluate", "run", "d.csv"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


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
    config = yaml.safe_load(command.example_config())
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

    monkeypatch.setattr(command, "fit", stop)
    assert run_main(monkeypatch, "fit", "c.yaml", "d.csv", "-o", "run") == 130
    assert capsys.readouterr().err == "keras-lmmvae: interrupted after epoch 1 of 2.\n"


def test_files_that_cannot_be_written_are_one_line(monkeypatch, capsys):
    def fail(*arguments, **options):
        raise PermissionError(13, "Permission denied", "runs")

    monkeypatch.setattr(command, "fit", fail)
    assert run_main(monkeypatch, "fit", "c.yaml", "d.csv", "-o", "run") == 2
    assert capsys.readouterr().err == "keras-lmmvae: [Errno 13] Permission denied: 'runs'\n"
