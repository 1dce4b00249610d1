"""The functions of :mod:`gatkernels.backends.protocol` for attention by dot products."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gatkernels.backends.fit import fit_dot, fit_dot_grads, grad_of_edges
from gatkernels.backends.triton import dot, dot_backward, separable
from gatkernels.backends.triton.common import Partial, Rows
from gatkernels.backends.triton.dot import Sides
from gatkernels.backends.triton.job import (
    Job,
    guard,
    launch,
    matrix,
    options,
    partial_of,
    run_prologue,
    unit_of,
)
from gatkernels.backends.triton.tiling import DotTile, dot_tile
from gatkernels.ops.call import (
    DotCall,
    DotDestinationGrads,
    DotGrads,
    DotInputs,
    DotSaved,
    DotSourceGrads,
    Edges,
)
from gatkernels.ops.checks import SUM_DTYPES


def _maybe(tensor: Tensor | None, unit: int) -> Rows | None:
    return None if tensor is None else matrix(tensor, unit)


def _given(
    inputs: DotInputs, grads: DotGrads | None = None, fields: Tensor | None = None
) -> tuple[DotTile, dot.Given, dot_backward.Grads]:
    """The tile, inputs, and gradients of results, as kernels take them."""
    q, k, v, edge, query = inputs
    out, edge_out, alpha = DotGrads(v, query, None) if grads is None else fit_dot_grads(grads)
    units = unit_of(q, k), unit_of(v, out), 1
    features = 0
    if query is not None:
        assert edge_out is not None
        features, units = query.shape[2], (*units[:2], unit_of(query, edge_out))
    sizes = q.shape[2], v.shape[2], features
    cut = dot_tile(q.shape[1], sizes, SUM_DTYPES[q.dtype], units)
    of_q, of_v, of_edges = units
    rows = matrix(q, of_q), matrix(k, of_q), matrix(v, of_v), edge, _maybe(query, of_edges)
    rows_of_grads = matrix(out, of_v), _maybe(edge_out, of_edges), alpha, fields
    return cut, dot.Given(*rows), dot_backward.Grads(*rows_of_grads)


def dot_forward(call: DotCall, statistics: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    job, inputs = Job(call.csr, call.scoring), fit_dot(call.inputs)
    q, _, v, _, query = inputs
    cut, given, _ = _given(inputs)
    (rows, heads, _), values = q.shape, v.shape[2]
    like = q.new_empty(0, dtype=SUM_DTYPES[q.dtype])
    out = q.new_empty(rows, heads, values)
    edge_out = None if query is None else q.new_empty(query.shape)
    stats = like.new_empty(rows, 3, heads) if statistics else None
    to = Sides(separable.Forward(out, stats, None), separable.Forward(edge_out, None, None))
    partial = Sides(partial_of(like, job, (heads, values), 3, False), None)
    if query is not None:
        # a softmax is merged with either of its sums
        of_edges = partial_of(like, job, (heads, query.shape[2]), 3, False)
        partial = Sides(partial.nodes, of_edges)
    with guard(q):
        args: tuple[Any, ...] = (given, to, partial, *options(call.scoring))
        launch(dot.forward, job.programs(cut), cut, *job.args(), *args)
        launch(separable.merge, job.chunks, cut.v, job.work, to.nodes, partial.nodes)
        if query is not None:
            launch(separable.merge, job.chunks, cut.query, job.work, to.edges, partial.edges)
    return out, edge_out, stats


def dot_alpha(call: DotCall, stats: Tensor) -> Tensor:
    job, inputs = Job(call.csr, call.scoring), fit_dot(call.inputs)
    cut, given, _ = _given(inputs)
    alpha = stats.new_zeros(call.csr.col.shape[0], stats.shape[2])
    with guard(stats):
        args = (given, stats, alpha, *options(call.scoring))
        launch(dot.alpha, job.programs(cut), cut, *job.args(), *args)
    return alpha


def dot_destinations(
    call: DotCall, saved: DotSaved, grads: DotGrads, of_edges: bool
) -> DotDestinationGrads:
    job, inputs = Job(call.csr, call.scoring), fit_dot(call.inputs)
    (q, _, _, edge, query), stats = inputs, saved.stats
    heads, channels = q.shape[1:]
    fields = stats.new_empty(q.shape[0], 3 * heads)
    cut, given, of_results = _given(inputs, grads, fields)
    grad_q, grad_edge = q.new_empty(q.shape), grad_of_edges(edge, of_edges)
    grad_query, shares = None, None
    partial = Sides(partial_of(stats, job, (heads, channels), 0, False), None)
    if query is not None:
        grad_query = q.new_empty(query.shape)
        of_query = partial_of(stats, job, (heads, query.shape[2]), 0, False)
        partial = Sides(partial.nodes, of_query)
        if grad_edge is not None and cut.groups > 1:  # of programs that share an edge
            shares = stats.new_zeros(grad_edge.shape[0], cut.groups, grad_edge.shape[1])
    to = DotDestinationGrads(grad_q, grad_edge if shares is None else shares, grad_query, fields)
    walk = of_results.alpha is not None
    alpha = saved.alpha if walk else None
    left = dot_backward.Saved(saved.out, saved.edge_out, stats, alpha, of_results.alpha)
    with guard(q):
        run_prologue(dot_backward.prologue, job, cut, walk, of_results, left)
        args = (given, of_results, to, partial, *options(call.scoring))
        launch(dot_backward.by_destination, job.programs(cut), cut, *job.args(), *args)
        launch(dot_backward.merge, job.chunks, cut.k, job.work, grad_q, partial.nodes)
        if query is not None:
            launch(dot_backward.merge, job.chunks, cut.query, job.work, grad_query, partial.edges)
        if shares is not None:
            grad_edge = shares.sum(1).to(q.dtype)
    return DotDestinationGrads(grad_q, grad_edge, grad_query, fields)


def dot_sources(call: DotCall, csc: Edges, fields: Tensor, grads: DotGrads) -> DotSourceGrads:
    job, inputs = Job(csc, call.scoring), fit_dot(call.inputs)
    _, k, v, _, _ = inputs
    cut, given, of_results = _given(inputs, grads, fields)
    to = DotSourceGrads(k.new_empty(k.shape), v.new_empty(v.shape))
    partials: list[Partial] = [
        partial_of(fields, job, (k.shape[1], rows.shape[2]), 0, False) for rows in (k, v)
    ]
    with guard(k):
        args = (given, of_results, to, *partials, *options(call.scoring))
        launch(dot_backward.by_source, job.programs(cut), cut, *job.args(), *args)
        for grad, partial, rows in zip(to, partials, (cut.k, cut.v), strict=True):
            launch(dot_backward.merge, job.chunks, rows, job.work, grad, partial)
    return to
