"""Docstrings as Markdown: roles of reStructuredText become code, `::` before a block a colon."""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


class PlainDocstrings(griffe.Extension):
    """Rewrites each docstring as it is loaded; arguments described together get a line each."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
            obj.docstring.value = SHARED.sub(_apart, text)


def _apart(found: re.Match[str]) -> str:
    indent, names, words = found.groups()
    return "\n".join(f"{indent}{name}: {words}" for name in names.split(", "))
