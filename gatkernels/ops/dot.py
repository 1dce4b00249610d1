"""The ops of the attention by dot products: what they return, and who runs them."""

from __future__ import annotations

from torch import Tensor

from gatkernels.backends import kernels
from gatkernels.backends.fit import fit_dot_grads
from gatkernels.ops.attention import fake_alpha
from gatkernels.ops.call import DotCall, DotGrads, DotSaved, Edges
from gatkernels.ops.checks import SUM_DTYPES
from gatkernels.ops.library import define


def _dot_forward(call: DotCall, statistics: bool, backend: str) -> tuple[Tensor | None, ...]:
    """``out``, ``edge_out`` where there are edge features, and ``stats`` where ``statistics``."""
    return kernels(backend).dot_forward(call, statistics)


def _fake_dot_forward(call: DotCall, statistics: bool, backend: str) -> tuple[Tensor, ...]:
    q, _, v, _, edge_query = call.inputs
    rows, heads, _ = q.shape
    return (
        q.new_empty(rows, heads, v.shape[2]),
        _like(edge_query, q),
        q.new_empty(rows, 3, heads, dtype=SUM_DTYPES[q.dtype]) if statistics else _like(None, q),
    )


def _dot_alpha(call: DotCall, stats: Tensor, backend: str) -> Tensor:
    return kernels(backend).dot_alpha(call, stats)


def _dot_backward(
    call: DotCall, csc: Edges, saved: DotSaved, grads: DotGrads, of_edges: bool, backend: str
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, edge where ``of_edges``, and edge_query."""
    run, grads = kernels(backend), fit_dot_grads(grads)  # both passes read them
    q, edge, edge_query, fields = run.dot_destinations(call, saved, grads, of_edges)
    k, v = run.dot_sources(call, csc, fields, grads)
    return q, k, v, edge, edge_query


def _fake_dot_backward(
    call: DotCall, csc: Edges, saved: DotSaved, grads: DotGrads, of_edges: bool, backend: str
) -> tuple[Tensor, ...]:
    q, k, v, edge, edge_query = call.inputs
    return tuple(_like(t, q) for t in (q, k, v, edge if of_edges else None, edge_query))


def _like(tensor: Tensor | None, q: Tensor) -> Tensor:
    return q.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)


dot_forward = define(_dot_forward, "(Tensor out, Tensor edge_out, Tensor stats)", _fake_dot_forward)
dot_alpha = define(_dot_alpha, "Tensor", fake_alpha)
dot_backward = define(
    _dot_backward,
    "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_edge, Tensor grad_edge_query)",
    _fake_dot_backward,
)
