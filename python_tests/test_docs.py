"""The site builds without a warning, its snippets run, and each public name has a place on it."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import gatkernels
from gatkernels.bench.peers import import_failure

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: Pages whose snippets run; the tutorial's and the README's have tests of their own, and what
#: several processes run is examples/distributed.py.
PAGES = sorted(
    page
    for page in DOCS.rglob("*.md")
    if "results" not in page.parts and "```python" in page.read_text()
    if page.name not in ("tutorial.md", "benchmarks.md", "distributed.md")
)
#: Modules that users import from.
PUBLIC = (
    "gatkernels",
    "gatkernels.nn",
    "gatkernels.models",
    "gatkernels.distributed",
    "gatkernels.testing",
    "gatkernels.fuzz",
    "gatkernels.reference",
    "gatkernels.pyg",
    "gatkernels.dgl",
    "gatkernels.experiments.plots",
)
PACKAGES = {
    "gatkernels.pyg": "torch_geometric",
    "gatkernels.dgl": "dgl",
}
NEEDS = (("torch_geometric", r"torch_geometric|gatkernels\.pyg"), ("dgl", r"\bdgl\b"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page: Path) -> None:
    text = page.read_text()
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for package, sign in NEEDS:
        if any(re.search(sign, s) for s in snippets) and (failure := import_failure(package)):
            pytest.skip(failure)
    space: dict[str, object] = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), space)


def public(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or what it defines under a name without underscore."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("_")]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name: str) -> None:
    if (package := PACKAGES.get(name)) and (failure := import_failure(package)):
        pytest.skip(failure)
    module = importlib.import_module(name)
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    listed = set(re.findall(r"\w+", " ".join(re.findall(r"members: \[(.*?)\]", pages))))
    for member in public(module):
        value = getattr(module, member)
        if isinstance(value, ModuleType):
            assert f"{name}.{member}" in shown
        elif inspect.isclass(value) or callable(value):
            assert inspect.getdoc(value), member
            home = getattr(value, "__module__", name)
            on_a_page = {f"{home}.{member}", f"{name}.{member}"} & shown
            assert on_a_page or member in listed or {home, name} & shown, member


def test_the_site_builds(tmp_path: Path) -> None:
    """Strict: a broken link, a missing anchor or a page that is not in the menu is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    operators = (tmp_path / "api" / "operators" / "index.html").read_text()
    for name in ("gat_attention", "gatv2_attention", "dot_attention", "attention_weights"):
        assert f'id="gatkernels.functional.{name}"' in operators
    shown = re.sub(r"<details.*?</details>", "", operators, flags=re.DOTALL)  # not the source
    assert ":func:" not in shown
    assert (tmp_path / "search" / "search_index.json").stat().st_size > 100_000


def test_the_changelog_knows_the_version() -> None:
    assert f"## {gatkernels.__version__}" in (ROOT / "CHANGELOG.md").read_text()
