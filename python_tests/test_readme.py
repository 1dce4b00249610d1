"""The README's snippets run as they stand, and its figures are those of the result files."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from gatkernels.bench.peers import import_failure

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
        if re.search(sign, SNIPPETS[place]) and (failure := import_failure(package)):
            pytest.skip(failure)
    exec(compile(SNIPPETS[place], f"README.md, snippet {place}", "exec"), {})


def test_speed_section_is_written_from_the_results() -> None:
    """Run ``python bench/readme.py`` where this fails."""
    path = README.parent / "bench" / "readme.py"
    spec = importlib.util.spec_from_file_location("readme", path)
    assert spec is not None
    assert spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    reports = readme.reports()
    assert any(report.cases for report in reports.values())
    for path, text in readme.written(reports).items():
        assert readme.replaced(path.read_text(), text) == path.read_text()
