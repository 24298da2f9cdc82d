"""The pages that `make docs` writes: all of the public API, formulas whole, and no dead link."""

from __future__ import annotations

import html
import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import keras_lmmvae as lmm

ROOT = Path(__file__).parents[1]


def load_pages() -> ModuleType:
    """docs/pages.py, which is a program and no part of the package."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        spec.loader.exec_module(module)
    return module


PAGES = load_pages()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    PAGES.main(folder)
    return folder


def markup_of(page: Path) -> str:
    """A page without its styles and programs."""
    return re.sub(r"<(style|script)\b.*?</\1>", "", page.read_text("utf-8"), flags=re.DOTALL)


def text_of(page: Path) -> str:
    """What a reader sees."""
    return html.unescape(re.sub(r"<[^>]+>", "", markup_of(page)))


def page_of(folder: Path, module: str) -> Path:
    return folder / f"{module.replace('.', '/')}.html"


@pytest.mark.parametrize("module", PAGES.MODULES)
def test_every_public_name_has_its_place(folder: Path, module: str) -> None:
    """All names of a module's `__all__` are on its page, with anchors; modules have their own."""
    page = page_of(folder, module).read_text("utf-8")
    room = importlib.import_module(module)
    signs = {
        name: f'{name}.html"' if inspect.ismodule(getattr(room, name)) else f'id="{name}"'
        for name in room.__all__
    }
    assert signs
    assert [name for name, sign in signs.items() if sign not in page] == []


def test_all_public_modules_have_pages() -> None:
    """What a module of the package offers by `__all__` of its own is not forgotten."""
    rooms = {
        f"{lmm.__name__}.{name}" for name in lmm.__all__ if inspect.ismodule(getattr(lmm, name))
    }
    assert rooms <= set(PAGES.MODULES)


def test_model_is_shown_whole(folder: Path) -> None:
    """Methods of all its bases, arguments with their defaults; none of Keras' own."""
    page = page_of(folder, "keras_lmmvae")
    markup, text = page.read_text("utf-8"), text_of(page)
    methods = "adapt fit encode reconstruct predictive random_effects_table variance_components"
    for name in f"{methods} log_likelihood condition update_random_effects sample".split():
        assert (f'id="LMMVAE.{name}"' in markup) == hasattr(lmm.LMMVAE, name)
    for name in inspect.signature(lmm.LMMVAE.__init__).parameters:
        assert name in ("self", "kwargs") or f"<strong>{name}:</strong>" in markup
    assert "hidden_units: Sequence[int] = (1000, 500)" in text
    assert 'id="LMMVAE.summary"' not in markup
    assert 'id="LMMVAE._encoder_input"' not in markup


def test_formulas_and_examples_are_whole(folder: Path) -> None:
    """Lines of formulas stand as written, as code; so do examples."""
    page = page_of(folder, "keras_lmmvae").read_text("utf-8")
    blocks = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    blocks = [html.unescape(re.sub(r"<[^>]+>", "", block)) for block in blocks]
    docstring = inspect.cleandoc(lmm.LMMVAE.__doc__ or "")
    formula = [line.strip() for line in docstring.splitlines() if " ~ " in line]
    assert len(formula) == 3
    for line in [*formula, '>>> model.random_effects_table("store").shape']:
        assert any(line in block.splitlines() for block in blocks), line


def test_nothing_of_other_libraries(folder: Path) -> None:
    """scikit-learn gives estimators methods of its own; its page explains them, not ours."""
    page = page_of(folder, "keras_lmmvae.baselines").read_text("utf-8")
    assert 'id="VAEBaseline.transform"' in page
    assert "set_fit_request" not in page
    assert "get_params" not in page


def test_links_lead_somewhere(folder: Path) -> None:
    """Every relative link of every page: to a page, with its anchor, or to a file of ours."""
    pages = sorted(folder.rglob("*.html"))
    links = [
        (page, match)
        for page in pages
        for match in re.findall(r'href="(?!https?:|data:)([^"]*)"', markup_of(page))
    ]
    assert len(links) > 100
    dead = []
    for page, link in links:
        path, _, anchor = unquote(html.unescape(link)).partition("#")
        target = (page.parent / path).resolve() if path else page
        is_there = target.exists()
        if is_there and anchor:
            is_there = f'id="{anchor}"' in target.read_text("utf-8")
        if not is_there:
            dead.append(f"{page.relative_to(folder)}: {link}")
    assert not dead


def test_index_leads_to_guides_and_tutorials(folder: Path) -> None:
    """Modules, guides, tutorials; guides and tutorials are pages with their text and code."""
    index = (folder / "index.html").read_text("utf-8")
    for name in ("serving", "glossary", *(path.stem for path in (ROOT / "docs").glob("*.md"))):
        assert f'href="guides/{name}.html"' in index
    for module in PAGES.MODULES:
        assert f'href="{module.replace(".", "/")}.html"' in index
    assert "serving_default" in text_of(folder / "guides" / "serving.html")
    tutorials = sorted((ROOT / "tutorials").glob("*.py"))
    assert tutorials
    for path in tutorials:
        assert f'href="tutorials/{path.stem}.html"' in index
        page = folder / "tutorials" / f"{path.stem}.html"
        headings = re.findall(r"^## (.+)$", path.read_text("utf-8"), re.MULTILINE)
        assert headings
        assert [x for x in headings if x.replace("`", "") not in text_of(page)] == []
        assert "import keras_lmmvae as lmm" in text_of(page)
        assert "%%" not in text_of(page)
