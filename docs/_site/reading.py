"""Griffe extension: what Griffe cannot know of this package's docstrings and modules."""

from __future__ import annotations

import re
from typing import Any

import griffe

# Headings that Griffe does not know: its name for the section, and what the reader sees.
HEADINGS = {"Example": "Examples: Example", "Call arguments": "Args: Call arguments"}
PATTERN = re.compile(rf"^({'|'.join(HEADINGS)}):$", re.MULTILINE)


class House(griffe.Extension):
    """Reads our headings, and shows a function rather than the module of the same name."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of an object as it is loaded; the source file stays as it is."""
        if obj.docstring is not None:
            obj.docstring.value = PATTERN.sub(lambda match: HEADINGS[match[1]], obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """`from package.diagnose import diagnose` hides the module, as it does in Python."""
        modules = [pkg]
        while modules:
            module = modules.pop()
            modules += (inner for inner in module.modules.values() if not inner.is_alias)
            for name, target in module.imports.items():
                if name in module.modules and target == f"{module.path}.{name}.{name}":
                    module.set_member(name, module[name][name])
