"""The schedule by degree covers every edge once, in the order its docstring promises."""

from __future__ import annotations

import gc

import pytest
import torch
from graphs import GRAPHS
from torch import Tensor

from gatkernels import _schedule

SIZES = ((1, 1), (1, 64), (4, 16), (16, 512), (32, 2048))


def _pointers() -> dict[str, tuple[Tensor, int]]:
    found = {name: make() for name, make in GRAPHS.items()}
    pointers = {name: (graph.rowptr, graph.num_edges) for name, graph in found.items()}
    pointers["degrees, by source"] = (found["degrees"].colptr, found["degrees"].num_edges)
    return pointers


@pytest.mark.parametrize(("tiny", "chunk"), SIZES)
@pytest.mark.parametrize("name", [*GRAPHS, "degrees, by source"])
def test_every_edge_once(name: str, tiny: int, chunk: int) -> None:
    rowptr, num_edges = _pointers()[name]
    plan = _schedule.build(rowptr, num_edges, tiny, chunk)
    degree = rowptr.diff()
    hubs, bigs = plan.counts.tolist()
    order = plan.order.tolist()
    assert sorted(order) == list(range(len(degree)))
    assert all(int(degree[row]) > chunk for row in order[:hubs])
    assert all(tiny < int(degree[row]) <= chunk for row in order[hubs:bigs])
    assert all(int(degree[row]) <= tiny for row in order[bigs:])
    assert plan.segment_row.shape[0] == plan.chunks + plan.bigs

    edges: dict[int, list[int]] = {row: [] for row in order[:bigs]}
    segments = list(
        zip(*(t.tolist() for t in plan[2:5]), strict=True)  # row, begin, end
    )
    for place, (row, begin, end) in enumerate(segments):
        if row < 0:
            assert begin == end == 0
            continue
        assert 0 < end - begin <= chunk
        assert (place < plan.chunks) == (int(degree[row]) > chunk)
        edges[row] += range(begin, end)
    for row, places in edges.items():
        assert places == list(range(int(rowptr[row]), int(rowptr[row + 1])))
    for k in range(plan.hubs):
        mine = segments[int(plan.hub_ptr[k]) : int(plan.hub_ptr[k + 1])]
        assert len(mine) == (-(-int(degree[order[k]]) // chunk) if k < hubs else 0)
        assert all(row == order[k] for row, _, _ in mine)


def test_tiny_rows_of_one_degree_keep_their_order() -> None:
    rowptr = torch.tensor([2, 1, 0, 2, 1, 9, 2, 5]).cumsum(0)
    plan = _schedule.build(torch.cat([torch.zeros(1).long(), rowptr]), 22, 4, 8)
    assert plan.order.tolist() == [5, 7, 0, 3, 6, 1, 4, 2]
    assert plan.counts.tolist() == [1, 2]


def test_sizes_do_not_depend_on_the_data() -> None:
    """A full hub and evenly spread edges need arrays of the same lengths."""
    even = torch.arange(101) * 70
    hub = torch.zeros(101, dtype=torch.int64)
    hub[51:] = 7000
    shapes = []
    for rowptr in (even, hub, torch.zeros_like(hub)):
        plan = _schedule.build(rowptr, 7000, 16, 128)
        shapes.append([getattr(part, "shape", part) for part in plan])
    assert shapes[0] == shapes[1] == shapes[2]


def test_nothing_is_copied_to_the_host() -> None:
    """On meta tensors, any op that reads a value raises."""
    plan = _schedule.build(torch.empty(1001, dtype=torch.int64, device="meta"), 90_000, 16, 512)
    assert {part.device.type for part in plan[:6]} == {"meta"}


def test_remembered_while_the_graph_lives() -> None:
    graph = GRAPHS["degrees"]()
    first = _schedule.cached(graph.rowptr, graph.num_edges, 16, 512)
    assert _schedule.cached(graph.rowptr, graph.num_edges, 16, 512) is first
    assert _schedule.cached(graph.rowptr, graph.num_edges, 16, 1024) is not first
    before = len(_schedule._cache)
    del graph
    gc.collect()
    assert len(_schedule._cache) == before - 1
