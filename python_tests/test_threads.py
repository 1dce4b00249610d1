"""Python threads that share graphs, layers and caches get the bits of one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from gatkernels import Graph, gat_attention, gatv2_attention, nn

WORKERS, TURNS = 8, 5
NODES, EDGES = 700, 9_000


def _edges(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(0, NODES, (2, EDGES), generator=generator)
    edges[1, :3000] = 5  # a hub of two chunks
    return edges


def _features(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (NODES, 4, 8), (NODES, 4)
    x, scores = (torch.randn(shape, generator=generator) for shape in shapes)
    return x.requires_grad_(), scores


def _operators(graph: Graph, seed: int) -> list[Tensor]:
    x, scores = _features(seed)
    outs = [gat_attention(graph, x, scores, scores), gatv2_attention(graph, x, x, x[0])]
    found = [torch.autograd.grad(out.square().sum(), x)[0] for out in outs]
    return [*(out.detach() for out in outs), *found]


def _layer(layer: nn.GATConv, edges: Tensor, seed: int) -> list[Tensor]:
    x = _features(seed)[0].detach().flatten(1).requires_grad_()
    out = layer(x, edges)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), x)]


def _at_once(call: Any) -> list[list[Tensor]]:
    """``call(worker)`` by all workers, which begin together."""
    start = Barrier(WORKERS)

    def work(worker: int) -> list[Tensor]:
        start.wait()
        for turn in range(TURNS):
            torch.set_num_threads(1 + (worker + turn) % 3)
            found: list[Tensor] = call(worker)
        return found

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, range(WORKERS)))


@pytest.fixture(autouse=True)
def _threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _assert_same(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_graphs_of_their_own() -> None:
    expected = [_operators(Graph.from_edge_index(_edges(w), NODES), w) for w in range(WORKERS)]
    found = _at_once(lambda w: _operators(Graph.from_edge_index(_edges(w), NODES), w))
    _assert_same(found, expected)


def test_one_graph_whose_edges_by_source_are_still_to_be_made() -> None:
    graph = Graph.from_edge_index(_edges(0), NODES)
    expected = [_operators(graph, worker) for worker in range(WORKERS)]
    for _ in range(3):
        with torch.no_grad():
            cold = Graph.from_edge_index(_edges(0), NODES)
        _assert_same(_at_once(lambda w, graph=cold: _operators(graph, w)), expected)


def test_one_layer_on_one_edge_index() -> None:
    """The layer remembers the graph of the edges it has seen."""
    layer, edges = nn.GATConv(32, 8, heads=4), _edges(0)
    expected = [_layer(layer, edges, worker) for worker in range(WORKERS)]
    for _ in range(3):
        fresh = edges.clone()
        _assert_same(_at_once(lambda w, edges=fresh: _layer(layer, edges, w)), expected)


def test_one_layer_on_edges_of_their_own() -> None:
    layer = nn.GATConv(32, 8, heads=4)
    expected = [_layer(layer, _edges(worker), worker) for worker in range(WORKERS)]
    _assert_same(_at_once(lambda w: _layer(layer, _edges(w), w)), expected)
