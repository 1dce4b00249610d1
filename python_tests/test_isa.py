"""Every instruction set the processor has, and none: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graphs import GRAPHS

from gatkernels import Graph, _dispatch

HERE = Path(__file__).parent
ISAS = ("baseline", "avx2", "avx512")

BATTERY = """
import sys
import torch
import conftest
from graphs import GRAPHS, random_inputs
from tolerance import DTYPES, Options, assert_right
from gatkernels import _dispatch

for name in ("empty", "empty_like"):
    setattr(torch, name, conftest._poisoned(getattr(torch, name)))
torch.Tensor.new_empty = conftest._poisoned(torch.Tensor.new_empty)
assert _dispatch.isa() == sys.argv[1], _dispatch.isa()
options = Options(0.2, 0.6, torch.tensor([-7]))
checks = 0
for dtype in DTYPES:
    for name, build in GRAPHS.items():
        graph = build()
        shapes = [(1, 1), (1, 121), (2, 4), (3, 5), (8, 8), (17, 3), (4, 33)]
        for shape in shapes if name in ("random", "hub_block") else [(5, 7)]:
            assert_right(graph, random_inputs(graph, *shape, dtype))
            inputs = random_inputs(graph, *shape, dtype, edge_score=True, attention=True)
            assert_right(graph, inputs, options)
            far = random_inputs(graph, *shape, dtype, spread=1000.0)
            assert_right(graph, far, Options(-0.3))
            checks += 3
print("right:", checks)
"""

WITHOUT_MODULE = """
import sys
sys.modules["gatkernels._cpu"] = None
import torch
import gatkernels
from graphs import GRAPHS, random_inputs

graphs = {name: build() for name, build in GRAPHS.items()}
torch.save({name: vars(graph) for name, graph in graphs.items()}, sys.argv[1])
graph = graphs["bipartite"]
x, src, dst, *_ = random_inputs(graph, 2, 3, torch.float32)
auto = gatkernels.gat_attention(graph, x, src, dst)
assert torch.equal(auto, gatkernels.gat_attention(graph, x, src, dst, backend="reference"))
layer = gatkernels.nn.GATConv(3, 2, heads=2)
layer(torch.randn(4, 3), torch.tensor([[0, 1], [1, 3]])).sum().backward()
assert layer.lin.weight.grad is not None
for edge_index in ([[0, 1], [1, 3]], [[0, -1], [1, 1]]):
    try:
        gatkernels.Graph.from_edge_index(torch.tensor(edge_index), 3)
    except ValueError as error:
        print(error)
try:
    gatkernels.gat_attention(graph, x, src, dst, backend="cpu")
except gatkernels.BackendUnavailable as error:
    print(error)
"""


def run(script: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script, *args],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_forced_isa(isa: str) -> None:
    # What malloc hands out is filled with 0x7f: scratch that is read unwritten shows.
    done = run(BATTERY, isa, GATKERNELS_ISA=isa, MALLOC_PERTURB_="128")
    if f"GATKERNELS_ISA asks for {isa}, which this processor does not have" in done.stderr:
        assert isa not in (_dispatch.isa(), "baseline")
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stderr
    assert "right: " in done.stdout


def test_unknown_isa_says_what_there_is() -> None:
    script = (
        "import gatkernels as g; print(dict(g._dispatch.explain())['cpu']); "
        "print(dict(g._dispatch.explain())['reference'])"
    )
    done = run(script, GATKERNELS_ISA="sse9")
    assert done.returncode == 0, done.stderr
    cpu, reference = done.stdout.splitlines()
    assert "GATKERNELS_ISA must be baseline, avx2 or avx512, got sse9" in cpu
    assert reference == "None"


def test_without_the_compiled_module(tmp_path: Path) -> None:
    """The reference works, graphs are built by torch ops, and "cpu" says what to do."""
    done = run(WITHOUT_MODULE, str(tmp_path / "graphs.pt"))
    assert done.returncode == 0, done.stderr
    too_large, negative, unavailable = done.stdout.splitlines()
    assert "'edge_index[1]' holds node id 3 at position 1, but ids must lie in [0, 3)" in too_large
    assert "'edge_index[0]' holds node id -1 at position 1" in negative
    assert unavailable.startswith("gat_attention: backend 'cpu' cannot run this: ")
    assert "gatkernels._cpu is missing; install from source with a C++ compiler: pip install ." in (
        unavailable
    )
    saved = torch.load(tmp_path / "graphs.pt")
    for name, build in GRAPHS.items():
        _assert_same(saved[name], build(), name)


def _assert_same(saved: dict[str, object], graph: Graph, name: str) -> None:
    used = int(graph.rowptr[-1])
    for key, value in vars(graph).items():
        other = saved[key]
        if not isinstance(value, torch.Tensor):
            assert other == value, (name, key)
            continue
        assert isinstance(other, torch.Tensor)
        assert other.dtype == value.dtype, (name, key)
        assert other.shape == value.shape, (name, key)
        end = None if key.endswith("ptr") else used
        assert torch.equal(other[:end], value[:end]), (name, key)
