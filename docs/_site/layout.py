"""MkDocs hook: the pages of the site are files of the repository, each in its own place.

A relative link in a Markdown file leads to the same file on the site and in a checkout.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# What the site shows besides the folder docs/.
OUTSIDE = ("*.md", "tutorials/*.py", "benchmarks/*.md", "benchmarks/results/*")
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#]+)[^)]*\)")


@event_priority(100)  # before the plugins, which then see all files
def on_files(files: Files, config: Any) -> Files:
    """Gives the files of docs/ their paths in the repository, and adds those from outside."""
    ours = {file for file in files if file.src_dir == config.docs_dir}
    paths = [Path(file.abs_src_path) for file in ours if file.inclusion.is_included()]
    paths += [path for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    place = (str(ROOT), config.site_dir, config.use_directory_urls)
    theme = [file for file in files if file not in ours]
    return Files([*theme, *(File(name, *place) for name in names)])


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Makes links to files that the site does not have plain text, and shows `(1 | store)` so.

    A bar in code within a table is written `\\|` for GitHub; Python-Markdown needs no backslash.
    """

    def keep_or_unlink(match: re.Match[str]) -> str:
        target = normpath(join(dirname(page.file.src_uri), match[2]))
        is_elsewhere = (ROOT / target).exists() and files.get_file_from_path(target) is None
        return match[1] if is_elsewhere else match[0]

    markdown = CODE.sub(lambda match: match[0].replace(r"\|", "|"), markdown)
    return LINK.sub(keep_or_unlink, markdown)
