"""House rules of the source: style, types, size, documentation, and arrows that point one way."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_lmmvae"
MODULES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE = [path for name in ("benchmarks", "examples") for path in (ROOT / name).glob("*.py")]
DOCUMENTED = [*MODULES, *sorted(OUTSIDE)]
MOST_LINES = 350

# What a room (a module or folder of the package) may import of the others while it is loaded.
# Rooms that are not listed stand on top: they may import all, and no listed room imports them.
FOUNDATION = {"errors", "validation", "files", "design", "linalg", "kernels"}
DATA_ROOMS = {"simulation", "datasets", "metrics"}
MAY_IMPORT = {
    "errors": set(),
    "validation": {"errors"},
    "files": set(),
    "design": set(),
    "linalg": {"validation"},
    "kernels": {"validation"},
    "simulation": {"validation"},
    "datasets": {"validation"},
    "metrics": {"validation", "simulation", "datasets"},
    "layers": FOUNDATION,
    "effects": FOUNDATION | {"layers"},
    "formula_reader": {"validation"},
    "formula": FOUNDATION | {"layers", "effects", "formula_reader"},
    "data_frame": FOUNDATION | {"layers", "effects", "formula"},
    "model": FOUNDATION | {"layers", "effects", "formula"},
    "plots": FOUNDATION | {"layers", "effects", "model"},
    "export": FOUNDATION | {"layers", "effects", "model"},
    "diagnostics": FOUNDATION | {"layers", "effects", "model"},
    "callbacks": FOUNDATION | {"layers", "effects", "model"},
    "baselines": FOUNDATION | DATA_ROOMS | {"layers", "effects", "model"},
}
HEAVY = {"tensorflow", "tensorflow_probability", "keras"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path, nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that the nodes of a file import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            source = [*parents, *([node.module] if node.module else [])]
            for alias in node.names:
                yield node.lineno, ".".join([*source, alias.name])


def executed_on_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run when the module is loaded: none of functions or TYPE_CHECKING blocks."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop(0)
        yield node
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not is_typing and not isinstance(node, Function):
            todo.extend(ast.iter_child_nodes(node))


def is_public(name: str) -> bool:
    return not name.startswith("_") or name == "__init__"


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Public classes and functions of a module, and the public methods of those classes."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *Function.__args__)) and is_public(node.name):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, Function) and is_public(inner.name):
                    yield f"{node.name}.{inner.name}", inner


def unannotated(function: Function) -> list[str]:
    """Arguments without a type, and "return" if that is missing."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    missing = [one.arg for one in named if one.annotation is None]
    missing = [name for name in missing if name not in ("self", "cls")]
    return missing + (["return"] if function.returns is None else [])


def run_tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def report(violations: list[str]) -> None:
    assert not violations, f"{len(violations)} violations:\n" + "\n".join(violations)


def test_there_are_modules() -> None:
    """The discovery below cannot rot to nothing."""
    assert len(MODULES) > 30
    assert len(OUTSIDE) > 20
    assert {room_of(path) for path in MODULES} >= set(MAY_IMPORT)


def test_ruff_finds_nothing() -> None:
    """The rules of pyproject.toml hold for every Python file."""
    result = run_tool("ruff", "check", "--quiet", "--output-format=concise", ".")
    report((result.stdout + result.stderr).splitlines() if result.returncode else [])


def test_mypy_finds_nothing() -> None:
    """Package, benchmarks and examples are fully typed (strict, see setup.cfg)."""
    result = run_tool("mypy", "--no-error-summary", "--hide-error-context")
    report((result.stdout + result.stderr).splitlines() if result.returncode else [])


def test_modules_are_short() -> None:
    """A file has at most 350 lines."""
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    report([f"{name_of(path)}: {size}" for path, size in sizes.items() if size > MOST_LINES])


def test_all_names_exist() -> None:
    """Every module has `__all__`; its names exist, and no public definition is left out."""
    violations = []
    for path in DOCUMENTED:
        if path.name == "__main__.py":
            continue  # running it is all there is to it
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(dotted)
        listed = getattr(module, "__all__", None)
        if listed is None:
            violations.append(f"{name_of(path)}: no __all__")
            continue
        defined = {name for name, _ in public_definitions(tree_of(path)) if "." not in name}
        violations += [f"{name_of(path)}: no {x}" for x in listed if not hasattr(module, x)]
        violations += [f"{name_of(path)}: __all__ lacks {x}" for x in defined - set(listed)]
    report(violations)


def test_arrows_point_one_way() -> None:
    """A room imports only rooms below it."""
    violations = []
    for path in MODULES:
        room = room_of(path)
        if room not in MAY_IMPORT:
            continue
        for line, name in imported(path, executed_on_import(tree_of(path))):
            first, *rest = name.split(".")
            if first == "keras_lmmvae" and (not rest or rest[0] not in MAY_IMPORT[room] | {room}):
                violations.append(f"{name_of(path)}:{line}: {room} imports {name}")
    report(violations)


def test_the_package_needs_nothing_outside() -> None:
    """The package imports neither benchmarks nor examples: they are not installed with it."""
    violations = []
    for path in MODULES:
        for line, name in imported(path, ast.walk(tree_of(path))):
            if name.split(".")[0] in ("benchmarks", "examples"):
                violations.append(f"{name_of(path)}:{line}: imports {name}")
    report(violations)


@pytest.mark.parametrize("room", sorted(DATA_ROOMS))
def test_data_rooms_need_no_tensorflow(room: str) -> None:
    """Simulation, data and metrics are NumPy and pandas, wherever in the file they import."""
    violations = []
    for path in MODULES:
        if room_of(path) == room:
            for line, name in imported(path, ast.walk(tree_of(path))):
                if name.split(".")[0] in HEAVY:
                    violations.append(f"{name_of(path)}:{line}: imports {name}")
    report(violations)


def test_everything_public_is_documented() -> None:
    """Modules, public classes and public functions have docstrings."""
    violations = []
    for path in DOCUMENTED:
        tree = tree_of(path)
        if ast.get_docstring(tree) is None:
            violations.append(f"{name_of(path)}: no module docstring")
        for name, node in public_definitions(tree):
            if "." not in name and ast.get_docstring(node) is None:
                violations.append(f"{name_of(path)}:{node.lineno}: {name} has no docstring")
    report(violations)


def test_everything_public_is_annotated() -> None:
    """Public functions and methods state the types of all arguments and of what they return."""
    violations = []
    for path in DOCUMENTED:
        for name, node in public_definitions(tree_of(path)):
            missing = unannotated(node) if isinstance(node, Function) else []
            if missing:
                violations.append(f"{name_of(path)}:{node.lineno}: {name}: {', '.join(missing)}")
    report(violations)
