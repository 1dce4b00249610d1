"""Which instruction set runs, and what happens without any: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from graphs import GRAPHS

from gatkernels import Graph

HERE = Path(__file__).parent
#: The flags of a processor that each needs, the best one last.
NEEDED: dict[str, set[str]] = {
    "baseline": set(),
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
}
ISAS = tuple(NEEDED)

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


EXPLAIN = (
    "from gatkernels import backends; print(backends.isa()); "
    "print(dict(backends.explain())['cpu']); print(dict(backends.explain())['reference'])"
)


@pytest.mark.parametrize("isa", ISAS)
def test_forced_isa(isa: str) -> None:
    """The one that is named, or a reason; `make test-cpu` runs the operators on each."""
    done = run(EXPLAIN, GATKERNELS_ISA=isa)
    assert done.returncode == 0, done.stderr
    if has(isa):
        assert done.stdout.splitlines() == [isa, "None", "None"]
    else:
        used, why_not, reference = done.stdout.splitlines()
        assert (used, reference) == ("none", "None")
        assert f"GATKERNELS_ISA asks for {isa}, which this processor does not have" in why_not


def test_the_best_isa_is_chosen() -> None:
    done = run(EXPLAIN, GATKERNELS_ISA="")
    assert done.stdout.splitlines()[0] == next(isa for isa in reversed(ISAS) if has(isa))


def has(isa: str) -> bool:
    """What Linux says of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo to say what the processor has")
    return NEEDED[isa] <= set(cpuinfo.read_text().split())


def test_unknown_isa_says_what_there_is() -> None:
    done = run(EXPLAIN, GATKERNELS_ISA="sse9")
    assert done.returncode == 0, done.stderr
    _, cpu, reference = done.stdout.splitlines()
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
    for key in ("num_src", "num_dst", "num_edges", "self_loops"):
        assert saved[key] == getattr(graph, key), (name, key)
    for key in ("rowptr", "col", "eid", "colptr", "row", "ceid"):
        value, other = getattr(graph, key), saved[key]
        assert isinstance(other, torch.Tensor)
        assert other.dtype == value.dtype, (name, key)
        assert other.shape == value.shape, (name, key)
        end = None if key.endswith("ptr") else used
        assert torch.equal(other[:end], value[:end]), (name, key)
