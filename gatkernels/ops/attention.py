"""The ops of the attentions: what they return, and who runs them."""

from __future__ import annotations

from torch import Tensor

from gatkernels.backends import kernels
from gatkernels.backends.fit import fit_grads
from gatkernels.ops.call import (
    DotCall,
    Edges,
    GatCall,
    GatInputs,
    GatSaved,
    OutGrads,
    RowwiseCall,
    RowwiseSaved,
)
from gatkernels.ops.library import define


def _gat_forward(
    call: GatCall, training: bool, statistics: bool, backend: str
) -> tuple[Tensor | None, ...]:
    """``out``; ``out_pos`` where ``training`` and ``stats`` where ``statistics``; and the scores
    that were taken of x."""
    run, (csr, inputs, scoring) = kernels(backend), call
    found_src = found_dst = None
    if inputs.att_src is not None:
        found_src, found_dst = run.node_scores(call)
        src = inputs.score_src if found_src is None else found_src
        dst = inputs.score_dst if found_dst is None else found_dst
        call = GatCall(csr, GatInputs(inputs.x, src, dst, inputs.edge_score, None, None), scoring)
    return (*run.gat_forward(call, training, statistics), found_src, found_dst)


def _fake_gat_forward(
    call: GatCall, training: bool, statistics: bool, backend: str
) -> tuple[Tensor, ...]:
    x, src, _, _, att_src, att_dst = call.inputs
    sums = src if att_src is None else att_src
    assert sums is not None
    rows, (nodes, heads, channels) = _rows(call.csr), x.shape

    def found(att: Tensor | None) -> Tensor:
        return x.new_empty(0) if att is None else sums.new_empty(nodes, heads)

    return (
        x.new_empty(rows, heads, channels),
        sums.new_empty(rows, heads, channels) if training else x.new_empty(0),
        sums.new_empty(rows, 3, heads) if statistics else x.new_empty(0),
        found(att_src),
        found(att_dst),
    )


def _gat_alpha(call: GatCall, stats: Tensor, backend: str) -> Tensor:
    return kernels(backend).gat_alpha(call, stats)


def _gat_backward(
    call: GatCall, csc: Edges, saved: GatSaved, grads: OutGrads, of_edges: bool, backend: str
) -> tuple[Tensor | None, ...]:
    """Gradients of x, both scores, edge scores where ``of_edges``, and the attention vectors,
    ``[0 to 2, H, C]``; that of x includes what comes through scores that were taken of it."""
    run, grads = kernels(backend), fit_grads(grads)  # both passes read them
    found = run.gat_destinations(call, saved, grads)
    x, src, edge, att = run.gat_sources(call, csc, found, grads, of_edges)
    return x, src, found.dst, edge, att


def _fake_gat_backward(
    call: GatCall, csc: Edges, saved: GatSaved, grads: OutGrads, of_edges: bool, backend: str
) -> tuple[Tensor, ...]:
    x, src, dst, edge, *atts = call.inputs
    assert src is not None
    assert dst is not None
    vectors = sum(att is not None for att in atts)
    return (
        *(t.new_empty(t.shape) for t in (x, src, dst)),
        _fake_of_edges(edge, of_edges, x),
        src.new_empty(vectors, *x.shape[1:]),
    )


def _rowwise_forward(
    call: RowwiseCall, statistics: bool, backend: str
) -> tuple[Tensor | None, ...]:
    """``out``, and ``stats`` where ``statistics``."""
    return kernels(backend).rowwise_forward(call, statistics)


def _fake_rowwise_forward(call: RowwiseCall, statistics: bool, backend: str) -> tuple[Tensor, ...]:
    x, x_dst, att, _ = call.inputs
    rows, heads = x_dst.shape[0], x.shape[1]
    return x.new_empty(x_dst.shape), (
        att.new_empty(rows, 3, heads) if statistics else x.new_empty(0)
    )


def _rowwise_alpha(call: RowwiseCall, stats: Tensor, backend: str) -> Tensor:
    return kernels(backend).rowwise_alpha(call, stats)


def _rowwise_backward(
    call: RowwiseCall,
    csc: Edges,
    saved: RowwiseSaved,
    grads: OutGrads,
    of_edges: bool,
    backend: str,
) -> tuple[Tensor | None, ...]:
    """Gradients of x_src, x_dst, att and, where ``of_edges``, edge."""
    run, grads = kernels(backend), fit_grads(grads)
    dst, att, edge, fields = run.rowwise_destinations(call, saved, grads, of_edges)
    return run.rowwise_sources(call, csc, fields, grads), dst, att, edge


def _fake_rowwise_backward(
    call: RowwiseCall,
    csc: Edges,
    saved: RowwiseSaved,
    grads: OutGrads,
    of_edges: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    *inputs, edge = call.inputs
    of_edge = _fake_of_edges(edge, of_edges, call.inputs.x_src)
    return (*(t.new_empty(t.shape) for t in inputs), of_edge)


def _fake_of_edges(edge: Tensor | None, wanted: bool, x: Tensor) -> Tensor:
    return edge.new_empty(edge.shape) if wanted and edge is not None else x.new_empty(0)


def _rows(csr: Edges) -> int:
    return csr.rowptr.shape[0] - 1


def fake_alpha(call: GatCall | RowwiseCall | DotCall, stats: Tensor, backend: str) -> Tensor:
    """Attention weights of any call."""
    return stats.new_empty(call.csr.col.shape[0], stats.shape[2])


gat_forward = define(
    _gat_forward,
    "(Tensor out, Tensor out_pos, Tensor stats, Tensor score_src, Tensor score_dst)",
    _fake_gat_forward,
)
gat_alpha = define(_gat_alpha, "Tensor", fake_alpha)
gat_backward = define(
    _gat_backward,
    "(Tensor grad_x, Tensor grad_src, Tensor grad_dst, Tensor grad_edge, Tensor grad_att)",
    _fake_gat_backward,
)
rowwise_forward = define(_rowwise_forward, "(Tensor out, Tensor stats)", _fake_rowwise_forward)
rowwise_alpha = define(_rowwise_alpha, "Tensor", fake_alpha)
rowwise_backward = define(
    _rowwise_backward,
    "(Tensor grad_x, Tensor grad_dst, Tensor grad_att, Tensor grad_edge)",
    _fake_rowwise_backward,
)
