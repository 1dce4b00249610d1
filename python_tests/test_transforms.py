"""Forward mode and torch.func: right for operators, layers and drop-ins, without a warning."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import DEVICE
from tolerance import BACKEND
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from gatkernels import Graph, dot_attention, gat_attention, gatv2_attention
from gatkernels.bench.peers import import_failure
from gatkernels.models import GAT
from gatkernels.nn import GATConv, GATv2Conv, TransformerConv

pytestmark = [
    pytest.mark.skipif(DEVICE.type != "cpu", reason="torch's transforms are the same on a GPU"),
    pytest.mark.filterwarnings("error:There is a performance drop"),  # no batching rule
]

EDGES = torch.randint(0, 7, (2, 30), generator=torch.Generator().manual_seed(1))
SQUARE = Graph.from_edge_index(EDGES, 7, self_loops=True)
PAIR = Graph.from_edge_index(EDGES, (7, 9))
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def randn(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64)


def gat_inputs(graph: Graph, *front: int) -> tuple[Tensor, ...]:
    src, dst, edges = graph.num_src, graph.num_dst, graph.num_edges
    sizes = ((src, 2, 3), (src, 2), (dst, 2), (edges, 2))
    return tuple(randn(*front, *size) for size in sizes)


def gatv2_inputs(graph: Graph, *front: int) -> tuple[Tensor, ...]:
    src, dst, edges = graph.num_src, graph.num_dst, graph.num_edges
    sizes = ((src, 2, 3), (dst, 2, 3), (2, 3), (edges, 2, 3))
    return tuple(randn(*front, *size) for size in sizes)


def dot_inputs(graph: Graph, *front: int) -> tuple[Tensor, ...]:
    src, dst, edges = graph.num_src, graph.num_dst, graph.num_edges
    sizes = ((dst, 2, 3), (src, 2, 3), (src, 2, 2), (edges, 2))
    return tuple(randn(*front, *size) for size in sizes)


def dot_of_four(graph: Graph, q: Tensor, k: Tensor, v: Tensor, edge: Tensor, **options: Any) -> Any:
    """With all inputs and results, of four inputs, in two results."""
    out, edge_out, alpha = dot_attention(graph, q, k, v, edge, q[..., 1:].sin(), **options)
    return torch.cat([out, edge_out], -1), alpha


OPERATORS: dict[str, tuple[Any, Callable[..., tuple[Tensor, ...]]]] = {
    "gat": (gat_attention, gat_inputs),
    "gatv2": (gatv2_attention, gatv2_inputs),
    "dot": (dot_of_four, dot_inputs),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)
every_graph = pytest.mark.parametrize("graph", [SQUARE, PAIR], ids=["loops", "bipartite"])


def operator(name: str, graph: Graph, **options: Any) -> Callable[..., Any]:
    call = OPERATORS[name][0]
    return lambda *inputs: call(graph, *inputs, return_attention=True, backend=BACKEND, **options)


def derivative(
    call: Callable[..., Tensor], inputs: Any, tangents: Any, step: float = 1e-6
) -> Tensor:
    """Along ``tangents``, by a central difference."""
    step = 1e-6
    ahead, back = (
        call(*(x + sign * step * t for x, t in zip(inputs, tangents, strict=True)))
        for sign in (1.0, -1.0)
    )
    return (ahead - back) / (2.0 * step)


@every_operator
@every_graph
def test_jvp_of_operators(name: str, graph: Graph) -> None:
    call, make = operator(name, graph), OPERATORS[name][1]
    inputs, tangents = make(graph), make(graph)
    (out, alpha), (out_t, alpha_t) = jvp(call, inputs, tangents)
    for place, (value, tangent) in enumerate(((out, out_t), (alpha, alpha_t))):
        torch.testing.assert_close(value, call(*inputs)[place], **CLOSE)
        expected = derivative(lambda *t, p=place: call(*t)[p], inputs, tangents)
        assert float(expected.abs().max()) > 0.01
        torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-6)


@every_operator
def test_forward_mode_with_dropout_uses_the_mask_of_the_call(name: str) -> None:
    call, make = operator(name, SQUARE, dropout=0.5), OPERATORS[name][1]
    inputs, tangents = make(SQUARE), make(SQUARE)

    def seeded(*inputs: Tensor) -> Tensor:
        torch.manual_seed(4)
        out: Tensor = call(*inputs)[0]
        return out

    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
        out, tangent = forward_ad.unpack_dual(seeded(*duals))
        plain = forward_ad.unpack_dual(seeded(*duals[:1], *inputs[1:])).primal
    torch.testing.assert_close(out, plain, **CLOSE)
    assert tangent is not None
    assert bool((tangent != 0.0).any())


@every_operator
def test_dual_level(name: str) -> None:
    call, make = operator(name, SQUARE), OPERATORS[name][1]
    inputs, tangents = make(SQUARE), make(SQUARE)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
        found = forward_ad.unpack_dual(call(*duals)[0]).tangent
    expected = derivative(lambda *t: call(*t)[0], inputs, tangents)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@every_operator
@pytest.mark.parametrize("place", range(4))
def test_jacobians_forward_and_reverse(name: str, place: int) -> None:
    call, inputs = operator(name, PAIR), OPERATORS[name][1](PAIR)
    forward, reverse = jacfwd(call, place)(*inputs), jacrev(call, place)(*inputs)
    for got, expected in zip(forward, reverse, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)
    assert float(forward[0].abs().max()) > 0.01


@every_operator
def test_grad_is_that_of_autograd(name: str) -> None:
    call, inputs = operator(name, PAIR), OPERATORS[name][1](PAIR)

    def loss(*inputs: Tensor) -> Tensor:
        out, alpha = call(*inputs)
        return out.square().sum() + (alpha * alpha.detach()).sum()

    found = grad(loss, (0, 1, 2, 3))(*inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    for got, expected in zip(found, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


@every_operator
def test_hessian(name: str) -> None:
    call, inputs = operator(name, PAIR), OPERATORS[name][1](PAIR)

    def loss(second: Tensor) -> Tensor:
        out: Tensor = call(inputs[0], second, *inputs[2:])[0]
        return out.square().sum()

    expected = torch.autograd.functional.hessian(loss, inputs[1])
    torch.testing.assert_close(hessian(loss)(inputs[1]), expected, **CLOSE)
    torch.testing.assert_close(jacrev(jacrev(loss))(inputs[1]), expected, **CLOSE)


@every_operator
@every_graph
@pytest.mark.parametrize("mapped", [(0, 1, 2, 3), (0,), (1, 3), (2,)])
def test_vmap_is_a_loop(name: str, graph: Graph, mapped: tuple[int, ...]) -> None:
    call, make = operator(name, graph), OPERATORS[name][1]
    one, many = make(graph), make(graph, 3)
    inputs = [many[p] if p in mapped else one[p] for p in range(4)]
    dims = tuple(0 if p in mapped else None for p in range(4))
    found = vmap(call, dims)(*inputs)
    loop = [call(*(t[k] if p in mapped else t for p, t in enumerate(inputs))) for k in range(3)]
    for got, expected in zip(found, zip(*loop, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected), **CLOSE)
    last = vmap(call, tuple(-1 if d == 0 else None for d in dims))
    moved = [t.movedim(0, -1) if p in mapped else t for p, t in enumerate(inputs)]
    torch.testing.assert_close(last(*moved)[0], found[0], **CLOSE)


@every_operator
def test_gradients_of_each_sample(name: str) -> None:
    call, make = operator(name, SQUARE), OPERATORS[name][1]
    many = make(SQUARE, 3)
    each = grad(lambda *t: call(*t)[0].square().sum(), (0, 1))
    found = vmap(each)(*many)
    loop = [each(*(t[k] for t in many)) for k in range(3)]
    for got, expected in zip(found, zip(*loop, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(expected), **CLOSE)
    twice = vmap(vmap(call))(*(t.expand(2, *t.shape) for t in many))
    torch.testing.assert_close(twice[0][1], vmap(call)(*many)[0], **CLOSE)


@every_operator
def test_vmap_reaches_leaves_outside(name: str) -> None:
    call, make = operator(name, SQUARE), OPERATORS[name][1]
    x, *rest = make(SQUARE)
    rest[0].requires_grad_()
    xs = randn(3, *x.shape)
    found = torch.autograd.grad(vmap(lambda x: call(x, *rest)[0])(xs).sum(), rest[0])
    expected = torch.autograd.grad(sum(call(x, *rest)[0].sum() for x in xs), rest[0])
    torch.testing.assert_close(found, expected, **CLOSE)


@every_operator
def test_dropout_under_vmap_is_as_randomness_says(name: str) -> None:
    call, inputs = operator(name, SQUARE, dropout=0.5), OPERATORS[name][1](SQUARE)
    xs = inputs[0].expand(4, *inputs[0].shape)

    def alpha(x: Tensor) -> Tensor:
        found: Tensor = call(x, *inputs[1:])[1]
        return found

    same = vmap(alpha, randomness="same")(xs)
    assert all(torch.equal(same[0], other) for other in same)
    assert 0 < int((same[0] == 0.0).sum()) < same[0].numel()
    other = vmap(alpha, randomness="different")(xs)
    assert not any(torch.equal(other[0], o) for o in other[1:])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(alpha)(xs)


def layers() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {
        "GATConv": lambda: GATConv(4, 3, 2, residual=True),
        "GATv2Conv": lambda: GATv2Conv(4, 3, 2, share_weights=True),
        "TransformerConv": lambda: TransformerConv(4, 3, 2, beta=True),
        "mean": lambda: GATConv(4, 3, 2, concat=False),
        "GAT": lambda: GAT(4, 3, 2, heads=2, dropout=0.0),
    }
    if importlib.util.find_spec("torch_geometric") is not None:
        from gatkernels import pyg

        found["pyg.GATConv"] = lambda: pyg.GATConv(4, 3, 2)
        found["pyg.GATv2Conv"] = lambda: pyg.GATv2Conv(4, 3, 2)
        found["pyg.TransformerConv"] = lambda: pyg.TransformerConv(4, 3, 2)
    return found


def dgl_layers() -> list[str]:
    return [] if import_failure("dgl.nn.pytorch") else ["GATConv", "GATv2Conv", "EdgeGATConv"]


def built(name: str) -> Any:
    torch.manual_seed(2)
    return layers()[name]().double()


@pytest.mark.parametrize("name", layers())
def test_layers(name: str) -> None:
    layer = built(name)
    x, tangent = randn(7, 4), randn(7, 4)
    out, found = jvp(lambda v: layer(v, EDGES), (x,), (tangent,))
    torch.testing.assert_close(out, layer(x, EDGES), **CLOSE)
    expected = derivative(lambda v: layer(v, EDGES), (x,), (tangent,)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    many = randn(3, 7, 4)
    loop = torch.stack([layer(v, EDGES) for v in many])
    torch.testing.assert_close(vmap(lambda v: layer(v, EDGES))(many), loop, **CLOSE)
    parameters = dict(layer.named_parameters())

    def loss(parameters: Any, x: Tensor, index: Tensor) -> Tensor:
        result: Tensor = functional_call(layer, parameters, (x, index))
        return result.square().sum()

    got = grad(loss)(parameters, x, EDGES)
    expected = torch.autograd.grad(loss(parameters, x, EDGES), list(parameters.values()))
    for a, b in zip(got.values(), expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)
    forward = jacfwd(lambda v: layer(v, EDGES))(x)
    torch.testing.assert_close(forward, jacrev(lambda v: layer(v, EDGES))(x), **CLOSE)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_features() -> None:
    layer = built("GATConv")
    dense = randn(7, 4) * (torch.rand(7, 4) < 0.5)
    parameters = dict(layer.named_parameters())
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    found = [
        jvp(lambda p, x=x: functional_call(layer, p, (x, EDGES)), (parameters,), (tangents,))
        for x in (dense.to_sparse_csr(), dense)
    ]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_edges_cannot_be_mapped_over(name: str) -> None:
    layer = built(name)
    x = randn(7, 4)
    with pytest.raises(ValueError, match="'edge_index' cannot be mapped over by vmap"):
        vmap(lambda index: layer(x, index))(EDGES.expand(3, 2, 30))
    with pytest.raises(ValueError, match="'edge_index' cannot be mapped over by vmap"):
        vmap(grad(lambda x, index: layer(x, index).sum()), (None, 0))(x, EDGES.expand(3, 2, 30))


@pytest.mark.parametrize("name", dgl_layers())
def test_dgls_drop_ins(name: str) -> None:
    from dgl_parity import EDGE_FEATS, homogeneous, ours

    graph = homogeneous()
    edge = (EDGE_FEATS,) if name == "EdgeGATConv" else ()
    layer = getattr(ours, name)(5, *edge, 3, 2, allow_zero_in_degree=True).double()
    more = (randn(graph.num_edges(), EDGE_FEATS),) if edge else ()
    x, tangent = randn(20, 5), randn(20, 5)
    out, found = jvp(lambda v: layer(graph, v, *more), (x,), (tangent,))
    torch.testing.assert_close(out, layer(graph, x, *more), **CLOSE)
    expected = derivative(lambda v: layer(graph, v, *more), (x,), (tangent,)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    many = randn(3, 20, 5)
    loop = torch.stack([layer(graph, v, *more) for v in many])
    torch.testing.assert_close(vmap(lambda v: layer(graph, v, *more))(many), loop, **CLOSE)
    got = grad(lambda v: layer(graph, v, *more).square().sum())(x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(graph, leaf, *more).square().sum(), leaf)
    torch.testing.assert_close(got, expected, **CLOSE)
