"""Attention by dot products against its formula in float64, written a second time, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from graphs import DEVICE, GRAPHS, INTERPRETED, MANY, THREADS
from tolerance import BACKEND
from torch import Tensor

from gatkernels import Graph, dot_attention, reference
from gatkernels.ops import autograd, checks
from gatkernels.ops.autograd import DotOptions
from gatkernels.ops.call import DotGrads, DotInputs, DotScoring
from gatkernels.ops.philox import draw_seed
from gatkernels.testing import assert_within, dot_scales, longest_row

SEED = torch.tensor([0x1234_5678_9ABC_DEF0], device=DEVICE)
AGAIN = 0.0 if DEVICE.type == "cpu" else 1e-12  # the reference adds up by atomics on a GPU
NAMES = ("q", "k", "v", "edge", "edge_query")
dtypes = pytest.mark.parametrize("dtype", list(checks.DTYPE_CODES), ids=str)
with_edges = pytest.mark.parametrize("edges", [False, True], ids=["", "edges"])


def inputs_of(
    graph: Graph, heads: int, sizes: tuple[int, int, int], dtype: torch.dtype, edges: bool
) -> list[Tensor]:
    """``q, k, v`` and where there are ``edges`` ``edge, edge_query``, of ``sizes = C, D, F``."""
    generator = torch.Generator().manual_seed(1000 * heads + sizes[0])
    channels, values, features = sizes
    shapes: list[tuple[int, ...]]
    shapes = [(graph.num_dst, heads, channels), (graph.num_src, heads, channels)]
    shapes.append((graph.num_src, heads, values))
    if edges:
        shapes += [(graph.num_edges, features), (graph.num_dst, heads, features)]
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in shapes]
    return [t.to(dtype).to(DEVICE) for t in made]


def formula(
    graph: Graph, given: tuple[Tensor, ...], scale: float, dropout: float, seed: Tensor | None
) -> tuple[Tensor, ...]:
    """``out``, with edges ``edge_out``, and ``alpha``: keys and values of each edge, row by row."""
    q, k, v, *rest = given
    edge, query = rest or (None, None)
    used = graph.used_edge_ids() if graph.self_loops else torch.arange(graph.num_edges)
    src, dst = graph.edge_index.long()
    order = used[dst.argsort(stable=True)]
    src_of = torch.full((graph.num_edges,), -1)
    src_of[used] = src
    nothing = 0.0 * sum(t.sum() for t in given)
    alphas, ids = [nothing.expand(0, q.shape[1])], [order[:0]]
    out = [nothing.expand(0, *v.shape[1:])]
    edge_out = [] if query is None else [nothing.expand(0, *query.shape[1:])]
    mask, start = torch.ones(graph.num_edges, q.shape[1]), 0
    if dropout > 0.0:
        assert seed is not None
        mask = reference.dropout_scale(graph.num_edges, q.shape[1], dropout, seed)
    for node, degree in enumerate(dst.bincount(minlength=graph.num_dst).tolist()):
        ends = order[start : start + degree]
        start += degree
        logits = torch.einsum("hc,ehc->eh", q[node], k[src_of[ends]])
        if edge is not None:
            logits = logits + torch.einsum("hf,ef->eh", query[node], edge[ends])
        alpha = torch.softmax(scale * logits, 0)
        alpha = alpha * mask[ends]
        out.append(torch.einsum("eh,ehd->hd", alpha, v[src_of[ends]])[None])
        if edge is not None:
            edge_out.append(torch.einsum("eh,ef->hf", alpha, edge[ends])[None])
        alphas.append(alpha)
        ids.append(ends)
    every = q.new_zeros(graph.num_edges, q.shape[1])
    every = every.index_add(0, torch.cat(ids), torch.cat(alphas))
    if edge is None:
        return torch.cat(out), every
    return torch.cat(out), torch.cat(edge_out), every


def grads_of(outputs: Any, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=generator).to(dtype).to(t) for t in outputs]


def results(call: Any, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = call(*leaves)
    given = grads_of(outputs, dtype)
    found = torch.autograd.grad(outputs, leaves, given, allow_unused=True)
    zeros = (torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True))
    return [t.detach() for t in (*outputs, *zeros)]


def check(
    graph: Graph,
    inputs: list[Tensor],
    dropout: float,
    attention: bool = True,
    scale: float | None = None,
) -> None:
    def ours(*tensors: Tensor) -> Any:
        torch.manual_seed(3)
        options: dict[str, Any] = {"scale": scale, "dropout": dropout, "backend": BACKEND}
        found = dot_attention(graph, *tensors, return_attention=attention, **options)
        return found if isinstance(found, tuple) else (found,)

    on_cpu, dtype, edges = graph.to("cpu"), inputs[0].dtype, len(inputs) > 3
    torch.manual_seed(3)
    seed = draw_seed(DEVICE).cpu()  # as the call draws it
    factor = 1.0 / math.sqrt(max(inputs[0].shape[2], 1)) if scale is None else scale
    scoring = DotScoring(factor, dropout, seed)

    def plain(*tensors: Tensor) -> Any:
        found = reference.dot_attention(on_cpu, *tensors, **scoring._asdict())
        there = [t for t in found if t is not None]
        return there if attention else there[:-1]

    def true(*tensors: Tensor) -> Any:
        found = formula(on_cpu, tensors, scoring.scale, scoring.dropout, scoring.seed)
        return found if attention else found[:-1]

    got, inputs = results(ours, inputs, dtype), [t.cpu() for t in inputs]
    same, truth = results(plain, inputs, dtype), results(true, [t.double() for t in inputs], dtype)
    names = ["out", *["edge_out"] * edges, *["alpha"] * attention]
    grads = dict(zip(names, grads_of(truth[: len(names)], dtype), strict=True))
    given = DotGrads(grads["out"], grads.get("edge_out"), grads.get("alpha"))
    rows = DotInputs(*inputs, *[None] * (5 - len(inputs)))
    scales = dot_scales(on_cpu, rows, given, scoring)
    names += [f"grad of {name}" for name in NAMES[: len(inputs)]]
    for name, *three in zip(names, got, same, truth, strict=True):
        assert three[0].dtype == dtype
        assert_within(name, *three, scales[name], longest_row(graph))


@pytest.mark.parametrize("name", GRAPHS)
@dtypes
def test_on_every_graph(name: str, dtype: torch.dtype) -> None:
    graph = GRAPHS[name]()
    check(graph, inputs_of(graph, 3, (5, 4, 2), dtype, True), 0.6)


SHAPES = [
    (1, (1, 1, 1)),
    (1, (7, 7, 3)),
    (8, (8, 8, 5)),
    (8, (16, 16, 8)),
    (17, (3, 3, 1)),
    (2, (121, 40, 130)),
    (4, (256, 256, 16)),
    (2, (8, 24, 1)),
    (3, (0, 4, 0)),
    (3, (4, 0, 2)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
@with_edges
def test_of_every_shape(shape: Any, dtype: torch.dtype, edges: bool) -> None:
    for name in ("random", "hub_block"):
        graph = GRAPHS[name]()
        inputs = inputs_of(graph, *shape, dtype, edges)
        for dropout, attention in ((0.0, True), (0.6, False)):
            check(graph, inputs, dropout, attention)


def test_heads_so_wide_that_several_programs_share_an_edge() -> None:
    """Each adds its heads' share to the gradient of the edge's features."""
    graph = GRAPHS["bipartite"]()
    check(graph, inputs_of(graph, 3, (1100, 3, 2), torch.float32, True), 0.6)


@pytest.mark.parametrize("scale", [None, 0.0, 1.0, -0.7])
@pytest.mark.parametrize("dropout", [0.0, 0.6, 1.0])
@with_edges
def test_options(scale: float | None, dropout: float, edges: bool) -> None:
    graph = GRAPHS["bipartite"]()
    check(graph, inputs_of(graph, 4, (6, 5, 3), torch.float64, edges), dropout, True, scale)


@with_edges
def test_scores_far_apart(edges: bool) -> None:
    """Rows whose scores lie a thousand apart, and scores of a thousand within a row."""
    graph = GRAPHS["random"]()
    inputs = inputs_of(graph, 2, (8, 8, 3), torch.float32, edges)
    inputs[0][::2] *= 1000.0
    check(graph, inputs, 0.0)


@with_edges
def test_inputs_and_gradients_that_are_not_contiguous(edges: bool) -> None:
    """Projections side by side, as layers have them, and gradients that are expanded."""
    graph = GRAPHS["random"]()
    heads, channels, features = 2, 8, 3
    width = heads * channels
    columns = torch.randn(graph.num_src, 3 * width, dtype=torch.float64).to(DEVICE)
    q, k, v = (columns[:, p * width : (p + 1) * width].view(-1, heads, channels) for p in range(3))
    given = [q, k, v]
    if edges:
        edge = torch.randn(features, graph.num_edges, dtype=torch.float64).to(DEVICE).t()
        query = torch.randn(1, 1, features, dtype=torch.float64).to(DEVICE)
        given += [edge, query.expand(graph.num_dst, heads, -1)]
    found = []
    for make in (lambda t: t, lambda t: t.contiguous()):
        leaves = [make(t.detach()).requires_grad_() for t in given]
        out = dot_attention(graph, *leaves, backend=BACKEND)
        loss = sum(t.sum() for t in out) if edges else out.sum()
        found.append(torch.autograd.grad(loss, leaves))
    for strided, contiguous in zip(*found, strict=True):
        torch.testing.assert_close(strided, contiguous)


def _attend(graph: Graph, attention: bool, *tensors: Tensor, dropout: float = 0.4) -> Any:
    given = DotInputs(*tensors, *[None] * (5 - len(tensors)))
    how = DotOptions(0.7, dropout, attention, BACKEND)
    found = autograd.attend("dot", graph, given, how, SEED)
    return tuple(t for t in found if t is not None)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("second", [False, True])
@with_edges
def test_gradients(heads: int, attention: bool, edges: bool, second: bool) -> None:
    graph = GRAPHS["self_loops_replaced"]()
    leaves = inputs_of(graph, heads, (3, 2, 2), torch.float64, edges)
    leaves = [t.requires_grad_() for t in leaves]

    def call(*tensors: Tensor) -> Any:
        return _attend(graph, attention, *tensors)

    if second:
        assert torch.autograd.gradgradcheck(call, leaves, nondet_tol=AGAIN, fast_mode=True)
    else:
        assert torch.autograd.gradcheck(call, leaves, fast_mode=INTERPRETED)


@pytest.mark.parametrize("frozen", NAMES)
def test_double_backward_with_a_frozen_input(frozen: str) -> None:
    graph = GRAPHS["bipartite"]()
    leaves = inputs_of(graph, 2, (3, 2, 2), torch.float64, True)
    chosen = [t.requires_grad_() for t, n in zip(leaves, NAMES, strict=True) if n != frozen]
    twice = {}
    for backend in (BACKEND, "reference"):
        out = dot_attention(graph, *leaves, backend=backend)
        first = torch.autograd.grad(sum(t.square().sum() for t in out), chosen, create_graph=True)
        total = sum(g.square().sum() for g in first)
        twice[backend] = torch.autograd.grad(total, chosen)
    for got, expected in zip(twice[BACKEND], twice["reference"], strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("wanted", NAMES)
def test_one_gradient_alone(wanted: str) -> None:
    graph = GRAPHS["random"]()
    given = inputs_of(graph, 3, (5, 5, 4), torch.float32, True)
    found = {}
    for names in (NAMES, (wanted,)):
        leaves = [t.clone().requires_grad_(n in names) for t, n in zip(given, NAMES, strict=True)]
        out = torch.cat(dot_attention(graph, *leaves, backend=BACKEND), -1)
        out.backward(torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out))
        found[names] = leaves[NAMES.index(wanted)].grad
    assert torch.equal(*found.values())


@pytest.mark.parametrize("used", ["out", "edge_out", "alpha"])
def test_a_loss_of_one_result_alone(used: str) -> None:
    graph = GRAPHS["random"]()
    leaves = [t.requires_grad_() for t in inputs_of(graph, 2, (3, 2, 2), torch.float64, True)]
    place, found = ("out", "edge_out", "alpha").index(used), {}
    for backend in (BACKEND, "reference"):
        result = dot_attention(graph, *leaves, return_attention=True, backend=backend)[place]
        weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype, device=DEVICE)
        loss = (result.flatten() * weight).sum()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        found[backend] = [
            torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)
        ]
    for got, expected in zip(found[BACKEND], found["reference"], strict=True):
        torch.testing.assert_close(got, expected)


def test_same_bits_for_any_number_of_threads() -> None:
    graph = GRAPHS["degrees"]()
    inputs = inputs_of(graph, 8, (16, 16, 4), torch.float32, True)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in THREADS:
            torch.set_num_threads(threads)
            found.append(results(lambda *t: _attend(graph, True, *t), inputs, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_no_edge_reads_reaches_no_gradient(value: float) -> None:
    """Values that are not finite, of a source and a destination without edges."""
    dst = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3, 3], device=DEVICE)
    graph = Graph.from_edge_index(torch.stack([torch.arange(10, device=DEVICE), dst]), 12)
    for channels in (8, 16):
        leaves = inputs_of(graph, 2, (channels, channels, 3), torch.float32, True)
        for place, node in ((0, 2), (1, 11), (2, 11), (4, 2)):
            leaves[place][node] = value
        leaves = [t.requires_grad_() for t in leaves]
        outs = dot_attention(graph, *leaves, backend=BACKEND)
        grads = [torch.ones_like(t) for t in outs]
        for grad in grads:
            grad[2] = value
        for grad in torch.autograd.grad(outs, leaves, grads):
            assert grad.isfinite().all()


def test_nothing_the_size_of_the_edges_is_kept() -> None:
    """Beside the edge features, which are an input."""
    nodes = 20
    graph = Graph.from_edge_index(torch.randint(0, nodes, (2, MANY)).to(DEVICE), nodes)
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    given = [t.requires_grad_() for t in inputs_of(graph, 4, (8, 8, 3), torch.float32, True)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dot_attention(graph, *given, dropout=0.5, backend=BACKEND)
    floating = sum(t.nbytes for t in kept.values() if t.is_floating_point())
    rows = 4 * nodes * 4 * (4 * 8 + 2 * 3 + 3)
    assert 0 < floating - given[3].nbytes <= rows


@pytest.mark.parametrize("dropout", [0.0, 0.6])
@with_edges
def test_a_static_batch_is_its_members(dropout: float, edges: bool) -> None:
    """Without dropout, each member by itself; with it, the reference in the same call."""
    graph = GRAPHS["bipartite"]()
    member = inputs_of(graph, 2, (3, 4, 2), torch.float64, edges)
    stacked = [torch.stack([t, 2.0 * t, -t]) for t in member]
    if edges:
        stacked[3] = member[3]
    found = []
    for backend in (BACKEND, "reference"):
        torch.manual_seed(1)
        how: dict[str, Any] = {"dropout": dropout, "return_attention": True, "backend": backend}
        found.append(dot_attention(graph, *stacked, **how))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
    if dropout == 0.0:
        for place in range(3):
            one = [
                t if name == "edge" else t[place] for name, t in zip(NAMES, stacked, strict=False)
            ]
            alone = dot_attention(graph, *one, return_attention=True, backend=BACKEND)
            for got, expected in zip(found[0], alone, strict=True):
                torch.testing.assert_close(got[place], expected)


def test_results_come_in_their_order() -> None:
    graph = GRAPHS["bipartite"]()
    q, k, v, edge, query = inputs_of(graph, 2, (3, 4, 5), torch.float32, True)
    rows = graph.num_dst
    out = dot_attention(graph, q, k, v, backend=BACKEND)
    assert out.shape == (rows, 2, 4)
    out, alpha = dot_attention(graph, q, k, v, return_attention=True, backend=BACKEND)
    assert (out.shape, alpha.shape) == ((rows, 2, 4), (graph.num_edges, 2))
    out, edge_out = dot_attention(graph, q, k, v, edge, query, backend=BACKEND)
    assert (out.shape, edge_out.shape) == ((rows, 2, 4), (rows, 2, 5))
    found = dot_attention(graph, q, k, v, edge, query, return_attention=True, backend=BACKEND)
    assert [t.shape[-1] for t in found] == [4, 5, 2]


def test_few_nodes_with_edges_among_many() -> None:
    nodes = 1 << 15
    edge_index = torch.randint(0, nodes, (2, 50)).to(DEVICE)
    edge_index[1] = edge_index[1, 0] // (1 + edge_index[1] % 4)
    graph = Graph.from_edge_index(edge_index, nodes)
    inputs = inputs_of(graph, 2, (4, 3, 2), torch.float32, True)

    def call(backend: str) -> Any:
        def run(*tensors: Tensor) -> Any:
            torch.manual_seed(2)
            how: dict[str, Any] = {"dropout": 0.3, "return_attention": True}
            return dot_attention(graph, *tensors, backend=backend, **how)

        return run

    got, expected = (results(call(b), inputs, torch.float32) for b in (BACKEND, "reference"))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
