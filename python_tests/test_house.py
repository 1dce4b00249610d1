"""The layout: who imports whom, and what no engine code does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAB = ("gatkernels.bench", "gatkernels.experiments", "gatkernels.fuzz")


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "gatkernels").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, at its top or later; not those for types alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return found & MODULES.keys()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, in groups (Tarjan's components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_no_modules_of_the_engine_import_each_other() -> None:
    engine = {name: path for name, path in MODULES.items() if not name.startswith(LAB)}
    engine.pop("gatkernels")  # what users import
    graph = {name: imports(path) & engine.keys() - {name} for name, path in engine.items()}
    graph.pop("gatkernels.cli")
    graph.pop("gatkernels.__main__")
    assert circles({name: others & graph.keys() for name, others in graph.items()}) == []


@pytest.mark.parametrize("name", [n for n in MODULES if not n.startswith(LAB)])
def test_the_engine_does_not_import_the_lab(name: str) -> None:
    if name == "gatkernels.cli":
        pytest.skip("each command imports what it needs; the next test says which")
    assert [other for other in imports(MODULES[name]) if other.startswith(LAB)] == []


@pytest.mark.parametrize("command", ["info", "verify --help"])
def test_commands_about_the_engine_do_not_load_the_lab(command: str) -> None:
    code = (
        "import sys; from gatkernels.cli import main\n"
        f"try: main({command.split()!r})\nexcept SystemExit: pass\n"
        f"print([m for m in sys.modules if m.startswith({LAB!r})], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_every_package_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'"([a-z.]+)"', text.split("packages = [", 1)[1].split("]", 1)[0])
    assert sorted(listed) == sorted(n for n, path in MODULES.items() if path.name == "__init__.py")


def test_no_packed_arguments_are_sliced() -> None:
    packs = re.compile(r"args\[[0-9]*:|scores\[:?[0-9]|\[[0-9]+:[0-9]+\]")
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for folder in ("ops", "backends")
        for path in sorted((ROOT / "gatkernels" / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if packs.search(line)
    ]
    assert found == []
