"""DGL's layers and ours in their place: results, gradients, and each of DGL's behaviours."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gatkernels
from gatkernels._dropin import fallbacks
from gatkernels.bench.peers import import_failure

if failure := import_failure("dgl.nn.pytorch"):
    pytest.skip(failure, allow_module_level=True)

import dgl
import dgl.nn.pytorch as theirs

import gatkernels.dgl as ours

LAYERS = ("GATConv", "GATv2Conv", "EdgeGATConv")
DTYPES = (torch.float32, torch.float64)
EDGE_FEATS = 6
H, C = 3, 4


def homogeneous(idtype: torch.dtype = torch.int64) -> Any:
    """20 nodes, parallel edges and loops among 100 edges, none into node 19."""
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(0, 20, (100,), generator=generator)
    dst = torch.randint(0, 19, (100,), generator=generator)
    src[:3], dst[:3] = torch.tensor([4, 4, 5]), torch.tensor([7, 7, 5])
    return dgl.graph((src, dst), num_nodes=20, idtype=idtype)


def bipartite(idtype: torch.dtype = torch.int64) -> Any:
    generator = torch.Generator().manual_seed(2)
    src = torch.randint(0, 9, (40,), generator=generator)
    dst = torch.randint(0, 12, (40,), generator=generator)
    return dgl.heterograph(
        {("user", "plays", "game"): (src, dst)}, {"user": 9, "game": 14}, idtype=idtype
    )


def block(idtype: torch.dtype = torch.int64) -> Any:
    seeds = torch.tensor([3, 1, 8], dtype=idtype)
    return dgl.to_block(dgl.in_subgraph(homogeneous(idtype), seeds), seeds)


def looped() -> Any:
    return dgl.add_self_loop(homogeneous())


def randn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)


def pair(name: str, in_feats: Any, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """Our layer and DGL's, each made from the same seed, with biases that are not zero."""
    options.setdefault("allow_zero_in_degree", True)
    sizes = sizes or (C, H)
    if name == "EdgeGATConv":
        sizes = (EDGE_FEATS, *sizes)
    layers = []
    for module in (ours, theirs):
        torch.manual_seed(11)
        layer = getattr(module, name)(in_feats, *sizes, **options)
        for key, value in layer.named_parameters():
            if "bias" in key:
                nn.init.constant_(value, 0.3)
        layers.append(layer)
    return layers[0], layers[1]


def extras(name: str, graph: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """What the layer takes beside the features."""
    return (randn(graph.num_edges(), EDGE_FEATS, dtype=dtype),) if name == "EdgeGATConv" else ()


def outcome(layer: Any, graph: Any, feat: Any, *rest: Tensor) -> dict[str, Tensor]:
    """Output, attention, and the gradients of every input and parameter, both in the loss."""
    given = feat if isinstance(feat, tuple) else (feat,)
    inputs = [t.clone().requires_grad_() for t in given]
    more = [t.clone().requires_grad_() for t in rest]
    feat = tuple(inputs) if isinstance(feat, tuple) else inputs[0]
    out, alpha = layer(graph, feat, *more, get_attention=True)
    loss = (out * randn(*out.shape, dtype=out.dtype)).sum()
    loss = loss + (alpha * randn(*alpha.shape, dtype=out.dtype)).sum()
    leaves = {f"input {k}": t for k, t in enumerate(inputs + more)}
    leaves |= dict(layer.named_parameters())
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {
        k: torch.zeros_like(t) if g is None else g
        for (k, t), g in zip(leaves.items(), found, strict=True)
    }
    return {"out": out, "alpha": alpha} | gradients


def assert_same(
    mine: Any, other: Any, graph: Any, feat: Any, *rest: Tensor, scale: float = 1.0
) -> None:
    """Every result is DGL's up to rounding of values of size ``scale``; no call fell back."""
    state, expected_state = mine.state_dict(), other.state_dict()
    assert list(state) == list(expected_state)
    assert all(torch.equal(state[k], expected_state[k]) for k in state)
    got, expected = outcome(mine, graph, feat, *rest), outcome(other, graph, feat, *rest)
    for key, value in expected.items():
        small = value.dtype == torch.float32
        close = {"rtol": 1e-4, "atol": 2e-5} if small else {"rtol": 1e-10, "atol": 1e-11 * scale}
        torch.testing.assert_close(got[key], value, **close, msg=lambda m, k=key: f"{k}: {m}")
    assert not fallbacks(mine)


def assert_falls_back(layer: Any, why: str, call: Callable[[Any], Any], other: Any) -> None:
    """The call runs DGL's code, with its result, and is counted."""
    torch.manual_seed(5)
    expected = call(other)
    torch.manual_seed(5)
    got = call(layer)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0, equal_nan=True)
    assert [why in reason for reason in fallbacks(layer)] == [True]


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
