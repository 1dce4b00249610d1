"""The registered ops and their autograd: gradcheck, opcheck, memory kept, torch.compile."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from graphs import DEVICE, GRAPHS, INTERPRETED, MANY, random_inputs
from tolerance import BACKEND
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.two_tensor import TwoTensor

from gatkernels import Graph, gat_attention
from gatkernels.functional import gat_attention_of_features
from gatkernels.ops import attention, autograd, library
from gatkernels.ops.autograd import Options
from gatkernels.ops.call import (
    Edges,
    GatCall,
    GatInputs,
    GatSaved,
    OutGrads,
    RowwiseCall,
    RowwiseInputs,
    RowwiseSaved,
    Scoring,
)

SEED = torch.tensor([77], device=DEVICE)
SMALL = Graph.from_edge_index(
    torch.tensor([[0, 1, 2, 2, 0, 3, 1, 1], [1, 0, 2, 0, 0, 1, 1, 1]], device=DEVICE), (4, 3)
)
SQUARE = Graph.from_edge_index(
    torch.tensor([[0, 1, 2, 2, 1], [1, 0, 1, 0, 1]], device=DEVICE), 3, True
)
#: How far a second derivative may be from itself: the reference adds up by atomics on a GPU.
AGAIN = 0.0 if DEVICE.type == "cpu" else 1e-12


def _leaves(graph: Graph, heads: int, channels: int, edge_score: bool) -> list[Tensor | None]:
    inputs = random_inputs(graph, heads, channels, torch.float64, edge_score=edge_score)
    return [None if t is None else t.requires_grad_() for t in inputs[:4]]


@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradcheck(heads: int, channels: int, attention: bool, dropout: float) -> None:
    leaves = _leaves(SMALL, heads, channels, edge_score=True)

    options = Options(0.2, dropout, attention, BACKEND)

    def call(*tensors: Tensor) -> Any:
        given = GatInputs(*tensors, None, None)
        out, alpha = autograd.attend("gat", SMALL, given, options, SEED)
        return (out, alpha) if attention else out

    assert gradcheck(call, leaves, fast_mode=INTERPRETED)


@pytest.mark.parametrize("slope", [0.0, 1.0, -0.3])
def test_gradcheck_slopes(slope: float) -> None:
    leaves = _leaves(SQUARE, 3, 2, edge_score=False)[:3]
    call = partial(gat_attention, SQUARE, negative_slope=slope, backend=BACKEND)
    assert gradcheck(call, leaves, fast_mode=INTERPRETED)


def _of_features(both: bool, attention: bool) -> tuple[Any, list[Tensor]]:
    """A call with scores of the features, and its inputs: x, att_src, att_dst or score_dst."""
    x, _, score_dst, _ = _leaves(SQUARE, 3, 2, edge_score=False)
    vectors = torch.randn(2, 1, 3, 2, dtype=torch.float64).to(DEVICE)
    att_src, att_dst = (vector.clone().requires_grad_() for vector in vectors)
    options = Options(0.2, 0.5, attention, BACKEND)

    def call(x: Tensor, att: Tensor, other: Tensor) -> Any:
        dst = (None, None, att, other) if both else (other, None, att, None)
        given = GatInputs(x, None, *dst)
        out, alpha = autograd.attend("gat", SQUARE, given, options, SEED)
        return (out, alpha) if attention else out

    assert x is not None
    assert score_dst is not None
    return call, [x, att_src, att_dst if both else score_dst]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_gradcheck_of_features(both: bool, attention: bool) -> None:
    call, leaves = _of_features(both, attention)
    assert gradcheck(call, leaves, fast_mode=INTERPRETED)
    assert gradgradcheck(call, leaves, nondet_tol=AGAIN, fast_mode=INTERPRETED)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("attention", [False, True])
def test_gradgradcheck(dropout: float, attention: bool) -> None:
    leaves = _leaves(SMALL, 2, 2, edge_score=True)

    options = Options(0.2, dropout, attention, BACKEND)

    def call(*tensors: Tensor) -> Any:
        given = GatInputs(*tensors, None, None)
        out, alpha = autograd.attend("gat", SMALL, given, options, SEED)
        return (out, alpha) if attention else out

    assert gradgradcheck(call, leaves, nondet_tol=AGAIN, fast_mode=INTERPRETED)


@pytest.mark.parametrize("frozen", ["x", "score_src", "score_dst", "edge_score"])
def test_double_backward_with_a_frozen_input(frozen: str) -> None:
    leaves = _leaves(SMALL, 2, 2, edge_score=True)
    names = ("x", "score_src", "score_dst", "edge_score")
    chosen = [leaf for leaf, name in zip(leaves, names, strict=True) if name != frozen]
    leaves[names.index(frozen)].requires_grad_(False)
    twice = {}
    for backend in (BACKEND, "reference"):
        out = gat_attention(SMALL, *leaves, backend=backend)
        first = torch.autograd.grad(out.square().sum(), chosen, create_graph=True)
        total = sum(g.square().sum() for g in first)
        twice[backend] = torch.autograd.grad(total, chosen)
    for got, expected in zip(twice[BACKEND], twice["reference"], strict=True):
        torch.testing.assert_close(got, expected)


def test_retained_graph_gives_the_same_gradient_again() -> None:
    x, src, dst, _ = _leaves(SMALL, 2, 3, edge_score=False)
    loss = gat_attention(SMALL, x, src, dst).square().sum()
    first = torch.autograd.grad(loss, (x, src, dst), retain_graph=True)
    second = torch.autograd.grad(loss, (x, src, dst))
    assert all(map(torch.equal, first, second))


def _flat(*parts: Any) -> tuple[Any, ...]:
    """The fields of records, and of those in them, as the ops have them."""
    found: list[Any] = []
    for part in parts:
        found += _flat(*part) if hasattr(part, "_fields") else [part]
    return tuple(found)


@cache
def _samples() -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for every op but the backend: plain, and with everything optional."""
    by_row, by_column = (list(parts) for parts in SQUARE.schedules(BACKEND))
    csr = Edges(SQUARE.rowptr, SQUARE.col, SQUARE.eid, by_row)
    csc = Edges(SQUARE.colptr, SQUARE.row, SQUARE.ceid, by_column)
    inputs = random_inputs(SQUARE, 2, 3, torch.float32, edge_score=True, attention=True)
    x, src, dst, edge, grad, grad_alpha = inputs
    atts = tuple(torch.randn(2, 1, 2, 3).to(DEVICE))
    plain, full = Scoring(0.2, 0.0, None), Scoring(0.2, 0.5, SEED)
    calls = (
        GatCall(csr, GatInputs(x, src, dst, None, None, None), plain),
        GatCall(csr, GatInputs(x, src, dst, edge, None, None), full),
        GatCall(csr, GatInputs(x, src, dst, edge, *atts), full),
    )
    of_features = GatCall(csr, GatInputs(x, None, None, edge, *atts), full)
    saved = []
    for call in calls[:2]:
        out, out_pos, stats, *_ = attention.gat_forward(call, True, True, BACKEND)
        alpha = attention.gat_alpha(call, stats, BACKEND)
        saved.append(GatSaved(out, out_pos, stats, alpha))
    att, rows = torch.randn(2, 3).to(DEVICE), torch.randn(SQUARE.num_edges, 2, 3).to(DEVICE)
    calls2 = (
        RowwiseCall("gatv2", csr, RowwiseInputs(x, x.clone(), att, None), plain),
        RowwiseCall("gatv2", csr, RowwiseInputs(x, x.clone(), att, rows), full),
    )
    saved2 = []
    for call2 in calls2:
        out, stats = attention.rowwise_forward(call2, True, BACKEND)
        saved2.append(RowwiseSaved(out, stats, attention.rowwise_alpha(call2, stats, BACKEND)))
    grads, both = OutGrads(grad, None), OutGrads(grad, grad_alpha)
    edge_index = SQUARE.edge_index
    return {
        "rowwise_forward": [_flat(calls2[0], False), _flat(calls2[1], True)],
        "rowwise_alpha": [
            _flat(call, kept.stats) for call, kept in zip(calls2, saved2, strict=True)
        ],
        "rowwise_backward": [
            _flat(calls2[0], csc, saved2[0]._replace(alpha=None), grads, True),
            _flat(calls2[1], csc, saved2[1], both, True),
            _flat(calls2[1], csc, saved2[1], both, False),
        ],
        "build_csr": [(edge_index, 3, 3, False, False), (edge_index.int(), 3, 4, True, True)],
        "build_graph": [
            (edge_index, 3, 3, False),
            (edge_index.int(), 3, 4, True),
        ],
        "bounded_schedule": [
            (SQUARE.rowptr, SQUARE.num_edges),
            (torch.tensor([0, 0, 200, 201], device=DEVICE), 201),
        ],
        "gat_forward": [
            _flat(calls[0], False, False),
            _flat(calls[1], True, True),
            _flat(of_features, True, True),
        ],
        "gat_alpha": [_flat(call, kept.stats) for call, kept in zip(calls, saved, strict=False)],
        "gat_backward": [
            _flat(calls[0], csc, saved[0]._replace(alpha=None), grads, True),
            _flat(calls[1], csc, saved[1], both, True),
            _flat(calls[1], csc, saved[1], both, False),
            _flat(calls[2], csc, saved[1], both, True),
        ],
    }


#: The ops on graphs; test_features.py has the others.
GRAPH_OPS = sorted(name.removeprefix("gatkernels::") for name in library._library._op_defs)
GRAPH_OPS = [name for name in GRAPH_OPS if name.startswith(("gat", "rowwise", "build", "bounded"))]


@pytest.mark.parametrize("op", GRAPH_OPS)
def test_opcheck(op: str) -> None:
    backend = (BACKEND,) if op.startswith(("gat", "rowwise")) else ()
    for sample in _samples()[op]:
        torch.library.opcheck(getattr(torch.ops.gatkernels, op).default, (*sample, *backend))


def _saved_bytes(graph: Graph, heads: int, channels: int, given: bool) -> tuple[int, int]:
    """Bytes that a forward keeps for its backward: in all, and of floating tensors."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor
        return tensor

    x = torch.randn(graph.num_src, heads, channels).to(DEVICE).requires_grad_()
    how = {"dropout": 0.5, "backend": BACKEND}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if given:
            scores = torch.randn(2, graph.num_src, heads).to(DEVICE)
            out = gat_attention(graph, x, *scores, **how)
        else:
            vectors = torch.randn(2, 1, heads, channels).to(DEVICE)
            out, _ = gat_attention_of_features(graph, x, *vectors, **how)
    assert out.requires_grad
    sizes = {k: t.untyped_storage().nbytes() for k, t in kept.items()}
    floating = sum(sizes[k] for k, t in kept.items() if t.is_floating_point())
    return sum(sizes.values()), floating


@pytest.mark.parametrize("given", [False, True])
def test_nothing_the_size_of_the_edges_is_kept(given: bool) -> None:
    """Features, output, positive output and statistics, all per node; of the edges only ids."""
    nodes, heads, channels, edges = 20, 4, 8, MANY
    edge_index = torch.randint(0, nodes, (2, edges)).to(DEVICE)
    graph = Graph.from_edge_index(edge_index, nodes)
    total, floating = _saved_bytes(graph, heads, channels, given)
    rows, vectors = 4 * nodes * heads, 4 * 2 * heads * channels
    assert 0 < floating <= rows * (3 * channels + 2 + 3) + vectors
    assert total - floating <= 4 * 4 * edges + 2 * 8 * (nodes + 1) + 8


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic: bool) -> None:
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 4, 6, torch.float32)
    leaves = [t.clone().requires_grad_() for t in inputs[:3]]

    def step(x: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        return gat_attention(graph, x.sin(), src, dst, backend=BACKEND).cos()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    results = []
    for call in (compiled, step):
        out = call(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, inputs.grad_out)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_what_is_more_than_its_memory_goes_through_the_dispatcher() -> None:
    """Gradients of a subclass, without memory, or that are read with another sign."""
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 2, 3, torch.float32)
    x = inputs.x.requires_grad_()
    out = gat_attention(graph, x, inputs.score_src, inputs.score_dst, backend=BACKEND)
    grad = torch.randn_like(out)

    def of(given: Any) -> Any:
        return torch.autograd.grad(out, x, given, retain_graph=True)[0]

    expected = of(grad)
    both = of(TwoTensor(grad, grad.clone()))
    assert isinstance(both, TwoTensor)
    assert torch.equal(both.a, expected)
    assert torch.equal(of(torch._neg_view(grad)), -expected)
    assert not of(torch._efficientzerotensor(out.shape, device=DEVICE)).any()


@pytest.mark.parametrize("name", ["gat", "rowwise"])
def test_missing_results_have_the_dtype_of_their_fakes(name: str) -> None:
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 2, 3, torch.bfloat16)
    csr = Edges(graph.rowptr, graph.col, graph.eid, list(graph.schedules(BACKEND)[0]))
    scoring = Scoring(0.2, 0.0, None)
    if name == "gat":
        scores = inputs.score_src.float(), inputs.score_dst.float()
        call = _flat(GatCall(csr, GatInputs(inputs.x, *scores, None, None, None), scoring))
        flags = [False, False]
    else:
        rows = RowwiseInputs(inputs.x, inputs.grad_out, torch.ones(2, 3, device=DEVICE), None)
        call, flags = _flat(RowwiseCall("gatv2", csr, rows, scoring)), [False]
    op = getattr(torch.ops.gatkernels, f"{name}_forward").default
    torch.library.opcheck(op, (*call, *flags, BACKEND), test_utils="test_faketensor")
