"""The house: no circles of imports, arrows that point one way, types that see the model."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_lmmvae"

# What a room (a module or folder of the package) may import of the others, wherever in a file:
# imports in functions and under TYPE_CHECKING count too.
LEAVES = {"validation", "design", "linalg", "kernels"}
ROWS = {*LEAVES, "effects", "columns", "rows"}
FITTED = {"latent_prior", "likelihood", "mixed_model", "networks", "rows"}
READERS = {*ROWS, "likelihood", "networks", "mixed_model", "fitted_model", "feature_names"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "_backend": {"errors"},
    "validation": {"errors"},
    "files": set(),
    "design": set(),
    "version": {"errors"},
    "linalg": {"validation"},
    "kernels": {"validation", "linalg"},
    "layers": {"validation", "design", "linalg"},
    "effects": {*LEAVES, "layers"},
    "formula_reader": {"validation"},
    "formula": {"validation", "effects", "formula_reader"},
    "columns": {"validation", "effects"},
    "data_frame": {"validation", "effects", "columns", "formula"},
    "feature_names": {"validation", "columns"},
    "feature_moments": {"validation"},
    "arguments": {"validation", "effects", "columns", "formula"},
    "rows": {"validation", "effects", "columns"},
    "mixed_model": {*LEAVES, "layers", "effects", "rows"},
    "likelihood": {"validation", "layers"},
    "latent_prior": {"linalg", "layers", "rows"},
    "elbo": {"validation"},
    "model_bytes": set(),
    "networks": {"validation"},
    "refinement": {"linalg"},
    "noise_scoring": set(),
    "inference": {"latent_prior", "mixed_model", "networks", "refinement", "rows"},
    "total_axes": {"inference", "linalg", "layers", "rows"},
    "fitting": {"effects", "inference", "fitted_model", "linalg", "noise_scoring", *FITTED},
    "fitted_model": {"effects", "inference", "total_axes", *FITTED},
    "inspection": {*READERS, "elbo"},
    "diagnostics": READERS,
    "export": {*READERS, "files", "inspection"},
    "lmmvae": {
        *READERS,
        *("arguments", "diagnostics", "elbo", "export", "feature_moments", "files", "fitting"),
        *("inference", "inspection", "latent_prior", "model_bytes", "total_axes", "version"),
    },
    "plots": {*READERS, "lmmvae"},
    "callbacks": {"validation", "files", "lmmvae"},
    "simulation": {"validation"},
    "datasets": {"validation"},
    "metrics": {"validation", "simulation"},
    "baselines": {
        *("validation", "effects", "elbo", "feature_moments", "likelihood", "networks", "rows"),
        *("latent_prior", "noise_scoring", "refinement", "simulation"),
    },
    "transformer": {"validation", "effects", "data_frame", "lmmvae", "model_bytes", "baselines"},
    "runs": {
        *("errors", "validation", "files", "effects", "rows", "feature_names", "formula"),
        *("data_frame", "lmmvae", "export", "plots", "callbacks", "metrics", "simulation"),
        "baselines",
    },
}
# The command line speaks of the package by its own name, which stands for all of it.
MAY_IMPORT["cli"] = set(MAY_IMPORT)


class Imports:
    """Which files of a package import which others, every import anywhere in a file counted.

    The `__init__` of a folder only gathers: a name imported from it is one of the file that
    defines it, and the folder as a whole is all files that it gathers.
    """

    def __init__(self, package: Path) -> None:
        self.package = package
        self.paths = {self._dotted(path): path for path in sorted(package.rglob("*.py"))}

    def _dotted(self, path: Path) -> str:
        return ".".join(path.relative_to(self.package.parent).with_suffix("").parts)

    def _statements(self, module: str) -> Iterator[tuple[int, str, str]]:
        """Line, module and name ("" for the module itself) of everything that a file imports."""
        for node in ast.walk(ast.parse(self.paths[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parents = module.split(".")[: -node.level] if node.level else []
                source = ".".join([*parents, *([node.module] if node.module else [])])
                yield from ((node.lineno, source, alias.name) for alias in node.names)
            elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
                names = [a.value for a in node.args if isinstance(a, ast.Constant)]
                yield from ((node.lineno, str(name), "") for name in names)

    def _files(self, source: str, name: str) -> set[str]:
        """The files that hold what `from source import name` imports."""
        if f"{source}.{name}" in self.paths:
            return {f"{source}.{name}"}
        if name and f"{source}.{name}.__init__" in self.paths:
            source, name = f"{source}.{name}", ""
        if source in self.paths:
            return {source}
        gatherer = f"{source}.__init__"
        if gatherer not in self.paths:
            return set()
        gathered = [one for one in self._statements(gatherer) if name in ("", one[2])]
        files = [self._files(origin, inner) for _, origin, inner in gathered if origin != source]
        return set().union({gatherer} if not gathered else set(), *files)

    def of(self, module: str) -> Iterator[tuple[int, str]]:
        """Line and file of everything that a file imports of its package."""
        for line, source, name in self._statements(module):
            yield from ((line, file) for file in self._files(source, name) if file != module)

    def circle(self) -> list[str]:
        """Files that import each other in a circle; empty if there is none."""
        files = [module for module in self.paths if not module.endswith("__init__")]
        try:
            TopologicalSorter({one: {to for _, to in self.of(one)} for one in files}).prepare()
        except CycleError as error:
            return list(error.args[1])
        return []


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.fixture(scope="module")
def imports() -> Imports:
    return Imports(PACKAGE)


def test_no_circles_of_imports(imports: Imports) -> None:
    """No file of the package imports itself through others."""
    assert len(imports.paths) > 80
    assert imports.circle() == []


@pytest.mark.parametrize(
    "back",
    [
        "from home.low import thing",
        "def late():\n    from home import low",
        "import typing\nif typing.TYPE_CHECKING:\n    import home.low",
        "from .. import low",
        "from home import gathered",
        "import importlib\nlow = importlib.import_module('home.low')",
    ],
    ids=["top", "function", "types only", "relative", "gathered", "by name"],
)
def test_circles_are_found(tmp_path: Path, back: str) -> None:
    """A circle of two files is found wherever the import that closes it stands."""
    room = tmp_path / "home" / "room"
    room.mkdir(parents=True)
    (tmp_path / "home" / "__init__.py").write_text("from home.low import gathered")
    (room / "__init__.py").write_text("from home.room.high import name")
    (tmp_path / "home" / "low.py").write_text("from home.room import name")
    (room / "high.py").write_text("name = 1")
    assert Imports(tmp_path / "home").circle() == []
    (room / "high.py").write_text(back)
    assert set(Imports(tmp_path / "home").circle()) == {"home.low", "home.room.high"}


def test_every_room_is_listed(imports: Imports) -> None:
    """The table above has every room of the package, and none that is gone."""
    rooms = {room_of(module) for module in imports.paths} - {"__init__"}
    assert rooms == set(MAY_IMPORT)


def test_arrows_point_one_way(imports: Imports) -> None:
    """A room imports only the rooms that the table gives it, and the table has no circle."""
    TopologicalSorter(MAY_IMPORT).prepare()
    violations = []
    for module in imports.paths:
        room = room_of(module)
        for line, file in imports.of(module) if room in MAY_IMPORT else ():
            if room_of(file) not in MAY_IMPORT[room] | {room}:
                violations.append(f"{module}:{line}: {room} imports {file}")
    assert violations == [], "\n".join(violations)


def test_types_see_the_model(tmp_path: Path) -> None:
    """Misspelled attributes of `self`, and of what hangs on it, are errors for mypy."""
    text = (PACKAGE / "lmmvae.py").read_text(encoding="utf-8")
    for name in ("self._check_replicas()", "self.mixed_model.variance("):
        assert text.count(name) == 1
        text = text.replace(name, name.replace("ari", "ary").replace("replica", "replika"))
    scratch = tmp_path / "misspelled.py"
    scratch.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(scratch)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, result.stdout + result.stderr
    assert '"MixedModel" has no attribute "varyance"' in errors[0]
    assert '"LMMVAE" has no attribute "_check_replikas"' in errors[1]
