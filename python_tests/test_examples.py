"""Each script of examples/ runs, and learns what it sets out to learn."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from gatkernels.bench.peers import import_failure

EXAMPLES = Path(__file__).parents[1] / "examples"
#: What is run by several processes has tests in python_tests/distributed.
SCRIPTS = sorted(
    path.stem
    for path in EXAMPLES.glob("*.py")
    if path.stem != "communities" and not path.stem.startswith("distributed")
)
NEEDS = {"swap_pyg": "torch_geometric", "dgl_model": "dgl"}


def test_examples_are_short() -> None:
    assert len(SCRIPTS) >= 7
    for name in SCRIPTS:
        assert 20 <= len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 60, name


@pytest.mark.parametrize("name", SCRIPTS)
def test_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (package := NEEDS.get(name)) and (failure := import_failure(package)):
        pytest.skip(failure)
    if name == "export" and shutil.which("c++") is None:
        pytest.skip("compiling ahead of time takes a C++ compiler")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found = importlib.import_module(name).main()
    if name == "export":
        assert found < 1e-5
    else:
        assert found > 0.6  # of four communities; features alone give 0.4
