"""Graphs with very many nodes and almost no edges: the same results from the few nodes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import DEVICE
from tolerance import BACKEND
from torch import Tensor

from gatkernels import Graph, gat_attention, gatv2_attention
from gatkernels.nn import GATConv, GATv2Conv
from gatkernels.ops.compact import LEAST, compact

N = 2 * LEAST
EDGES = torch.tensor([[5, 9, 5, 5, N - 1, 0, 7, 7], [9, 5, 9, 3, 0, 0, 20, 20]]).to(DEVICE)
COUNTS = [N, (N, N + 3), (N + 50, LEAST)]


def inputs(graph: Graph, version: int) -> list[Tensor]:
    src, dst, edges = graph.num_src, graph.num_dst, graph.num_edges
    if version == 1:
        sizes: list[Any] = [(src, 2, 3), (src, 2), (dst, 2), (edges, 2)]
    else:
        sizes = [(src, 2, 3), (dst, 2, 3), (2, 3), (edges, 2, 3)]
    return [torch.randn(*s, dtype=torch.float64).to(DEVICE).requires_grad_() for s in sizes]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("version", [1, 2])
def test_operators(version: int, counts: Any, dropout: float) -> None:
    graph = Graph.from_edge_index(EDGES, counts)
    few = compact(graph)
    assert few is not None
    assert few.graph.num_dst < 20
    assert compact(graph) is few
    leaves = inputs(graph, version)
    call = gat_attention if version == 1 else gatv2_attention
    found = []
    for backend in (BACKEND, "reference"):
        torch.manual_seed(3)
        options: Any = {"dropout": dropout, "return_attention": True, "backend": backend}
        out, alpha = call(graph, *leaves, **options)
        loss = out.square().sum() + (alpha * alpha.detach()).sum()
        found.append([out, alpha, *torch.autograd.grad(loss, leaves)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [GATConv, GATv2Conv], ids=lambda c: c.__name__)
def test_layers(make: Any, dtype: torch.dtype) -> None:
    layer = make(3, 2, 2, add_self_loops=False).to(DEVICE, dtype)
    x = torch.randn(N, 3).to(DEVICE, dtype)
    graph = Graph.from_edge_index(EDGES, N)
    results = []
    for backend in (BACKEND, "reference"):
        layer.backend = backend
        out = layer(x, graph)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got.float(), expected.float(), rtol=3e-2, atol=3e-2)


def test_twice_differentiated() -> None:
    graph = Graph.from_edge_index(EDGES, N)
    x, src, dst, _ = inputs(graph, 1)
    twice = []
    for backend in (BACKEND, "reference"):
        out = gat_attention(graph, x, src, dst, backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        twice.append(torch.autograd.grad(first.square().sum(), (x, src, dst)))
    for got, expected in zip(*twice, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("count", [0, 1])
def test_no_edges_or_one(count: int) -> None:
    graph = Graph.from_edge_index(EDGES[:, :count], N)
    x, src, dst, _ = inputs(graph, 1)
    out = gat_attention(graph, x, src, dst, backend=BACKEND)
    expected = torch.zeros_like(out)
    expected[9] = x[5] if count else 0.0
    torch.testing.assert_close(out, expected)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert float(gradient.sum()) == 6.0 * count


@pytest.mark.parametrize("edge", [False, True], ids=["plain", "edge"])
@pytest.mark.parametrize("version", [1, 2])
def test_nodes_with_no_edge_but_their_self_loop(version: int, edge: bool) -> None:
    graph = Graph.from_edge_index(EDGES, N, self_loops=True)
    few = compact(graph)
    assert few is not None
    assert few.graph.num_dst == 7  # 5, 9, 3, 0, N - 1, 7, 20
    leaves = inputs(graph, version)[: 4 if edge else 3]
    call = gat_attention if version == 1 else gatv2_attention
    found = []
    for backend in (BACKEND, "reference"):
        out = call(graph, *leaves, backend=backend)
        grads = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        twice = torch.autograd.grad(sum((g * g).sum() for g in grads), leaves)
        found.append([out, *grads, *twice])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layer", [GATConv, GATv2Conv], ids=lambda c: c.__name__)
def test_self_loops_of_a_layer_with_dropout_and_without(layer: Any) -> None:
    made = layer(3, 2, 2, dropout=0.5).double().to(DEVICE)
    x = torch.randn(N, 3).double().to(DEVICE)
    for training in (False, True):
        made.train(training)
        results = []
        for backend in (BACKEND, "reference"):
            made.backend = backend
            torch.manual_seed(1)
            out = made(x, EDGES)
            weights = torch.autograd.grad(out.square().sum(), list(made.parameters()))
            results.append([out, *weights])
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("make", [GATConv, GATv2Conv], ids=lambda c: c.__name__)
def test_features_whose_scores_are_not_finite_show(make: Any, value: float) -> None:
    layer = make(3, 2, 2).to(DEVICE)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(1e10 if value == 1e30 else 1.0)
    x = torch.ones(N, 3).to(DEVICE)
    x[100, 1] = value
    found = []
    for backend in (BACKEND, "reference"):
        layer.backend = backend
        found.append(layer(x, EDGES)[[99, 100]].detach())
    torch.testing.assert_close(*found, equal_nan=True)


def test_a_large_graph_with_self_loops_is_traced() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = Graph.from_edge_index(EDGES, N, self_loops=True)
    x, src, dst = (t.detach().float() for t in inputs(graph, 1)[:3])

    def call(x: Tensor) -> Any:
        return gat_attention(graph, x, src, dst, backend=BACKEND)

    torch.testing.assert_close(make_fx(call)(x)(x), call(x))


@pytest.mark.parametrize("place", [1, 2])
def test_a_score_that_is_no_number_shows_where_there_is_a_self_loop_alone(place: int) -> None:
    graph = Graph.from_edge_index(EDGES, N, self_loops=True)
    leaves = [t.detach() for t in inputs(graph, 1)]
    leaves[place][100, 1] = float("nan")
    out = gat_attention(graph, *leaves, backend=BACKEND)
    assert out[100].isnan().any(1).tolist() == [False, True]
    assert out[101:].isfinite().all()


def test_other_graphs_are_taken_as_they_are() -> None:
    assert compact(Graph.from_edge_index(EDGES, (N, N + 3), self_loops=True)) is None
    many = torch.zeros(2, N // 4 + 1, dtype=torch.long, device=DEVICE)
    assert compact(Graph.from_edge_index(many, N)) is None
    assert compact(Graph.from_edge_index(EDGES % 30, LEAST - 1)) is None


def test_evaluated_in_inference_mode_then_trained() -> None:
    graph = Graph.from_edge_index(EDGES, N)
    leaves = inputs(graph, 1)[:3]
    with torch.inference_mode():
        expected = gat_attention(graph, *leaves, backend=BACKEND)
    out = gat_attention(graph, *leaves, backend=BACKEND)
    torch.testing.assert_close(out, expected)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), leaves))
