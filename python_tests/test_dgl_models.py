"""What runs DGL's own code, what is kept with a graph, and accelerate on DGL's models."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dgl_parity import (
    EDGE_FEATS,
    LAYERS,
    C,
    H,
    assert_falls_back,
    assert_same,
    bipartite,
    dgl,
    extras,
    fallbacks,
    homogeneous,
    looped,
    ours,
    pair,
    randn,
    theirs,
)
from torch import Tensor, nn

import gatkernels

# What runs DGL's own code


def test_hooks_on_what_the_kernel_replaces_fall_back() -> None:
    mine, other = pair("GATConv", 5)
    seen: list[Tensor] = []
    for layer in (mine, other):
        layer.attn_drop.register_forward_hook(lambda _, __, out: seen.append(out))
    assert_falls_back(mine, "hooks", lambda layer: layer(homogeneous(), randn(20, 5)), other)
    assert len(seen) == 2


def test_hooks_on_projections_run_and_stay_fused() -> None:
    mine, other = pair("GATConv", 5)
    for layer in (mine, other):
        layer.fc.register_forward_hook(lambda _, __, out: 2 * out)
    assert_same(mine, other, homogeneous(), randn(20, 5))


def test_restricted_formats_fall_back() -> None:
    mine, other = pair("GATConv", 5)
    graph = homogeneous().formats(["coo", "csc"])
    assert_falls_back(mine, "restricted", lambda layer: layer(graph, randn(20, 5)), other)


def test_autocast_is_dgls() -> None:
    """On the CPU DGL's own code raises there."""
    mine, other = pair("GATConv", 5)
    errors = []
    for layer in (mine, other):
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(dgl.DGLError) as error:
            layer(homogeneous(), randn(20, 5))
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert fallbacks(mine) == {"autocast": 1}


def test_edge_weight_of_another_shape_falls_back() -> None:
    mine, other = pair("GATConv", 5)
    graph = homogeneous()
    weight = randn(1)
    assert_falls_back(
        mine, "edge_weight", lambda layer: layer(graph, randn(20, 5), edge_weight=weight), other
    )


@pytest.mark.parametrize("name", LAYERS)
def test_replaced_parts_stay_with_dgl(name: str) -> None:
    _, layer = pair(name, 5)
    layer.leaky_relu = nn.ELU()
    report = gatkernels.accelerate(layer)
    assert type(layer) is getattr(theirs, name)
    assert [kept.reason for kept in report.kept] == ["leaky_relu is a ELU"]


@pytest.mark.parametrize(
    "feat",
    [torch.ones(19, 5), torch.ones(20, 4), torch.ones(20, 5).double(), None, [torch.ones(20, 5)]],
    ids=["rows", "columns", "dtype", "none", "list"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_bad_features_raise_what_dgl_raises(name: str, feat: Any) -> None:
    mine, other = pair(name, 5)
    graph = homogeneous()
    rest = extras(name, graph)
    with pytest.raises(Exception) as expected:  # noqa: PT011 - whatever DGL raises
        other(graph, feat, *rest)
    with pytest.raises(type(expected.value)) as raised:
        mine(graph, feat, *rest)
    assert str(raised.value).splitlines()[0][-40:] == str(expected.value).splitlines()[0][-40:]


def test_pairs_that_differ_in_other_dimensions_fall_back() -> None:
    """DGL lets one set of sources serve all sets of destinations."""
    mine, other = pair("GATConv", (5, 7))
    feat = randn(9, 1, 5), randn(14, 3, 7)
    assert_falls_back(mine, "differ", lambda layer: layer(bipartite(), feat), other)


@pytest.mark.parametrize("size", [(99, EDGE_FEATS), (100, EDGE_FEATS + 1), (100,)])
def test_bad_edge_features_raise_what_dgl_raises(size: tuple[int, ...]) -> None:
    mine, other = pair("EdgeGATConv", 5)
    errors = []
    for layer in (mine, other):
        with pytest.raises((RuntimeError, dgl.DGLError)) as error:
            layer(homogeneous(), randn(20, 5), randn(*size))
        errors.append(str(error.value).splitlines()[0])
    assert errors[0] == errors[1]


# The cache


def kept(graph: Any) -> Any:
    return ours._edges_of(graph)


def test_the_graph_is_built_once() -> None:
    graph = homogeneous()
    first = kept(graph)
    graph.ndata["h"] = randn(20, 5)
    with graph.local_scope():
        assert kept(graph) is first
    assert kept(graph.local_var()) is first
    assert kept(graph.int()) is not first


def test_a_changed_graph_is_built_anew() -> None:
    graph = looped()
    layer, other = pair("GATConv", 5)
    before = kept(graph)
    layer(graph, randn(20, 5))
    graph.add_edges(3, 4)
    assert kept(graph) is not before
    assert_same(layer, other, graph, randn(20, 5))
    graph.remove_edges(torch.tensor([0, 5]))
    assert_same(layer, other, graph, randn(20, 5))
    graph.add_nodes(2)
    assert_same(layer, other, graph, randn(22, 5))


def test_a_graph_is_forgotten_with_dgls() -> None:
    graph = homogeneous()
    memory = weakref.ref(kept(graph))
    del graph
    gc.collect()
    assert memory() is None


def test_relations_of_one_graph_are_built_once_each() -> None:
    graph = dgl.heterograph(
        {
            ("a", "x", "b"): ([0, 1], [1, 0]),
            ("a", "y", "b"): ([1], [1]),
            ("b", "z", "b"): ([0], [1]),
        }
    )
    first = {name: kept(graph[name]) for name in ("x", "y", "z")}
    assert all(kept(graph[name]) is first[name] for name in ("x", "y", "z"))
    assert first["x"] is not first["y"]
    graph.add_edges(0, 0, etype="x")
    assert kept(graph["x"]) is not first["x"]
    assert kept(graph["x"]).graph.num_edges == 3


def test_copies_and_pickles_of_a_graph_go_without() -> None:
    graph = homogeneous()
    size = len(pickle.dumps(graph))
    kept(graph)
    assert len(pickle.dumps(graph)) < size + 200
    layer, other = pair("GATConv", 5)
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert_same(layer, other, twin, randn(20, 5))


@pytest.mark.parametrize("name", LAYERS)
def test_arrays_without_edge_ids(name: str) -> None:
    """A graph made from CSC holds no edge ids, for they are 0, 1, 2 ... (DGL's own code fails)."""
    none = torch.tensor([], dtype=torch.int64)
    graph = dgl.graph(("csc", (torch.tensor([0, 2, 3, 4]), torch.tensor([1, 2, 0, 0]), none)))
    order = torch.tensor([2, 0, 3, 1])
    src, dst = graph.edges()
    other = dgl.graph((src[order], dst[order]), num_nodes=3)
    layer, _ = pair(name, 5)
    rest = extras(name, graph)
    alpha = layer(graph, randn(3, 5), *rest, get_attention=True)[1]
    expected = layer(other, randn(3, 5), *(t[order] for t in rest), get_attention=True)[1]
    torch.testing.assert_close(alpha[order], expected)


# accelerate and restore


def hetero_graph() -> Any:
    generator = torch.Generator().manual_seed(4)
    edges = {}
    for etype, ns, nd in ((("user", "follows", "user"), 8, 8), (("user", "plays", "game"), 8, 5)):
        src = torch.randint(0, ns, (20,), generator=generator)
        edges[etype] = (src, torch.randint(0, nd, (20,), generator=generator))
    return dgl.heterograph(edges, {"user": 8, "game": 5})


def assert_accelerates(model: nn.Module, swapped: int, call: Callable[[], Any]) -> None:
    """The model's results are the same before, with our layers, and after; its objects too."""
    parameters, state = list(model.parameters()), list(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    expected = call()
    report = gatkernels.accelerate(model)
    assert len(report.swapped) == swapped
    assert not report.kept
    torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-5)
    assert not any(layer.fallbacks for layer in report.layers)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == state
    gatkernels.restore(model)
    assert [type(m) for m in model.modules()] == kinds
    torch.testing.assert_close(call(), expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("aggregate", ["sum", "stack"])
def test_accelerate_hetero_graph_conv(aggregate: str) -> None:
    """It calls with pairs, allows zero in-degrees and keeps its modules in a dict of its own."""
    graph = hetero_graph()
    x = {"user": randn(8, 5), "game": randn(5, 5)}
    model = theirs.HeteroGraphConv(
        {"follows": theirs.GATConv(5, C, H), "plays": theirs.GATv2Conv(5, C, H)}, aggregate
    )
    assert_accelerates(model, 2, lambda: model(graph, x))
    gatkernels.accelerate(model)
    assert set(model(graph, x)) == {"user", "game"}


def test_hetero_graph_conv_made_of_our_layers() -> None:
    graph = hetero_graph()
    x = {"user": randn(8, 5), "game": randn(5, 5)}
    weight = {"follows": {"edge_weight": randn(20)}}
    results = []
    for module in (ours, theirs):
        torch.manual_seed(0)
        layers = {"follows": module.GATConv(5, C, H), "plays": module.GATConv(5, C, H)}
        results.append(theirs.HeteroGraphConv(layers)(graph, x, mod_kwargs=weight))
    torch.testing.assert_close(*results)


def test_accelerate_sequential() -> None:
    graph = looped()
    model = theirs.Sequential(theirs.GATConv(5, 5, 2), theirs.GATConv(5, C, H))
    assert_accelerates(model, 2, lambda: model(graph, randn(20, 5)))


def test_accelerate_a_model_on_blocks() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                [theirs.GATConv(5, C, H, activation=F.elu), theirs.GATConv(H * C, 3, 1)]
            )

        def forward(self, blocks: list[Any], x: Tensor) -> Tensor:
            for layer, graph in zip(self.layers, blocks, strict=True):
                x = layer(graph, x).flatten(1)
            return x

    sampler = dgl.dataloading.NeighborSampler([3, 2])
    _, _, blocks = sampler.sample_blocks(looped(), torch.tensor([2, 9]))
    model = Network()
    x = randn(20, 5)[blocks[0].srcdata[dgl.NID]]
    assert_accelerates(model, 2, lambda: model(blocks, x))


def test_accelerate_edge_features() -> None:
    graph = looped()
    model = nn.ModuleDict({"conv": theirs.EdgeGATConv(5, EDGE_FEATS, C, H)})
    feat = randn(graph.num_edges(), EDGE_FEATS)
    assert_accelerates(model, 1, lambda: model["conv"](graph, randn(20, 5), feat))


def test_graphs_of_several_relations_raise_what_dgl_raises() -> None:
    errors = []
    for layer in pair("GATConv", 5):
        with pytest.raises(AssertionError, match="multiple node types") as error:
            layer(hetero_graph(), randn(8, 5))
        errors.append(str(error.value))
    assert errors[0] == errors[1]
