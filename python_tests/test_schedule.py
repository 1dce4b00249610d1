"""Schedules: every edge once, their place in the graph's life, and how few launches one takes."""

from __future__ import annotations

import copy
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import DEVICE, GRAPHS
from test_gatv2 import inputs_of
from tolerance import BACKEND
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatkernels import Graph, gat_attention, gatv2_attention
from gatkernels.backends import native, schedule
from gatkernels.graph import Parts
from gatkernels.ops import build

NAMES = [*GRAPHS, "degrees, by source"]


def pointer_of(name: str) -> tuple[Tensor, int]:
    graph = GRAPHS[name.partition(",")[0]]()
    return (graph.colptr if "source" in name else graph.rowptr), graph.num_edges


@pytest.fixture(params=[4, 64, 2048])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(schedule, "SMALL_CHUNK", request.param)
    size: int = request.param
    return size


@pytest.fixture(params=["ordered", "as numbered", "bounded"])
def parts_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "bounded":
        return schedule.bounded
    monkeypatch.setattr(schedule, "ORDERED", 0 if request.param == "ordered" else 1 << 30)
    return schedule.build


@pytest.mark.parametrize("name", NAMES)
def test_every_edge_once(name: str, chunk: int, parts_of: Any) -> None:
    """As the kernels read it: chunks first, then the rows that are no hubs."""
    rowptr, num_edges = pointer_of(name)
    found = schedule.read(parts_of(rowptr, num_edges))
    pointers, rows = rowptr.tolist(), len(rowptr) - 1
    ends = [0, *([0] * rows if found.chunk_end is None else found.chunk_end.tolist())]
    edges: list[list[int]] = [[] for _ in range(rows)]
    for place, row in enumerate([] if found.chunk_row is None else found.chunk_row.tolist()):
        if row < 0:
            assert parts_of is schedule.bounded  # else there is no place too many
            assert place >= ends[-1]
            continue
        begin = pointers[row] + (place - ends[row]) * chunk
        end = min(begin + chunk, pointers[row + 1])
        assert begin < end
        assert ends[row] <= place < ends[row + 1]
        assert pointers[row + 1] - pointers[row] > chunk
        edges[row] += range(begin, end)
    order = list(range(rows)) if found.order is None else found.order.tolist()
    assert sorted(order) == list(range(rows))
    for row in order:
        if pointers[row + 1] - pointers[row] <= chunk:
            edges[row] += range(pointers[row], pointers[row + 1])
    assert edges == [list(range(*pointers[row : row + 2])) for row in range(rows)]
    if found.bigs is not None:
        bigs = int(found.bigs)
        degrees = [pointers[row + 1] - pointers[row] for row in order]
        assert all(degree > schedule.TINY for degree in degrees[:bigs])
        assert all(degree <= schedule.TINY for degree in degrees[bigs:])


def test_tiny_rows_of_one_degree_keep_their_order() -> None:
    degrees = [2, 1, 0, 2, 1, 40, 2, 5, 60, 17]
    rowptr = torch.tensor([0, *degrees]).cumsum(0)
    order, bigs = schedule.by_degree(rowptr)
    assert order.tolist() == [5, 8, 9, 7, 0, 3, 6, 1, 4, 2]
    assert bigs.tolist() == [3]


def test_chunks_grow_with_the_graph() -> None:
    few = schedule.chunk_of(schedule.SMALL - 1)
    sizes = [schedule.chunk_of(edges) for edges in (schedule.SMALL, 2_484_941, 114_615_892)]
    assert [few, *sizes] == [64, 256, 512, 16384]


def test_sizes_of_a_bounded_schedule_do_not_depend_on_the_data() -> None:
    """A full hub and evenly spread edges; on meta tensors any op that reads a value raises."""
    even = torch.arange(101) * 70
    hub = torch.zeros(101, dtype=torch.int64)
    hub[51:] = 7000
    pointers = even, hub, torch.zeros_like(hub), even.to("meta")
    shapes = {tuple(part.shape for part in schedule.bounded(ptr, 7000)) for ptr in pointers}
    assert len(shapes) == 1


#: Ops that launch nothing: views, and memory.
NO_LAUNCH = {
    "view", "_unsafe_view", "select", "slice", "expand", "unbind", "split", "alias", "t",
    "empty", "empty_like", "new_empty", "lift_fresh", "detach", "fill_",  # tests poison memory
}  # fmt: skip
#: Ops that launch several kernels, by torch's CUDA sources: a stable sort of 32-bit keys numbers
#: the places, counts digits, adds up the counts and makes four passes; a running sum makes two.
SEVERAL = {"sort": 7, "cumsum": 2}


class Launches(TorchDispatchMode):
    """Counts the kernels that ops would launch on a GPU, and how often its values are read."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        self.waits += name in ("_local_scalar_dense", "nonzero", "equal")
        if name not in NO_LAUNCH and not (isinstance(out, Tensor) and out.numel() == 0):
            self.kernels[name] += SEVERAL.get(name, 1)
        return out


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs are built by torch ops, schedules with them; the sizes of what is read at once."""
    monkeypatch.setattr(native, "cpu_missing", "as on a GPU")
    monkeypatch.setattr(schedule, "WITH_GRAPH", ("cpu",))
    monkeypatch.setattr(schedule, "ORDERED", 1 << 18)
    monkeypatch.setattr(build, "build_graph", build._build_graph)  # an op hides what it calls
    reads: list[int] = []
    read = torch.Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        reads.append(tensor.numel())
        return read(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    return reads


@pytest.mark.parametrize(("hubs", "limit"), [("", 23), ("src", 25), ("dst", 25), ("src dst", 28)])
def test_a_new_graph_takes_few_launches_and_one_wait(
    hubs: str, limit: int, as_on_a_gpu: list[int]
) -> None:
    """A batch of 100,000 edges as sampling makes them: without hubs, and with some on a side."""
    src = torch.arange(100_000) % 30_011
    dst = torch.arange(100_000) // 5
    if "src" in hubs:
        src[:500] = 7
    if "dst" in hubs:
        dst[-500:] = 9
    edge_index = torch.stack([src, dst])
    with Launches() as mode:
        graph = Graph.from_edge_index(edge_index, (30_011, 20_000))
    assert graph.by_row is not None
    assert graph.by_column is not None
    sides = len(graph.by_row), len(graph.by_column)
    assert sides == (2 * ("dst" in hubs), 2 * ("src" in hubs))
    assert mode.kernels.total() <= limit, mode.kernels
    assert mode.waits == 0
    assert as_on_a_gpu == [6, 2]  # the ids' limits with the chunks; these, in the CPU's memory
    with Launches() as mode:
        step = [graph.schedules("cuda"), graph.reverse().schedules("triton")]
    assert not mode.kernels
    assert step[0] == step[1][::-1]


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("self_loops", [False, True])
def test_both_sides_from_one_sort(self_loops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for nodes, edges in (((40, 30), 301), ((5, 70), 9_000), ((70, 5), 9_000), ((3, 3), 1)):
        ends = [torch.randint(0, count, (edges,)) for count in nodes]
        edge_index = torch.stack(ends)
        given = edge_index, edge_index.int(), edge_index.t().contiguous().t().int()
        for ids in given:
            graph = Graph.from_edge_index(ids, nodes, self_loops)
            src, dst = ends
            csr = build.one_side(dst, src, nodes[1], nodes[0], self_loops)
            csc = build.one_side(src, dst, nodes[0], nodes[1], self_loops)
            found = graph.rowptr, graph.col, graph.eid, graph.colptr, graph.row, graph.ceid
            for got, wanted in zip(found, (*csr, *csc), strict=True):
                assert got.dtype == wanted.dtype
                assert torch.equal(got, wanted)
                assert got.data_ptr() % 16 == 0
            for ptr, parts in ((graph.rowptr, graph.by_row), (graph.colptr, graph.by_column)):
                wanted_parts = schedule.build(ptr, graph.num_edges)
                assert parts is not None
                assert list(map(torch.equal, parts, wanted_parts)) == [True] * len(wanted_parts)
    monkeypatch.setattr(build, "SORTED", 0)  # each side by itself
    apart = Graph.from_edge_index(edge_index, nodes, self_loops)
    assert torch.equal(apart.colptr, graph.colptr)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_ids_out_of_range_are_named() -> None:
    for side, bad in ((0, 5), (0, -1), (1, 4), (1, -(2**40))):
        edge_index = torch.zeros(2, 7, dtype=torch.int64)
        edge_index[side, 3] = bad
        with pytest.raises(ValueError, match=rf"edge_index\[{side}\].*{bad}"):
            Graph.from_edge_index(edge_index, (5, 4))


def test_schedules_are_part_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made with a graph on a GPU, else when a call first asks; copied and moved with it."""
    graph = GRAPHS["degrees"]()
    if DEVICE.type == "cpu":
        graph.by_row = graph.by_column = None
        assert graph.schedules("cpu") == ((), ())
        assert graph.by_row is None
    by_row, by_column = graph.schedules("cuda")
    assert graph.by_row is by_row
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert list(map(torch.equal, twin.schedules("cuda")[0], by_row)) == [True] * len(by_row)
    assert graph.reverse().schedules("cuda") == (by_column, by_row)
    monkeypatch.setattr(schedule, "WITH_GRAPH", ("meta", "cuda"))
    moved = graph.to("meta")
    assert [part.device.type for part in moved.by_row or ()] == ["meta"] * len(by_row)


@pytest.mark.skipif(BACKEND not in ("cuda", "triton"), reason="about the kernels of a GPU")
@pytest.mark.parametrize("kind", ["gat", "gatv2"])
@pytest.mark.parametrize("name", ["degrees", "degrees_out", "hub_block", "random"])
def test_results_do_not_depend_on_the_order(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one bit; a schedule of bounded size also cuts the same rows at the same places."""
    operator = {"gat": gat_attention, "gatv2": gatv2_attention}[kind]
    results = []
    for ordered, make in ((0, None), (1 << 30, None), (0, schedule.bounded)):
        monkeypatch.setattr(schedule, "ORDERED", ordered)
        graph = GRAPHS[name]()
        if make is not None:
            graph.by_row = make(graph.rowptr, graph.num_edges)
            graph.by_column = make(graph.colptr, graph.num_edges)
        leaves = [
            t.requires_grad_() for t in inputs_of(kind, graph, 4, 8, torch.float32, False)[:3]
        ]
        out = operator(graph, *leaves, backend=BACKEND)
        results.append([out, *torch.autograd.grad(out, leaves, out.detach())])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, expected)


def test_a_graph_made_in_a_compiled_function_has_bounded_schedules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "WITH_GRAPH", ("cpu", "cuda"))

    def parts(edge_index: Tensor) -> Parts:
        graph = Graph.from_edge_index(edge_index, 40)
        assert graph.by_row is not None
        return graph.by_row

    edge_index = torch.randint(0, 40, (2, 300)).to(DEVICE)
    compiled = torch.compile(parts, backend="aot_eager", fullgraph=True)
    expected = schedule.bounded(Graph.from_edge_index(edge_index, 40).rowptr, 300)
    assert list(map(torch.equal, compiled(edge_index), expected)) == [True] * 4


def test_what_a_launch_of_triton_is_compiled_with_is_looked_up() -> None:
    pytest.importorskip("triton")
    from gatkernels.backends.triton import job, tiling

    cut = tiling.tile(4, 8, torch.float32)
    found = job.constants(tiling.tile(4, 8, torch.float32))
    assert found is job.constants(cut)
    assert found["tile"].H == 4


def test_the_tuning_guide_names_constants_that_are_there() -> None:
    """Each with its value, in the file it says."""
    root = Path(__file__).parents[1]
    text = (root / "docs" / "gpu-tuning.md").read_text().partition("each in one place")[2]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (?:`(\S+)`|each.*?) \| (.*?) \|", text, re.M)
    assert len(rows) >= 18
    for names, file, _ in rows:
        sources = [root / file] if file else list((root / "csrc" / "cuda").glob("*.cu"))
        code = "".join(path.read_text() for path in sources)
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b.*=", code), name


def test_a_schedule_of_bounded_size_is_exported_for_any_sizes() -> None:
    class Bounded(torch.nn.Module):
        def forward(self, rowptr: Tensor, col: Tensor) -> tuple[Tensor, ...]:
            return build.bounded_schedule(rowptr, col.shape[0])

    rows, edges = torch.export.Dim("rows", min=3), torch.export.Dim("edges")
    rowptr, col = torch.tensor([0, 2, 3, 300]), torch.zeros(300)
    program = torch.export.export(Bounded(), (rowptr, col), dynamic_shapes=({0: rows}, {0: edges}))
    many = torch.tensor([0, 100, 400_000]), torch.zeros(400_000)
    for got, wanted in zip(
        program.module()(*many), schedule.bounded(many[0], 400_000), strict=True
    ):
        assert torch.equal(got, wanted)
