"""Scores that come from features: the same call with these scores given, and the chain rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import DEVICE, GRAPHS, MANY, THREADS, random_inputs
from tolerance import BACKEND, DTYPES, Options
from torch import Tensor

from gatkernels import Graph
from gatkernels.functional import gat_attention_of_features
from gatkernels.nn import GATConv
from gatkernels.ops import attention, autograd, checks
from gatkernels.ops.call import (
    Edges,
    GatCall,
    GatInputs,
    Scoring,
)

SEED = torch.tensor([0x1234_5678_9ABC_DEF0], device=DEVICE)
PLAIN, EVERYTHING = Options(), Options(-0.3, 0.6, SEED)
#: Heads that fill vectors and heads that do not, one wider than any group of lanes.
SHAPES = ((1, 1), (1, 7), (2, 4), (3, 5), (4, 64), (8, 8), (8, 16), (17, 3), (1, 1000))
SQUARE = [name for name, make in GRAPHS.items() if make().num_src == make().num_dst]

dtypes = pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
both_sides = pytest.mark.parametrize("both", [True, False])


def run(graph: Graph, scores: dict[str, Tensor | None], options: Options, grads: Any) -> Any:
    """``out``, ``alpha`` and the gradients, from the fields of ``GatInputs`` in their order."""
    leaves = {k: None if t is None else t.detach().requires_grad_() for k, t in scores.items()}
    how = autograd.Options(options.slope, options.dropout, grads[1] is not None, BACKEND)
    given = GatInputs(*leaves.values())
    out, alpha = autograd.attend("gat", graph, given, how, options.seed)
    outputs = [out] if grads[1] is None else [out, alpha]
    wanted = {k: t for k, t in leaves.items() if t is not None}
    found = torch.autograd.grad(outputs, list(wanted.values()), [g for g in grads if g is not None])
    return out.detach(), alpha, dict(zip(wanted, found, strict=True))


def assert_close(name: str, got: Tensor, terms: Tensor, over: tuple[int, ...]) -> None:
    """``got`` is the sum of ``terms``, float64, up to roundings on the scale of their sizes."""
    __tracebackhide__ = True
    eps = torch.finfo(got.dtype).eps
    length = sum(terms.shape[d] for d in over)
    scale = terms.abs().sum(over)
    error = (got.double().cpu() - terms.sum(over)).abs()
    allowed = eps * (8.0 + length / 4) * scale + torch.finfo(got.dtype).tiny
    assert got.shape == error.shape, name
    assert bool((error <= allowed).all()), f"{name}: off by {float((error - allowed).max()):.3g}"


def assert_right(
    graph: Graph, shape: tuple[int, int], dtype: torch.dtype, both: bool, options: Options
) -> None:
    __tracebackhide__ = True
    everything = options is EVERYTHING
    inputs = random_inputs(graph, *shape, dtype, edge_score=everything, attention=everything)
    sums = checks.SUM_DTYPES[dtype]
    x, edge = inputs.x, None if inputs.edge_score is None else inputs.edge_score.to(sums)
    grad_alpha = None if inputs.grad_alpha is None else inputs.grad_alpha.to(sums)
    grads = inputs.grad_out, grad_alpha
    generator = torch.Generator().manual_seed(3)
    atts = torch.randn(2, 1, *shape, generator=generator, dtype=torch.float64)
    att_src, att_dst = atts.to(sums).to(DEVICE)

    csr = Edges(graph.rowptr, graph.col, graph.eid, graph.schedules(BACKEND)[0])
    other = None if both else inputs.score_dst.to(sums)
    given = GatInputs(x, None, other, None, att_src, att_dst if both else None)
    call = GatCall(csr, given, Scoring(0.2, 0.0, None))
    *_, src, dst = attention.gat_forward(call, False, False, BACKEND)
    scores = [src, dst] if both else [src]
    assert {score.dtype for score in scores} == {sums}
    wide = x.double().cpu()
    for found, att in zip(scores, atts, strict=False):
        assert_close("score", found, wide * att.to(sums).double(), (2,))

    given = {"x": x, "src": scores[0], "dst": scores[1] if both else other, "edge": edge}
    expected = run(graph, {**given, "att_src": None, "att_dst": None}, options, grads)
    sources = {"x": x, "src": None, "dst": other, "edge": edge, "att_src": att_src}
    found = run(graph, {**sources, "att_dst": att_dst if both else None}, options, grads)
    assert torch.equal(found[0], expected[0])
    if everything:
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[2]["edge"], expected[2]["edge"])
    if not both:
        assert torch.equal(found[2]["dst"], expected[2]["dst"])
    apart = {k: g.double().cpu() for k, g in expected[2].items()}
    terms = [apart["x"]]
    for side in ("src", "dst") if both else ("src",):
        att = (att_src if side == "src" else att_dst).double().cpu()
        terms.append(apart[side][..., None] * att)
        gained = (apart[side][..., None] * wide)[None]
        assert_close(f"grad of att_{side}", found[2][f"att_{side}"], gained, (1,))
    if dtype == sums:
        assert_close("grad of x", found[2]["x"], torch.stack(terms), (0,))
    else:  # what both runs round to, and the sum of it
        scale = torch.stack(terms).abs().sum(0)
        error = (found[2]["x"].double().cpu() - sum(terms)).abs()
        assert bool((error <= 3 * torch.finfo(dtype).eps * scale).all())


@pytest.mark.parametrize("name", GRAPHS)
@dtypes
def test_every_graph(name: str, dtype: torch.dtype) -> None:
    graph = GRAPHS[name]()
    assert_right(graph, (3, 5), dtype, name in SQUARE, PLAIN)
    assert_right(graph, (8, 4), dtype, False, EVERYTHING)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["random", "hub_chunks", "hub_out"])
@both_sides
def test_every_shape(name: str, shape: tuple[int, int], both: bool) -> None:
    assert_right(GRAPHS[name](), shape, torch.float32, both, PLAIN)
    assert_right(GRAPHS[name](), shape, torch.float32, both, EVERYTHING)


@both_sides
def test_features_of_nodes_without_edges_are_not_read(both: bool) -> None:
    """0 * NaN would reach the gradients of the attention vectors."""
    graph = GRAPHS["isolated"]()
    lonely = (graph.rowptr.diff() == 0) & (graph.colptr.diff() == 0)
    assert lonely.sum() > 3
    results = []
    for filled in (0.0, float("nan"), float("inf")):
        inputs = random_inputs(graph, 3, 5, torch.float32)
        x = inputs.x.masked_fill(lonely[:, None, None], filled).requires_grad_()
        vectors = [torch.ones(1, 3, 5, device=DEVICE, requires_grad=True) for _ in range(2)]
        atts = vectors if both else vectors[:1]
        out, _ = gat_attention_of_features(graph, x, *atts, backend=BACKEND)
        results.append(torch.autograd.grad(out, (x, *atts), inputs.grad_out))
    for others in results[1:]:
        for got, expected in zip(others, results[0], strict=True):
            assert torch.equal(got, expected)


def test_same_bits_for_every_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(1)
    nodes, hub = MANY // 22, MANY // 4
    edges = torch.randint(0, nodes, (2, MANY), generator=generator)
    edges[0, :hub] = 17
    graph = Graph.from_edge_index(edges.to(DEVICE), nodes, self_loops=True)
    inputs = random_inputs(graph, 8, 8, torch.float32)
    vectors = [torch.randn(1, 8, 8, generator=generator).to(DEVICE) for _ in range(2)]
    found = []
    before = torch.get_num_threads()
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (inputs.x, *vectors)]
            out, _ = gat_attention_of_features(graph, *leaves, backend=BACKEND)
            found.append([out, *torch.autograd.grad(out, leaves, inputs.grad_out)])
    finally:
        torch.set_num_threads(before)
    for results in found[1:]:
        assert all(map(torch.equal, results, found[0]))


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
@pytest.mark.parametrize("counts", [(20, 50), (50, 20)], ids=str)
def test_one_set_of_features_on_a_bipartite_graph(counts: tuple[int, int], backend: str) -> None:
    edges = torch.stack([torch.randint(count, (100,)) for count in counts]).to(DEVICE)
    graph = Graph.from_edge_index(edges, counts)
    inputs = random_inputs(graph, 3, 5, torch.float32)
    att = torch.ones(1, 3, 5, device=DEVICE)
    error = "'att_dst' needs a graph whose sources are its destinations, got num_src="
    with pytest.raises(ValueError, match=error):
        gat_attention_of_features(graph, inputs.x, att, att, backend=backend)
    layer = GATConv(7, 5, heads=3, add_self_loops=False, backend=backend).to(DEVICE)
    for x in (torch.randn(counts[0], 7).to(DEVICE), torch.randn(counts[1], 7).to(DEVICE)):
        with pytest.raises(ValueError, match=r"GATConv|gat_attention_of_features"):
            layer(x, graph)


def test_two_sorts_of_scores_for_one_side() -> None:
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 3, 5, torch.float32)
    att = torch.ones(1, 3, 5, device=DEVICE)
    with pytest.raises(ValueError, match="give 'att_dst' or 'score_dst', not both"):
        gat_attention_of_features(graph, inputs.x, att, att, inputs.score_dst)


@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (0, 0)], ids=str)
@both_sides
def test_no_channels_or_no_heads(shape: tuple[int, int], both: bool) -> None:
    """Without channels every score is zero, and memory is not read where there is none."""
    graph = GRAPHS["random"]()
    x = torch.randn(graph.num_src, *shape, device=DEVICE, requires_grad=True)
    vectors = [torch.ones(1, *shape, device=DEVICE, requires_grad=True) for _ in range(2)]
    atts = vectors if both else vectors[:1]
    out, alpha = gat_attention_of_features(graph, x, *atts, return_attention=True, backend=BACKEND)
    assert alpha is not None
    _, dst, eid = graph.csr_edges()
    expected = torch.empty_like(alpha)
    expected[eid] = (1.0 / graph.rowptr.diff()[dst]).float()[:, None].expand(-1, shape[0])
    torch.testing.assert_close(alpha, expected)
    grads = torch.autograd.grad((out.sum() + alpha.sum()), (x, *atts))
    assert all(g.shape == t.shape for g, t in zip(grads, (x, *atts), strict=True))


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (1, 5, 3)], ids=str)
def test_attention_vectors_of_another_shape(shape: tuple[int, ...]) -> None:
    graph = GRAPHS["random"]()
    x = random_inputs(graph, 3, 5, torch.float32).x
    with pytest.raises(ValueError, match=r"'att_src' must have shape \[one, heads, channels\]"):
        gat_attention_of_features(graph, x, torch.ones(shape, device=DEVICE))
