"""The site that `make docs` builds: every public name, guide and tutorial, and no dead link."""

from __future__ import annotations

import html
import importlib
import inspect
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import keras_lmmvae as lmm

ROOT = Path(__file__).parents[1]
CONFIGURATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
API = sorted((ROOT / "docs" / "api").glob("*.md"))
TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "tutorials/*.py")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)[^)]*\)")
# Public by their own names, besides the modules in `keras_lmmvae.__all__`.
ROOMS = {"keras_lmmvae", "keras_lmmvae.diagnostics", "keras_lmmvae.effects", "keras_lmmvae.export"}
ROOMS |= {f"keras_lmmvae.{x}" for x in lmm.__all__ if inspect.ismodule(getattr(lmm, x))}


def public_names() -> set[str]:
    """Every name of `__all__` of every public module, as a user writes it; not the modules."""
    return {
        f"{room}.{name}"
        for room in ROOMS
        for name in importlib.import_module(room).__all__
        if f"{room}.{name}" not in ROOMS
    }


def files_of(nav: Any) -> Iterator[str]:
    """The files in MkDocs' tree of navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from files_of(entry)


NAV = list(files_of(CONFIGURATION["nav"]))


def test_navigation_names_files() -> None:
    """Every entry is a file of the repository, once."""
    assert [name for name in NAV if not (ROOT / name).is_file()] == []
    assert len(set(NAV)) == len(NAV)


def test_navigation_forgets_nothing() -> None:
    """All guides, pages of the API and tutorials are in it, and the pages of the root."""
    pages = [path.relative_to(ROOT).as_posix() for path in TEXTS]
    pages = [name for name in pages if not name.startswith("benchmarks/results/")]
    assert len(pages) > 25
    assert sorted(NAV) == sorted(pages)


def test_api_has_an_index() -> None:
    """The first page of the API leads to all others."""
    index = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert sorted(LINK.findall(index)) == sorted(
        ["../../GLOSSARY.md", *(path.name for path in API if path.name != "index.md")]
    )


def test_every_public_name_has_a_directive() -> None:
    """A name is asked for by itself or with its module; nothing is asked for twice."""
    asked = [
        name
        for path in API
        for name in re.findall(r"^::: (\S+)$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(set(asked)) == len(asked)
    assert len(public_names()) > 50
    assert (
        missing_from({*asked, *(name for name in public_names() if room_of(name) in asked)}) == []
    )


def room_of(name: str) -> str:
    """The module of a public name."""
    return name.rpartition(".")[0]


def missing_from(shown: set[str]) -> list[str]:
    """Public names that are not shown, nor is what they name under another public name."""
    objects = {id(resolve(name)) for name in public_names() & shown}
    return sorted(name for name in public_names() if id(resolve(name)) not in objects)


def test_missing_names_are_seen() -> None:
    """A name is missing if neither it nor a second name of the same object is shown."""
    names = public_names()
    assert missing_from(names) == []
    assert missing_from(names - {"keras_lmmvae.metrics.mse"}) == ["keras_lmmvae.metrics.mse"]
    assert missing_from(names - {"keras_lmmvae.diagnose"}) == []


def resolve(name: str) -> Any:
    """The class, function or constant of a public name."""
    return getattr(importlib.import_module(room_of(name)), name.rpartition(".")[2])


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files(path: Path) -> None:
    """Every relative link of a Markdown file or tutorial leads to a file or folder that exists."""
    targets = LINK.findall(path.read_text(encoding="utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_dead_links_are_seen() -> None:
    """The pattern above finds links, with anchors and titles, and leaves addresses alone."""
    text = "[a](x/a.md), ![b](b.png 'B'), [c](c.md#part), [d](https://d.org), [e](#e) f(x)[1]"
    assert LINK.findall(text) == ["x/a.md", "b.png", "c.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does: without a warning, or not at all."""
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    return folder


def text_of(markup: str) -> str:
    """What a reader sees of a piece of HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def page(site: Path, name: str) -> str:
    """The article of a page: its HTML without menus, styles and programs."""
    markup = (site / name).read_text(encoding="utf-8")
    markup = re.sub(r"<(style|script)\b.*?</\1>", "", markup, flags=re.DOTALL)
    return re.search(r"<article.*?</article>", markup, re.DOTALL)[0]


class TestSite:
    def test_all_names_are_shown(self, site: Path) -> None:
        """Sphinx' inventory of the site has every public name, and nothing private."""
        _, _, _, _, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
        shown = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
        assert missing_from(shown) == []
        assert [name for name in shown if "._" in name] == []

    def test_model_is_shown_whole(self, site: Path) -> None:
        """Methods of ours and all arguments with their defaults; nothing of Keras' own."""
        markup = page(site, "docs/api/model.html")
        for name in ("adapt", "fit", "encode", "predictive", "random_effects_table", "condition"):
            assert f'id="keras_lmmvae.LMMVAE.{name}"' in markup
        assert 'id="keras_lmmvae.LMMVAE.summary"' not in markup
        assert "hidden_units: Sequence[int] = (1000, 500)" in text_of(markup)
        explained = re.findall(
            r"<li class=\"doc-section-item field-body\">\s*<b><code>(\w+)", markup
        )
        arguments = set(inspect.signature(lmm.LMMVAE.__init__).parameters) - {"self", "kwargs"}
        assert arguments <= set(explained)

    def test_formulas_and_examples_are_whole(self, site: Path) -> None:
        """Lines of formulas stand as written, as code; so do examples."""
        blocks = re.findall(r"<pre>(.*?)</pre>", page(site, "docs/api/model.html"), re.DOTALL)
        lines = [line for block in blocks for line in text_of(block).splitlines()]
        docstring = inspect.cleandoc(lmm.LMMVAE.__doc__ or "")
        formula = [line.strip() for line in docstring.splitlines() if " ~ " in line]
        assert len(formula) == 3
        for line in [*formula, '>>> model.random_effects_table("store").shape']:
            assert line in lines

    def test_bars_in_formulas(self, site: Path) -> None:
        """A bar within code neither ends a cell of a table nor shows its backslash."""
        for name in ("index.html", "tutorials/from_lme4_and_scikit_learn.html"):
            codes = [text_of(x) for x in re.findall(r"<code>(.*?)</code>", page(site, name))]
            assert "(1 | school/class)" in codes
            assert "\\|" not in "".join(codes)

    def test_headings_of_our_docstrings(self, site: Path) -> None:
        """`Call arguments` and `Example` are sections, not boxes or quotations."""
        markup = page(site, "docs/api/layers.html")
        assert '<span class="doc-section-title">Call arguments</span>' in markup
        assert '<span class="doc-section-title">Example</span>' in markup
        assert "<blockquote>" not in markup

    def test_nothing_of_other_libraries(self, site: Path) -> None:
        """scikit-learn gives estimators methods of its own; its page explains them, not ours."""
        markup = page(site, "docs/api/baselines.html")
        assert 'id="keras_lmmvae.baselines.VAEBaseline.transform"' in markup
        assert "set_fit_request" not in markup
        assert "get_params" not in markup

    def test_tutorials_are_pages(self, site: Path) -> None:
        """With all their headings and code, and without the marks of cells."""
        paths = [path for path in TEXTS if path.suffix == ".py"]
        assert paths
        for path in paths:
            text = text_of(page(site, f"tutorials/{path.stem}.html"))
            headings = re.findall(r"^## (.+)$", path.read_text("utf-8"), re.MULTILINE)
            assert len(headings) > 3
            assert [x for x in headings if x.replace("`", "") not in text] == []
            assert "import keras_lmmvae as lmm" in text
            assert "%%" not in text

    def test_nothing_is_fetched(self, site: Path) -> None:
        """Styles, programs, fonts and pictures of the pages are files of the site."""
        pages = sorted(site.rglob("*.html"))
        assert len(pages) > 25
        for path in pages:
            markup = path.read_text(encoding="utf-8")
            fetched = re.findall(r"<(?:script|img|link)\b[^>]*(?:src|href)=\"(http[^\"]*)", markup)
            assert fetched == [], path

    def test_the_search_finds_the_api(self, site: Path) -> None:
        """The index of the search holds names of functions."""
        index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
        assert "plot_caterpillar" in index
