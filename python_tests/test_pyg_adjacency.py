"""Every adjacency PyG's layers take, its edge features, and the loops put into it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from pyg_parity import (
    CLOSE,
    NODES,
    assert_like_pyg,
    assert_raises_as_pyg,
    both,
    every_class,
    every_dtype,
    some_edges,
)
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

from gatkernels.graph import Graph
from gatkernels.layers.dropin import fallbacks


@every_class
@every_dtype
@pytest.mark.parametrize("sizes", [(20, 13), (13, 20)], ids=str)
@pytest.mark.parametrize("loops", [False, True])
def test_bipartite_with_as_many_loops_as_the_smaller_side(
    name: str, dtype: torch.dtype, sizes: tuple[int, int], loops: bool
) -> None:
    layers = both(name, (6, 4), 5, 2, add_self_loops=loops, residual=True, dtype=dtype)
    x = torch.randn(sizes[0], 6, dtype=dtype), torch.randn(sizes[1], 4, dtype=dtype)
    assert_like_pyg(layers, x, some_edges(*sizes, 50))


FILLS = ["mean", "add", "min", "max", "mul", 0.5, None, torch.tensor([0.5, -1.0, 2.0])]


@every_class
@pytest.mark.parametrize("fill", FILLS, ids=str)
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_features_of_loops(name: str, fill: Any, flow: str) -> None:
    dtype = torch.float64
    layers = both(name, 6, 5, 2, edge_dim=3, fill_value=fill, flow=flow, dtype=dtype)
    attr = torch.randn(80, 3, dtype=dtype)
    assert_like_pyg(layers, torch.randn(NODES, 6, dtype=dtype), some_edges(), attr)


@every_class
@every_dtype
@pytest.mark.parametrize("loops", [False, True])
def test_edge_features(name: str, dtype: torch.dtype, loops: bool) -> None:
    layers = both(name, 6, 5, 2, edge_dim=3, add_self_loops=loops, dtype=dtype)
    x = torch.randn(NODES, 6, dtype=dtype)
    assert_like_pyg(layers, x, some_edges(), torch.randn(80, 3, dtype=dtype))
    assert_like_pyg(layers, x, some_edges())
    one = both(name, 6, 5, 2, edge_dim=1, add_self_loops=loops, dtype=dtype)
    assert_like_pyg(one, x, some_edges(), torch.randn(80, dtype=dtype))
    pair = x, torch.randn(25, 6, dtype=dtype)
    edges = some_edges(NODES, NODES)
    assert_like_pyg(layers, pair, edges, torch.randn(80, 3, dtype=dtype))


@every_class
def test_infinite_features_of_removed_loops_reach_nothing(name: str) -> None:
    layers = both(name, 6, 5, 2, edge_dim=3)
    edges = some_edges()
    attr = torch.randn(80, 3)
    attr[edges[0] == edges[1]] = float("inf")
    assert_like_pyg(layers, torch.randn(NODES, 6), edges, attr)


def test_edge_features_without_edge_dim() -> None:
    """GATConv ignores them, GATv2Conv refuses."""
    x, edges, attr = torch.randn(NODES, 6), some_edges(), torch.randn(80, 3)
    ours, theirs = both("GATConv", 6, 5)
    torch.testing.assert_close(ours(x, edges, attr), theirs(x, edges, attr))
    assert not fallbacks(ours)
    assert_raises_as_pyg(both("GATv2Conv", 6, 5), x, edges, attr)


@every_class
@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("order", [None, "row", "col"])
@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
def test_edge_index_stays_an_edge_index(
    name: str, loops: bool, order: str | None, ids: torch.dtype
) -> None:
    layers = both(name, 6, 5, 2, add_self_loops=loops)
    edges = some_edges().to(ids)
    if order is not None:
        edges = edges[:, edges[0 if order == "row" else 1].argsort()]
    index = EdgeIndex(edges, sparse_size=(NODES, NODES), sort_order=order)
    assert_like_pyg(layers, torch.randn(NODES, 6), index)


@every_class
def test_edge_index_of_another_size(name: str) -> None:
    layers = both(name, 6, 5)
    index = EdgeIndex(some_edges(), sparse_size=(NODES + 1, NODES + 1))
    assert_raises_as_pyg(layers, torch.randn(NODES, 6), index)


@every_class
@every_dtype
@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("layout", [to_torch_csr_tensor, to_torch_coo_tensor])
def test_transposed_torch_sparse(name: str, dtype: torch.dtype, loops: bool, layout: Any) -> None:
    edges = some_edges().unique(dim=1)
    adj = layout(edges.flip(0), size=(NODES, NODES))
    x = torch.randn(NODES, 6, dtype=dtype)
    layers = both(name, 6, 5, 2, add_self_loops=loops, dtype=dtype)
    for _ in range(2):  # the second time from the cache
        assert_like_pyg(layers, x, adj)
    rectangle = layout(some_edges(20, 13).unique(dim=1).flip(0), size=(13, 20))
    pair = both(name, (6, 4), 5, 2, add_self_loops=loops, dtype=dtype)
    assert_like_pyg(pair, (x, torch.randn(13, 4, dtype=dtype)), rectangle)
    if name == "GATConv":
        assert_like_pyg(pair, (x, None), rectangle)


@every_class
@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("layout", [to_torch_csr_tensor, to_torch_coo_tensor])
def test_edge_features_as_values_of_a_sparse_matrix(name: str, loops: bool, layout: Any) -> None:
    edges = some_edges().unique(dim=1)
    x, attr = torch.randn(NODES, 6), torch.randn(edges.shape[1], 3)
    layers = both(name, 6, 5, 2, add_self_loops=loops, edge_dim=3)
    grads = []
    for layer in layers:
        leaf = attr.clone().requires_grad_()
        out = layer(x, layout(edges.flip(0), leaf, size=(NODES, NODES)))
        grads.append([out, *torch.autograd.grad(out.square().sum(), [layer.lin_edge.weight])])
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE[torch.float32])
    assert not fallbacks(layers[0])


@every_class
def test_a_changed_sparse_matrix_is_read_again(name: str) -> None:
    layers = both(name, 6, 5, 2, add_self_loops=False)
    adj = to_torch_csr_tensor(torch.tensor([[0, 1, 2], [1, 2, 3]]), size=(4, 4))
    x = torch.randn(4, 6)
    assert_like_pyg(layers, x, adj)
    adj.col_indices().fill_(2)
    assert_like_pyg(layers, x, adj)


@every_class
def test_sparse_adjacencies_that_pyg_refuses(name: str) -> None:
    x, edges = torch.randn(NODES, 6), some_edges().unique(dim=1)
    size = (NODES, NODES)
    csr = to_torch_csr_tensor(edges, size=size)
    for loops in (False, True):
        layers = both(name, 6, 5, add_self_loops=loops)
        assert_raises_as_pyg(layers, x, to_torch_csc_tensor(edges, size=size))
        assert_raises_as_pyg(layers, x, to_torch_csr_tensor(edges, size=(NODES + 1, NODES + 1)))
        uncoalesced = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1]), size)
        if not loops:
            assert_raises_as_pyg(layers, x, uncoalesced)
    reverse = both(name, 6, 5, flow="target_to_source")
    assert_raises_as_pyg(reverse, x, csr)
    with_attr = both(name, 6, 5, edge_dim=3)
    assert_raises_as_pyg(with_attr, x, csr, torch.randn(edges.shape[1], 3))


@every_class
@pytest.mark.parametrize("loops", [False, True])
def test_sparse_tensor(name: str, loops: bool) -> None:
    torch_sparse = pytest.importorskip("torch_sparse", reason="torch-sparse is not installed")
    edges = some_edges().unique(dim=1)
    adj = torch_sparse.SparseTensor.from_edge_index(edges, sparse_sizes=(NODES, NODES)).t()
    x = torch.randn(NODES, 6)
    layers = both(name, 6, 5, 2, add_self_loops=loops)
    results = [layer(x, adj, return_attention_weights=True) for layer in layers]
    for (out, weighted), _ in zip(results, layers, strict=True):
        torch.testing.assert_close(out, results[1][0], **CLOSE[torch.float32])
        for got, expected in zip(weighted.coo(), results[1][1].coo(), strict=True):
            torch.testing.assert_close(got, expected, **CLOSE[torch.float32])
    assert not fallbacks(layers[0])
    wide = adj.set_value(torch.randn(edges.shape[1], 3), layout="coo")
    with_attr = both(name, 6, 5, 2, add_self_loops=loops, edge_dim=3)
    if loops:
        assert_raises_as_pyg(with_attr, x, wide)
    else:
        torch.testing.assert_close(*(layer(x, wide) for layer in with_attr))
        assert not fallbacks(with_attr[0])


@every_class
@every_dtype
@pytest.mark.parametrize("loops", [False, True])
def test_no_edges_no_nodes_and_no_incoming_edges(
    name: str, dtype: torch.dtype, loops: bool
) -> None:
    layers = both(name, 6, 5, 2, add_self_loops=loops, residual=True, dtype=dtype)
    none = torch.empty(2, 0, dtype=torch.int64)
    for nodes in (0, 4):
        assert_like_pyg(layers, torch.randn(nodes, 6, dtype=dtype), none)
    ours, _ = both(name, 6, 5, 2, add_self_loops=False, dtype=dtype)
    out = ours(torch.randn(NODES, 6, dtype=dtype), some_edges())
    assert torch.equal(out[-1], ours.bias)


@every_dtype
@pytest.mark.parametrize("in_channels", [6, (6, 4)])
@pytest.mark.parametrize("loops", [False, True])
def test_sources_alone_with_a_size(dtype: torch.dtype, in_channels: Any, loops: bool) -> None:
    layers = both("GATConv", in_channels, 5, 2, add_self_loops=loops, dtype=dtype)
    x = torch.randn(20, 6, dtype=dtype)
    assert_like_pyg(layers, (x, None), some_edges(20, 13, 50), size=(20, 13))
    assert_like_pyg(layers, (x, None), some_edges(20, 20, 50))


def test_size() -> None:
    layers = both("GATConv", 6, 5, 2)
    x = torch.randn(NODES, 6)
    assert_like_pyg(layers, x, some_edges(), size=(NODES, NODES))
    assert_raises_as_pyg(layers, x, some_edges(), size=(NODES, NODES + 1))
    assert_raises_as_pyg(layers, (x, x[:5]), some_edges(NODES, 5), size=(NODES, 6))


@every_class
@every_dtype
@pytest.mark.parametrize("loops", [False, True])
def test_flow_from_target_to_source(name: str, dtype: torch.dtype, loops: bool) -> None:
    layers = both(name, 6, 5, 2, flow="target_to_source", add_self_loops=loops, dtype=dtype)
    x = torch.randn(NODES, 6, dtype=dtype)
    assert_like_pyg(layers, x, some_edges())
    pair = both(name, (6, 4), 5, 2, flow="target_to_source", add_self_loops=loops, dtype=dtype)
    assert_like_pyg(pair, (x, torch.randn(NODES, 4, dtype=dtype)), some_edges())


@every_class
def test_one_input_for_two_projections(name: str) -> None:
    assert_like_pyg(both(name, (6, 6), 5, 2), torch.randn(NODES, 6), some_edges())


@every_class
def test_parallel_edges_are_entries_of_their_own(name: str) -> None:
    edges = torch.tensor([[0, 0, 0, 1], [2, 2, 2, 2]])
    layers = both(name, 6, 5, 2, add_self_loops=False, edge_dim=3)
    assert_like_pyg(layers, torch.randn(3, 6), edges, torch.randn(4, 3))


@every_class
def test_edge_indices_that_are_views(name: str) -> None:
    layers = both(name, 6, 5, 2)
    wide = some_edges().repeat_interleave(2, dim=1)
    for edges in (wide[:, ::2], some_edges().t().contiguous().t(), some_edges()[:, :0]):
        assert_like_pyg(layers, torch.randn(NODES, 6), edges)


@every_class
@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
def test_integer_types_of_ids(name: str, ids: torch.dtype) -> None:
    for loops in (False, True):
        ours, theirs = both(name, 6, 5, 2, add_self_loops=loops)
        x, edges = torch.randn(NODES, 6), some_edges().to(ids)
        assert_like_pyg((ours, theirs), x, edges)
        results = [layer(x, edges, return_attention_weights=True)[1][0] for layer in (ours, theirs)]
        assert results[0].dtype == results[1].dtype


@every_class
def test_the_graph_is_built_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    build = Graph.from_edge_index.__func__  # type: ignore[attr-defined]

    def counting(cls: Any, *args: Any, **kwargs: Any) -> Any:
        built.append(1)
        return build(cls, *args, **kwargs)

    monkeypatch.setattr(Graph, "from_edge_index", classmethod(counting))
    ours, _ = both(name, 6, 5)
    edges = some_edges()
    square = EdgeIndex(some_edges(), sparse_size=(NODES, NODES))
    for adjacency in (edges, square, to_torch_csr_tensor(edges.unique(dim=1), size=(NODES, NODES))):
        built.clear()
        for _ in range(3):
            ours(torch.randn(NODES, 6), adjacency)
        assert len(built) == 1
    ours(torch.randn(NODES, 6), edges.clone())  # a mini-batch of its own
    assert len(built) == 2


@pytest.mark.parametrize("loops", [False, True])
def test_the_cache_keeps_no_adjacency_alive(loops: bool) -> None:
    ours, _ = both("GATConv", 6, 5, add_self_loops=loops)
    edges = some_edges()
    adj = to_torch_csr_tensor(edges.unique(dim=1).flip(0), size=(NODES, NODES))
    square = EdgeIndex(some_edges(), sparse_size=(NODES, NODES))
    for _ in range(2):
        ours(torch.randn(NODES, 6), adj, return_attention_weights=True)
        ours(torch.randn(NODES, 6), edges)
        ours(torch.randn(NODES, 6), square)
    alive = [weakref.ref(t) for t in (adj, edges, square)]
    del adj, edges, square
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_data_objects() -> None:
    data = Data(x=torch.randn(NODES, 6), edge_index=some_edges())
    ours, theirs = both("GATConv", 6, 5)
    torch.testing.assert_close(ours(data.x, data.edge_index), theirs(data.x, data.edge_index))


@every_class
@pytest.mark.parametrize("asked", [False, True])
def test_a_graph_is_used_as_it_is(name: str, asked: bool) -> None:
    """Its own loops decide, whatever the layer was asked for."""
    ours, theirs = both(name, 6, 5, 2, edge_dim=3, fill_value=0.0)
    ours.add_self_loops = asked
    x, edges, attr = torch.randn(NODES, 6), some_edges(), torch.randn(80, 3)
    theirs.add_self_loops = False
    bare = Graph.from_edge_index(edges, NODES)
    torch.testing.assert_close(ours(x, bare, attr), theirs(x, edges, attr), **CLOSE[x.dtype])
    looped = Graph.from_edge_index(edges, NODES, self_loops=True)
    theirs.add_self_loops = True
    filled = torch.cat([attr, torch.zeros(NODES, 3)])
    torch.testing.assert_close(ours(x, looped, filled), theirs(x, edges, attr), **CLOSE[x.dtype])
    with pytest.raises(ValueError, match=rf"'x' must have a row for .* num_src={NODES} .* got 7"):
        ours(torch.randn(7, 6), bare)
    with pytest.raises(ValueError, match=rf"num_edges={80 + NODES} .* got \(80, 3\)"):
        ours(x, looped, attr)
