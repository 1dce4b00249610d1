"""Layers, drop-ins and what is around them on shards, against one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
import torch.distributed as dist
import worlds
from torch import Tensor

from gatkernels import Graph, attention_weights, gat_attention, nn
from gatkernels.distributed import ShardedGraph

RANKS = 3
WIDTH = 6


def made(name: str) -> Any:
    """A layer of a name, its adjacency's self loops, and whether it takes features of edges."""
    torch.manual_seed(2)
    if name.startswith("nn."):
        layers: dict[str, Callable[[], Any]] = {
            "nn.GATConv": lambda: nn.GATConv(WIDTH, 4, heads=3, dropout=0.4, residual=True),
            "nn.GATConv of pairs": lambda: nn.GATConv((WIDTH, WIDTH), 4, heads=3, concat=False),
            "nn.GATv2Conv": lambda: nn.GATv2Conv(WIDTH, 4, heads=3, dropout=0.4),
            "nn.TransformerConv": lambda: nn.TransformerConv(WIDTH, 4, heads=3, edge_dim=2),
        }
        return layers[name]()
    pyg = pytest.importorskip("gatkernels.pyg", reason="drop-ins need torch-geometric")
    layers = {
        "pyg.GATConv": lambda: pyg.GATConv(WIDTH, 4, heads=3, edge_dim=2, dropout=0.4),
        "pyg.GATv2Conv": lambda: pyg.GATv2Conv(WIDTH, 4, heads=3, dropout=0.4),
        "pyg.TransformerConv": lambda: pyg.TransformerConv(WIDTH, 4, heads=3, beta=True),
    }
    return layers[name]()


NAMES = (
    "nn.GATConv",
    "nn.GATConv of pairs",
    "nn.GATv2Conv",
    "nn.TransformerConv",
    "pyg.GATConv",
    "pyg.GATv2Conv",
    "pyg.TransformerConv",
)


def step(name: str, graph: Graph, x: Tensor, attr: Tensor, grad: Tensor) -> Any:
    """A layer's result, alpha, gradient of its input, and of its parameters."""
    layer = made(name)
    x = x.clone().requires_grad_()
    given = (x, x * 2.0) if "pairs" in name else x
    torch.manual_seed(8)
    edges = (attr,) if getattr(layer, "edge_dim", None) else ()
    out, (edge_index, alpha) = layer(given, graph, *edges, return_attention_weights=True)
    out.backward(grad)
    return out.detach(), edge_index, alpha.detach(), x.grad, [p.grad for p in layer.parameters()]


def data(num_edges: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    sizes = (cases.NODES, WIDTH), (num_edges, 2), (cases.NODES, 12)
    return tuple(torch.randn(*size, generator=generator) for size in sizes)  # type: ignore[return-value]


def layers_on_shards(rank: int, names: list[str]) -> Any:
    share = cases.share_of(rank, dist.get_world_size())
    graph = ShardedGraph.from_edge_index(share, cases.NODES, True, exchange="halo")
    x, attr, grad = data(graph.total_edges)
    found = {}
    for name in names:
        mine = grad[graph.nodes][:, :4] if "pairs" in name else grad[graph.nodes]
        found[name] = step(name, graph, x[graph.nodes], attr[graph.edge_ids], mine)
    return found, graph.nodes, graph.edge_ids[graph.used_edge_ids()]


def test_layers_and_drop_ins_take_shards() -> None:
    found = worlds.run(RANKS, layers_on_shards, list(NAMES))
    graph = Graph.from_edge_index(cases.edges(), cases.NODES, self_loops=True)
    x, attr, grad = data(graph.num_edges)
    used = graph.used_edge_ids()
    nodes = torch.cat([own for _, own, _ in found])
    ids = torch.cat([of_edges for *_, of_edges in found])
    assert torch.equal(ids.sort().values, used)
    for name in NAMES:
        out, edge_index, alpha, of_x, weights = step(
            name, graph, x, attr, grad[:, :4] if "pairs" in name else grad
        )
        parts = [one[name] for one, *_ in found]
        place = torch.searchsorted(used, ids)
        close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(torch.cat([p[0] for p in parts]), out[nodes], **close)
        assert torch.equal(torch.cat([p[1] for p in parts], 1), edge_index[:, place])
        torch.testing.assert_close(torch.cat([p[2] for p in parts]), alpha[place], **close)
        torch.testing.assert_close(torch.cat([p[3] for p in parts]), of_x[nodes], **close)
        for k, weight in enumerate(weights):
            total = torch.stack([p[4][k] for p in parts]).sum(0)
            torch.testing.assert_close(total, weight, rtol=1e-3, atol=1e-3)


def other_calls(rank: int, exchange: str) -> Any:
    share = cases.share_of(rank, dist.get_world_size())
    graph = ShardedGraph.from_edge_index(share, cases.NODES, exchange=exchange)
    x, score = batch()
    own = graph.nodes
    weights = attention_weights(graph, score[0][own], score[0][own], backend="auto")
    out = gat_attention(graph, x[:, own], score[:, own], score[:, own])
    text = repr(graph)
    back = graph.gather(out[0])
    dealt = graph.scatter(x[0] if rank == 1 else None, 1)
    assert torch.equal(dealt, x[0, own])
    assert torch.equal(graph.rows_of(own.flip(0)), torch.arange(len(own)).flip(0))
    return out, weights, back, text, own, graph.edge_ids


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(2, cases.NODES, 3, 4, generator=generator)
    return x, torch.randn(2, cases.NODES, 3, generator=generator)


@pytest.mark.parametrize("exchange", ["halo", "heads"])
def test_batches_weights_scatter_and_gather(exchange: str) -> None:
    found = worlds.run(RANKS, other_calls, exchange)
    graph = Graph.from_edge_index(cases.edges(), cases.NODES)
    x, score = batch()
    out = gat_attention(graph, x, score, score)
    weights = attention_weights(graph, score[0], score[0])
    for got_out, got_weights, back, text, own, ids in found:
        close = {"rtol": 0.0, "atol": 0.0} if exchange == "halo" else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(got_out, out[:, own], **close)
        torch.testing.assert_close(got_weights, weights[ids], **close)
        torch.testing.assert_close(back, out[0], **close)
        assert f"exchange: {exchange}, as asked for" in text
        assert "rho" in text


def counted(rank: int, case: cases.Case) -> Any:
    share = cases.share_of(rank, dist.get_world_size())
    graph = ShardedGraph.from_edge_index(share, cases.NODES, exchange="halo")
    given, grads = (
        {n: cases.part_of(cases.kind_of(case, n), t, graph) for n, t in made.items()}
        for made in cases.tensors(case, graph.total_edges)
    )
    cases.results(case, graph, given, grads, "auto")
    return dict(graph.traffic), graph.sizes[rank].halo


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [
        (cases.Case("gat", heads=3, channels=5), 3 * 5 * 4 + 3 * 4, 3 * 5 * 4 + 4 * 3 * 4),
        (cases.Case("gat", torch.float64), 3 * 5 * 8 + 3 * 8, 3 * 5 * 8 + 4 * 3 * 8),
        (cases.Case("gat", torch.bfloat16), 3 * 5 * 2 + 3 * 4, 3 * 5 * 2 + 4 * 3 * 4),
        (cases.Case("gatv2"), 3 * 5 * 4, 2 * 3 * 5 * 4 + 4 * 3 * 4),
        (cases.Case("dot"), 3 * (5 + 7) * 4, 3 * (5 + 7) * 4 + 4 * 3 * 4),
    ],
    ids=["gat", "float64", "bfloat16", "gatv2", "dot"],
)
def test_bytes_are_those_of_the_formula(case: cases.Case, forward: int, backward: int) -> None:
    found = worlds.run(RANKS, counted, case)
    sent = {way: sum(traffic[way] for traffic, _ in found) for way in ("forward", "backward")}
    assert sent["forward"] == forward * sum(sources for _, (sources, _) in found)
    assert sent["backward"] == backward * sum(targets for _, (_, targets) in found)
    assert all(traffic.keys() == {"forward", "backward"} for traffic, _ in found)


def compiled(rank: int) -> tuple[Tensor, Tensor]:
    graph = ShardedGraph.from_edge_index(cases.edges(), cases.NODES)
    x, score = batch()

    def twice(x: Tensor, score: Tensor) -> Tensor:
        out: Tensor = 2 * gat_attention(graph, x + 1, score)
        return out

    again = torch.compile(twice, backend="eager")
    return again(x[0], score[0]), twice(x[0], score[0])


def test_compiled_code_breaks_at_an_operator() -> None:
    [(again, plain)] = worlds.run(1, compiled)
    assert torch.equal(again, plain)
