"""Tutorials run from top to bottom on reduced data, and become notebooks."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))
HEADER = re.compile(
    r'# %% \[markdown\]\n"""\n# (?P<title>[^\n]{5,80})\n\n(?P<description>[^\n]{10,98}\.)\n\n## '
)
MOST_LINES = 299
EXPECTED = {
    "from_lme4_and_scikit_learn",
    "many_categories",
    "quickstart",
    "repeated_measures",
    "serving",
    "several_structures",
    "space",
    "your_own_encoder_and_term",
}

# All but the first page: they fit and publish several models, a quarter of a minute each.
LONG = EXPECTED - {"quickstart"}

each_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command of `make notebooks` writes, without its installing."""
    folder = tmp_path_factory.mktemp("notebooks") / "made"
    paths = [f"BIN={Path(sys.executable).parent}", f"NOTEBOOKS={folder}"]
    recipe = subprocess.run(
        ["make", "--dry-run", "notebooks", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (command,) = re.findall(r"^mkdir.*\nfor name in [\s\S]*?^done$", recipe.stdout, re.MULTILINE)
    subprocess.run(["sh", "-c", command], cwd=ROOT, check=True)
    return folder


class TestNoneIsSkipped:
    def test_known_tutorials_are_found(self) -> None:
        """Discovery does not rot to nothing."""
        assert {path.stem for path in TUTORIALS} >= EXPECTED

    def test_nothing_lies_elsewhere(self) -> None:
        """Every Python file below tutorials/ is one of those that run."""
        assert sorted((ROOT / "tutorials").rglob("*.py")) == TUTORIALS

    def test_all_run(self, request: pytest.FixtureRequest) -> None:
        """The run below has a case a tutorial; only long ones are left to `make test-slow`."""
        mine = [item for item in request.session.items if item.path == request.node.path]
        ran = [item for item in mine if item.name.startswith("test_runs[")]
        marks = {mark.name for item in ran for mark in item.iter_markers()}
        assert not marks & {"skip", "skipif", "xfail"}
        if "slow" not in request.config.option.markexpr.replace("not slow", ""):
            expected = {path for path in TUTORIALS if path.stem not in LONG}
        else:
            expected = set(TUTORIALS)
        if not request.config.option.keyword and "::" not in "".join(request.config.args):
            assert {item.callspec.params["path"] for item in ran} == expected


# Warnings are for readers of a tutorial to see.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow if p.stem in LONG else ()) for p in TUTORIALS],
    ids=lambda path: path.stem,
)
def test_runs(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tutorial finishes without an error on its reduced data, and draws what it says.

    It runs in this process, as a script of its own: eight imports of TensorFlow would take longer
    than the tutorials.
    """
    monkeypatch.setenv("KERAS_LMMVAE_FAST", "1")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    plt.close("all")
    assert capsys.readouterr().out
    pictures = re.findall(r'"([\w-]+\.png)"', path.read_text(encoding="utf-8"))
    missing = [name for name in pictures if not (tmp_path / name).exists()]
    assert not missing


@each_tutorial
class TestForm:
    def test_header_and_length(self, path: Path) -> None:
        """A title and a sentence, under 300 lines, and full and reduced sizes."""
        text = path.read_text(encoding="utf-8")
        assert HEADER.match(text)
        assert len(text.splitlines()) <= MOST_LINES
        assert 'os.environ.get("KERAS_LMMVAE_FAST") == "1"' in text

    def test_cells(self, path: Path) -> None:
        """Prose and code take turns: every code cell follows prose, and prose ends the tutorial."""
        cells = re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        is_prose = [cell.startswith(" [markdown]\n") for cell in cells]
        assert is_prose[0]
        assert is_prose[-1], "a tutorial ends with what to read next"
        for cell, prose in zip(cells, is_prose, strict=True):
            (*_, last) = ast.parse(cell.partition("\n")[2]).body
            is_text = isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant)
            assert is_text == prose, cell[:80]

    def test_notebook(self, path: Path, notebooks: Path) -> None:
        """A valid notebook for Python: a title, and the code of every cell."""
        notebook = nbformat.read(notebooks / f"{path.stem}.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        title = HEADER.match(path.read_text(encoding="utf-8"))["title"]
        assert notebook.cells[0].source.startswith(f"# {title}\n")
        assert all('"""\n' not in cell.source[:4] for cell in notebook.cells)
        code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        source = ast.parse(path.read_text(encoding="utf-8")).body
        statements = [node for node in source if not _is_text(node)]
        assert ast.dump(ast.parse(code)) == ast.dump(ast.Module(statements, []))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_notebooks_are_written(notebooks: Path) -> None:
    """A notebook a tutorial, into a folder that git ignores."""
    assert sorted(path.stem for path in notebooks.iterdir()) == [path.stem for path in TUTORIALS]
    assert "notebooks/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
