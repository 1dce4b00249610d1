"""The ops of dot products and their public function: opcheck, compilers, autocast, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import DEVICE, GRAPHS
from test_dot import SEED, grads_of, inputs_of, with_edges
from tolerance import BACKEND
from torch import Tensor

from gatkernels import dot_attention
from gatkernels.ops import dot
from gatkernels.ops.call import DotCall, DotGrads, DotInputs, DotSaved, DotScoring, Edges


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the same rule on a GPU")
def test_autocast_brings_mixed_dtypes_together() -> None:
    graph = GRAPHS["random"]()
    q, k, v, edge, query = inputs_of(graph, 2, (4, 4, 3), torch.float32, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, edge_out = dot_attention(
            graph, q.bfloat16(), k.bfloat16(), v, edge, query.bfloat16(), backend=BACKEND
        )
    assert out.dtype == edge_out.dtype == torch.float32
    expected = dot_attention(graph, *(t.bfloat16().float() for t in (q, k)), v, edge, query)
    torch.testing.assert_close(out, expected[0], rtol=2e-2, atol=2e-2)


def _flat(*parts: Any) -> tuple[Any, ...]:
    found: list[Any] = []
    for part in parts:
        found += _flat(*part) if hasattr(part, "_fields") else [part]
    return tuple(found)


@with_edges
def test_opcheck(edges: bool) -> None:
    graph = GRAPHS["self_loops_replaced"]()
    by_row, by_column = (list(parts) for parts in graph.schedules(BACKEND))
    csr = Edges(graph.rowptr, graph.col, graph.eid, by_row)
    csc = Edges(graph.colptr, graph.row, graph.ceid, by_column)
    given = inputs_of(graph, 2, (3, 5, 2), torch.float32, edges)
    inputs = DotInputs(*given, *[None] * (5 - len(given)))
    call = DotCall(csr, inputs, DotScoring(0.5, 0.4, SEED) if edges else DotScoring(0.5, 0.0, None))
    out, edge_out, stats = dot.dot_forward(call, True, BACKEND)
    alpha = dot.dot_alpha(call, stats, BACKEND)
    saved = DotSaved(out, edge_out if edges else None, stats, alpha if edges else None)
    of_results = grads_of((out, edge_out, alpha) if edges else (out,), torch.float32)
    grads = DotGrads(*of_results) if edges else DotGrads(*of_results, None, None)
    ops = torch.ops.gatkernels
    torch.library.opcheck(ops.dot_forward.default, (*_flat(call, edges), BACKEND))
    torch.library.opcheck(ops.dot_alpha.default, (*_flat(call, stats), BACKEND))
    for of_edges in (False, True):
        samples = (*_flat(call, csc, saved, grads, of_edges), BACKEND)
        torch.library.opcheck(ops.dot_backward.default, samples)


@pytest.mark.parametrize("dynamic", [False, True])
@with_edges
def test_compiles_into_one_graph(dynamic: bool, edges: bool) -> None:
    graph = GRAPHS["random"]()
    leaves = [t.requires_grad_() for t in inputs_of(graph, 4, (6, 5, 3), torch.float32, edges)]

    def step(q: Tensor, *rest: Tensor) -> Any:
        found = dot_attention(graph, q.sin(), *rest, return_attention=True, backend=BACKEND)
        return tuple(t.cos() for t in found)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    found = []
    for call in (compiled, step):
        out = call(*leaves)
        found.append([*out, *torch.autograd.grad(out, leaves, grads_of(out, torch.float32))])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_exports() -> None:
    graph = GRAPHS["random"]()
    inputs = tuple(inputs_of(graph, 4, (6, 5, 3), torch.float32, True))

    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Any:
            return dot_attention(graph, *given, backend=BACKEND)

    program = torch.export.export(Module(), inputs)
    for got, expected in zip(program.module()(*inputs), Module()(*inputs), strict=True):
        torch.testing.assert_close(got, expected)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "gatkernels.dot_forward.default" in targets


@pytest.mark.parametrize(
    ("place", "bad", "error", "message"),
    [
        (0, None, TypeError, "'q' must be a torch.Tensor, got NoneType"),
        (0, torch.tensor(1.0), ValueError, "'q' must have shape [num_dst, heads, channels]"),
        (0, torch.ones(11, 2, 3).long(), TypeError, "'q' must have dtype float32"),
        (1, torch.ones(11, 2, 3), ValueError, "'k' must have shape [num_src, heads, channels]"),
        (1, torch.ones(7, 2, 3).double(), TypeError, "'k' must have the dtype of 'q'"),
        (2, torch.ones(7, 3, 4), ValueError, "'v' must have shape [num_src, heads, channels]"),
        (2, None, TypeError, "'v' must be a torch.Tensor, got NoneType"),
        (3, torch.ones(60, 2, 2), ValueError, "'edge' must have shape [num_edges, features]"),
        (3, None, ValueError, "'edge_query' was given without 'edge'; give both or neither"),
        (4, None, ValueError, "'edge' was given without 'edge_query'; give both or neither"),
        (4, torch.ones(11, 2, 4), ValueError, "'edge_query' must have shape [num_dst, heads, fea"),
    ],
)
def test_rejects(place: int, bad: Any, error: type[Exception], message: str) -> None:
    graph = GRAPHS["bipartite"]()
    arguments: list[Any] = inputs_of(graph, 2, (3, 4, 2), torch.float32, True)
    arguments[place] = None if bad is None else bad.to(DEVICE)
    with pytest.raises(error) as caught:
        dot_attention(graph, *arguments)
    assert f"dot_attention: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": "1"}, TypeError, "'scale' must be a number, got str"),
        ({"dropout": 1.5}, ValueError, "'dropout' must be a probability"),
        ({"backend": "tpu"}, ValueError, "'backend' must be one of auto"),
    ],
)
def test_rejects_options(options: Any, error: type[Exception], message: str) -> None:
    graph = GRAPHS["bipartite"]()
    arguments = inputs_of(graph, 2, (3, 4, 2), torch.float32, False)
    with pytest.raises(error) as caught:
        dot_attention(graph, *arguments, **options)
    assert f"dot_attention: {message}" in str(caught.value)


def test_a_batch_shares_its_edge_features() -> None:
    graph = GRAPHS["bipartite"]()
    q, k, v, edge, query = (
        torch.stack([t, t]) for t in inputs_of(graph, 2, (3, 4, 2), torch.float32, True)
    )
    with pytest.raises(ValueError, match=r"'edge' must have shape \[num_edges, features\]"):
        dot_attention(graph, q, k, v, edge, query)
    with pytest.raises(ValueError, match="'k' must begin with the batch size 2"):
        dot_attention(graph, q, k[:1], v)
