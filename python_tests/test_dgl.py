"""DGL's layers and ours in their place: results, gradients, and each of DGL's behaviours."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dgl_parity import (
    DTYPES,
    EDGE_FEATS,
    LAYERS,
    C,
    H,
    assert_falls_back,
    assert_same,
    bipartite,
    block,
    dgl,
    extras,
    homogeneous,
    looped,
    ours,
    outcome,
    pair,
    randn,
    theirs,
)
from torch import Tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_homogeneous_graph(name: str, dtype: torch.dtype) -> None:
    graph = homogeneous()
    mine, other = pair(name, 5)
    x = randn(20, 5, dtype=dtype)
    assert_same(mine.to(dtype), other.to(dtype), graph, x, *extras(name, graph, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_bipartite_graph(name: str, dtype: torch.dtype) -> None:
    graph = bipartite()
    mine, other = pair(name, (5, 7))
    x = randn(9, 5, dtype=dtype), randn(14, 7, dtype=dtype)
    assert_same(mine.to(dtype), other.to(dtype), graph, x, *extras(name, graph, dtype))


@pytest.mark.parametrize("name", LAYERS)
def test_block_with_one_tensor(name: str) -> None:
    graph = block()
    mine, other = pair(name, 5, residual=True)
    assert_same(mine, other, graph, randn(graph.num_src_nodes(), 5), *extras(name, graph))


@pytest.mark.parametrize("name", LAYERS)
def test_block_with_a_pair(name: str) -> None:
    graph = block()
    mine, other = pair(name, 5)
    x = randn(graph.num_src_nodes(), 5), randn(graph.num_dst_nodes(), 5)
    assert_same(mine, other, graph, x, *extras(name, graph))


@pytest.mark.parametrize("name", LAYERS)
def test_pair_on_a_homogeneous_graph_and_a_layer_of_one_size(name: str) -> None:
    """As HeteroGraphConv calls it."""
    graph = homogeneous()
    mine, other = pair(name, 5)
    assert_same(mine, other, graph, (randn(20, 5), randn(20, 5)), *extras(name, graph))


@pytest.mark.parametrize("idtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", LAYERS)
def test_both_index_types(name: str, idtype: torch.dtype) -> None:
    mine, other = pair(name, 5)
    graph = homogeneous(idtype)
    assert_same(mine, other, graph, randn(20, 5), *extras(name, graph))
    graph = block(idtype)
    assert_same(mine, other, graph, randn(graph.num_src_nodes(), 5), *extras(name, graph))


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("out_feats", [1, 5])
@pytest.mark.parametrize("make", [looped, bipartite, block])
@pytest.mark.parametrize("name", LAYERS)
def test_shapes_of_results(name: str, make: Any, out_feats: int, heads: int) -> None:
    graph = make()
    layer, _ = pair(name, 5, out_feats, heads)
    src, dst, edges = graph.num_src_nodes(), graph.num_dst_nodes(), graph.num_edges()
    feat = randn(src, 5) if src == dst or graph.is_block else (randn(src, 5), randn(dst, 5))
    out, alpha = layer(graph, feat, *extras(name, graph), get_attention=True)
    assert out.shape == layer(graph, feat, *extras(name, graph)).shape == (dst, heads, out_feats)
    assert alpha.shape == (edges, heads, 1)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_more_feature_dimensions(pairs: bool, residual: bool) -> None:
    graph = homogeneous()
    mine, other = pair("GATConv", (5, 7) if pairs else 5, residual=residual)
    feat = (randn(20, 2, 3, 5), randn(20, 2, 3, 7)) if pairs else randn(20, 2, 3, 5)
    assert_same(mine, other, graph, feat)
    out, alpha = mine(graph, feat, get_attention=True)
    assert (out.shape, alpha.shape) == ((20, 2, 3, H, C), (100, 2, 3, H, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [homogeneous, block])
def test_edge_weight_scales_attention_without_renormalising(make: Any, dtype: torch.dtype) -> None:
    graph = make()
    mine, other = pair("GATConv", 5)
    x, weight = randn(graph.num_src_nodes(), 5, dtype=dtype), randn(graph.num_edges(), dtype=dtype)
    assert_same(mine.to(dtype), other.to(dtype), graph, x, weight)
    alpha = mine(graph, x, get_attention=True)[1]
    scaled = mine(graph, x, edge_weight=weight, get_attention=True)[1]
    torch.testing.assert_close(scaled, alpha * weight[:, None, None])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("in_feats", [5, H * C])
@pytest.mark.parametrize("bias", [True, False])
def test_residual_and_where_its_bias_lives(name: str, in_feats: int, bias: bool) -> None:
    """GATConv: a linear residual carries the bias; one of the output's size is the input itself."""
    graph = homogeneous()
    mine, other = pair(name, in_feats, residual=True, bias=bias)
    assert_same(mine, other, graph, randn(20, in_feats), *extras(name, graph))
    if name == "GATConv":
        assert ("res_fc.bias" in mine.state_dict()) == (bias and in_feats == 5)
        assert ("bias" in mine.state_dict()) == (bias and in_feats == H * C)


@pytest.mark.parametrize("name", LAYERS)
def test_activation_comes_last_and_no_bias(name: str) -> None:
    graph = homogeneous()
    mine, other = pair(name, 5, residual=True, activation=F.elu, bias=False)
    assert_same(mine, other, graph, randn(20, 5), *extras(name, graph))


@pytest.mark.parametrize("in_feats", [5, (5, 5)])
def test_shared_weights_of_gatv2(in_feats: Any) -> None:
    mine, other = pair("GATv2Conv", in_feats, share_weights=True)
    x = randn(20, 5)
    graph = homogeneous()
    assert_same(mine, other, graph, x if in_feats == 5 else (x, x))
    graph = block()
    if in_feats == 5:
        assert_same(mine, other, graph, randn(graph.num_src_nodes(), 5))


def test_wide_edge_features_and_far_too_wide_ones() -> None:
    graph, x = homogeneous(), randn(20, 5)
    for width in (40, 200):
        layers = []
        for module in (ours, theirs):
            torch.manual_seed(0)
            layers.append(module.EdgeGATConv(5, width, C, H, allow_zero_in_degree=True))
        edge_feat = randn(100, width)
        if width == 40:
            assert_same(*layers, graph, x, edge_feat)
        else:
            assert_falls_back(
                layers[0], "wider", lambda layer, e=edge_feat: layer(graph, x, e), layers[1]
            )


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, -0.5])
@pytest.mark.parametrize("name", LAYERS)
def test_any_slope(name: str, slope: float) -> None:
    mine, other = pair(name, 5, negative_slope=slope)
    assert_same(mine, other, homogeneous(), randn(20, 5), *extras(name, homogeneous()))


@pytest.mark.parametrize("name", ["GATConv", "EdgeGATConv"])
def test_slope_at_zero_scores(name: str) -> None:
    mine, other = pair(name, 5)
    graph = homogeneous()
    assert_same(mine, other, graph, torch.zeros(20, 5), *(0 * t for t in extras(name, graph)))


@pytest.mark.parametrize("name", LAYERS)
def test_scores_a_thousand_apart(name: str) -> None:
    mine, other = pair(name, 5)
    graph, x = homogeneous(), randn(20, 5, dtype=torch.float64)
    x[::3] *= 1000.0
    rest = extras(name, graph, torch.float64)
    # gradients of the attention vectors multiply a score by a feature
    assert_same(mine.double(), other.double(), graph, x, *rest, scale=1e6)
    assert bool(mine(graph, x, *rest).isfinite().all())


@pytest.mark.parametrize("name", LAYERS)
def test_zero_in_degree_is_an_error_in_dgls_words(name: str) -> None:
    mine, other = pair(name, 5, allow_zero_in_degree=False)
    graph, messages = homogeneous(), []
    for layer in (mine, other):
        with pytest.raises(dgl.DGLError, match="There are 0-in-degree nodes") as error:
            layer(graph, randn(20, 5), *extras(name, graph))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    mine(looped(), randn(20, 5), *extras(name, looped()))
    mine.set_allow_zero_in_degree(True)
    mine(graph, randn(20, 5), *extras(name, graph))


@pytest.mark.parametrize("name", LAYERS)
def test_zero_in_degree_gives_bias_and_residual(name: str) -> None:
    layer, _ = pair(name, 5, residual=True)
    graph, x = homogeneous(), randn(20, 5)
    expected = layer.res_fc(x[19])
    if name == "EdgeGATConv":
        expected = expected + layer.bias
    torch.testing.assert_close(layer(graph, x, *extras(name, graph))[19].flatten(), expected)


@pytest.mark.parametrize("nodes", [0, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_no_edges_and_no_nodes(name: str, nodes: int) -> None:
    graph = dgl.graph(([], []), num_nodes=nodes)
    mine, other = pair(name, 5, residual=nodes > 0)
    if name == "EdgeGATConv" and nodes == 0:  # there DGL's own code raises
        assert mine(graph, randn(0, 5), randn(0, EDGE_FEATS)).shape == (0, H, C)
    else:
        assert_same(mine, other, graph, randn(nodes, 5), *extras(name, graph))


@pytest.mark.parametrize("name", LAYERS)
def test_attention_is_in_edge_id_order(name: str) -> None:
    """Whatever the order in which the edges are stored; over each node's edges it sums to one."""
    graph = homogeneous()
    layer, _ = pair(name, 5)
    rest = extras(name, graph)
    alpha = layer(graph, randn(20, 5), *rest, get_attention=True)[1]
    order = torch.randperm(100)
    src, dst = graph.edges(order="eid")
    shuffled = dgl.graph((src[order], dst[order]), num_nodes=20)
    again = layer(shuffled, randn(20, 5), *(t[order] for t in rest), get_attention=True)[1]
    torch.testing.assert_close(again, alpha[order])
    total = torch.zeros(20, H, 1).index_add(0, dst, alpha)
    torch.testing.assert_close(total[:19], torch.ones(19, H, 1))


@pytest.mark.parametrize("name", LAYERS)
def test_attention_is_returned_after_dropout(name: str) -> None:
    graph = looped()
    layer, _ = pair(name, 5, attn_drop=0.5)
    rest = extras(name, graph)
    dropped = layer(graph, randn(20, 5), *rest, get_attention=True)[1]
    kept = dropped != 0
    assert 0.3 < kept.double().mean() < 0.7
    alpha = layer.eval()(graph, randn(20, 5), *rest, get_attention=True)[1]
    torch.testing.assert_close(dropped[kept], 2 * alpha[kept])
    layer.attn_drop.train()
    assert bool((layer(graph, randn(20, 5), *rest, get_attention=True)[1] == 0).any())


@pytest.mark.parametrize("name", LAYERS)
def test_feature_dropout_draws_what_dgl_draws(name: str) -> None:
    graph = bipartite()
    feat, rest = (randn(9, 5), randn(14, 5)), extras(name, graph)
    results = []
    for layer in pair(name, 5, feat_drop=0.5, residual=True):
        torch.manual_seed(3)
        results.append(layer(graph, feat, *rest))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", LAYERS)
def test_results_are_the_same_bits_each_time(name: str) -> None:
    layer, _ = pair(name, 5, attn_drop=0.3)
    graph = homogeneous()
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(outcome(layer, graph, randn(20, 5), *extras(name, graph)))
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_right_and_differentiable(name: str) -> None:
    graph = dgl.add_self_loop(dgl.graph(([0, 1, 2, 2], [1, 2, 0, 1])))
    layer, _ = pair(name, 2, 2, 2)
    layer.double()
    inputs = [randn(3, 2, dtype=torch.float64), *extras(name, graph, torch.float64)]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(lambda *t: layer(graph, *t), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: layer(graph, *t), inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_fifty_steps_of_training_have_dgls_losses(name: str) -> None:
    graph, target = looped(), torch.arange(20) % C
    rest = extras(name, graph)

    def losses(module: Any) -> Tensor:
        torch.manual_seed(0)
        edge = (EDGE_FEATS,) if rest else ()
        first = getattr(module, name)(5, *edge, 8, 2, activation=F.elu)
        last = getattr(module, name)(16, *edge, C, 1)
        parameters = [*first.parameters(), *last.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.01, weight_decay=5e-4)
        found = []
        for _ in range(50):
            optimizer.zero_grad()
            out = last(graph, first(graph, randn(20, 5), *rest).flatten(1), *rest).mean(1)
            loss = F.cross_entropy(out, target)
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found)

    mine, other = losses(ours), losses(theirs)
    assert mine[-1] < 0.9 * mine[0]
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_pickles_and_repr_are_those_of_dgls_layer(name: str) -> None:
    layer, other = pair(name, 5)
    graph = homogeneous()
    rest = extras(name, graph)
    expected = layer(graph, randn(20, 5), *rest)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(twin(graph, randn(20, 5), *rest), expected)
    assert repr(layer) == repr(other)
    assert isinstance(layer, getattr(theirs, name))
