"""The README's snippets run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def test_there_are_snippets() -> None:
    assert SNIPPETS


@pytest.mark.parametrize("place", range(len(SNIPPETS)))
def test_snippet_runs(place: int) -> None:
    for package, sign in (
        ("torch_geometric", r"torch_geometric|gatkernels\.pyg"),
        ("dgl", r"\bdgl\b"),
    ):
        if re.search(sign, SNIPPETS[place]):
            pytest.importorskip(package, reason=f"the snippet is about {package}")
    exec(compile(SNIPPETS[place], f"README.md, snippet {place}", "exec"), {})
