"""What the kernels are held against by bench/floors.py."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from gatkernels.backends import native

PATH = Path(__file__).resolve().parents[2] / "bench" / "floors.py"


@pytest.fixture
def floors(monkeypatch):
    spec = importlib.util.spec_from_file_location("floors", PATH)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "floors", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "GRAPHS", {"cache": (50, 700), "middle": (64, 900)})
    monkeypatch.setattr(native, "_cpu", native.cpu_module())  # put back at the end
    return module


@pytest.mark.parametrize("width", [7, 8, 40, 64, 128])
def test_the_floor_is_the_sum_of_the_rows(floors, width):
    graph = floors.graph_of("middle")
    rows, sums = torch.randn(64, width), torch.empty(64, width)
    floors.gather_sum(native.cpu_module().isa)(graph.rowptr, graph.col, rows, sums)
    dst = torch.repeat_interleave(torch.arange(64), graph.rowptr.diff())
    expected = torch.zeros(64, width).index_add(0, dst, rows[graph.col.long()])
    torch.testing.assert_close(sums, expected)


def test_the_command(floors, monkeypatch, tmp_path, capsys):
    before, results = native.cpu_module().__file__, tmp_path / "results.json"
    options = ["--shapes", "2x4", "--turns", "2", "--before", before, "--json", str(results)]
    monkeypatch.setattr(sys, "argv", ["floors.py", *options])
    floors.main()
    found = json.loads(results.read_text())
    assert len(found["cases"]) == 2 * len(floors.ROWS) * 2 * 2
    assert all(
        dict(zip(found["columns"], case, strict=True))["ns an edge"] > 0 for case in found["cases"]
    )
    assert "dot backward before" in capsys.readouterr().out
