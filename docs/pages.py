"""Writes the pages of the public API, the guides and the tutorials: python docs/pages.py [FOLDER]

The text is that of the docstrings, the Markdown files and the tutorials; nothing is written twice.
Examples are run by pytest, not here: `make docs` does both.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from pathlib import Path
from types import FunctionType

from notebooks import as_notebook
from pdoc import doc, docstrings, render
from pdoc.render_helpers import to_html

import keras_lmmvae
from keras_lmmvae.model.conditioning import Conditioned
from keras_lmmvae.model.predicting import Prediction

__all__ = ["GUIDES", "MODULES", "ROOT", "main"]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "_pages"
PACKAGE = keras_lmmvae.__name__
MODULES = [
    PACKAGE,
    *(f"{PACKAGE}.{name}" for name, _ in inspect.getmembers(keras_lmmvae, inspect.ismodule)
      if name in keras_lmmvae.__all__),
    f"{PACKAGE}.diagnostics",
    f"{PACKAGE}.export",
]  # fmt: skip
# What methods of the model return.
RESULTS = (Conditioned, Prediction)
GUIDES = {
    "docs/runs.md": "Runs: fit, evaluate and transform from the command line.",
    "docs/serving.md": "Serving: signatures, bad requests, a compose file, a C++ program.",
    "GLOSSARY.md": "Glossary: one letter and one noun for each thing.",
    "CONTRIBUTING.md": "Contributing: the rooms of the package, how to add a term or a method.",
}


def main(folder: Path) -> None:
    """Writes all pages.

    Args:
        folder: Where to; made if need be.
    """
    render.configure(
        docformat="google",
        show_source=False,
        footer_text=f"{PACKAGE} {keras_lmmvae.__version__}",
        template_directory=ROOT / "docs" / "templates",
    )
    lists = {*docstrings.GOOGLE_LIST_SECTIONS, "Call arguments", "Warns"}
    docstrings.GOOGLE_LIST_SECTIONS = sorted(lists)
    # Of a NamedTuple, whose constructor has another module's names; it is shown as written.
    warnings.filterwarnings("ignore", "Error parsing type annotation ForwardRef")
    modules = {name: doc.Module.from_name(name) for name in MODULES}
    for result in RESULTS:
        place = (result.__module__, result.__qualname__)
        modules[PACKAGE].members[result.__name__] = doc.Class(PACKAGE, place[1], result, place)
    for name, module in modules.items():
        for member in module.members.values():
            if isinstance(member, doc.Class):
                _arrange(member)
        _write(folder / f"{name.replace('.', '/')}.html", render.html_module(module, modules))
    _write(folder / "search.js", render.search_index(modules))
    tutorials = sorted((ROOT / "tutorials").glob("*.py"))
    for path in (ROOT / name for name in GUIDES):
        _write_text(folder, path, path.read_text(encoding="utf-8"))
    for path in tutorials:
        _write_text(folder, path, _tutorial(path))
    _write_index(folder, modules, tutorials)


def _arrange(cls: doc.Class) -> None:
    """Shows what a class has from our own bases as its own, and nothing of Keras or scikit-learn.

    The model is put together from bases that are no public names. Methods with more than a line
    to say are shown in full, the others in a list, `brief`, which the template knows.
    """
    shown = [member for member in cls.members.values() if _is_documented_here(cls, member)]
    shown.sort(key=lambda member: (member.name != "__init__", member.name))
    cls.members = {member.name: member for member in shown}  # nothing else is linked to
    cls.brief = [m for m in shown if m.name != "__init__" and "\n" not in m.docstring]
    cls.own_members = [member for member in shown if member not in cls.brief]
    cls.inherited_members = {}
    cls.bases = [
        (module, name, f"{module.partition('.')[0]}.{name}")
        for module, name, _ in cls.bases
        if not module.startswith(f"{PACKAGE}.")
    ]


def _is_documented_here(cls: doc.Class, member: doc.Doc) -> bool:
    """Whether a member is a method or property, and its docstring, even if inherited, is ours."""
    if member.name.startswith("_"):
        return member.name == "__init__" and member.taken_from[0].startswith(PACKAGE)
    for base in cls.obj.__mro__:
        definition = vars(base).get(member.name)
        if getattr(definition, "__doc__", None):
            is_code = isinstance(definition, FunctionType | property | classmethod | staticmethod)
            return is_code and base.__module__.startswith(PACKAGE)
    return False


def _tutorial(path: Path) -> str:
    """The cells of a tutorial's notebook in Markdown; title and description are the first."""
    return "\n\n".join(
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in as_notebook(path).cells
    )


def _page_of(source: Path) -> Path:
    """Where in the folder the page of a guide or tutorial is."""
    kind = "tutorials" if source.suffix == ".py" else "guides"
    return Path(kind) / f"{source.stem.lower()}.html"


def _write_text(folder: Path, source: Path, text: str) -> None:
    """Writes a page of Markdown; its relative links lead to pages, or to files of the checkout."""
    page = folder / _page_of(source)
    guides = [ROOT / name for name in GUIDES]

    def lead(match: re.Match[str]) -> str:
        target = (source.parent / match.group(1)).resolve()
        target = folder / _page_of(target) if target in guides else target
        return f"]({os.path.relpath(target, page.parent)})"

    text = re.sub(r"\]\((?!https?:|#)([^)]+)\)", lead, text)
    _write(page, _text_page(text, depth=1))


def _write_index(folder: Path, modules: dict[str, doc.Module], tutorials: list[Path]) -> None:
    lines = [f"# {PACKAGE}", modules[PACKAGE].docstring, "", "## Modules", ""]
    for name, module in modules.items():
        summary = module.docstring.splitlines()[0]
        lines.append(f"- [{name}]({name.replace('.', '/')}.html): {summary}")
    lines += ["", "## Guides", ""]
    for name, summary in GUIDES.items():
        title, _, what = summary.partition(": ")
        lines.append(f"- [{title}]({_page_of(ROOT / name)}): {what}")
    lines += ["", "## Tutorials", ""]
    for path in tutorials:
        title, description = _tutorial(path).removeprefix("# ").split("\n\n")[:2]
        lines.append(f"- [{title}]({_page_of(path)}): {description}")
    _write(folder / "index.html", _text_page("\n".join(lines), depth=0))


def _text_page(text: str, depth: int) -> str:
    title = text.partition("\n")[0].removeprefix("# ")
    template = render.env.get_template("page.html.jinja2")
    return template.render(title=title, body=to_html(text), depth=depth)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    print(f"The pages are in {sys.argv[1] if len(sys.argv) > 1 else FOLDER}/index.html")
