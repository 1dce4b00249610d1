"""The Triton backend: the functions of :mod:`gatkernels.backends.protocol` for tensors on a GPU.

Nothing here waits for the device or copies from it: grids follow from the shapes alone, so that a
CUDA graph can capture a call (after a first one, which compiles).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels.backends.fit import fit, fit_grads, fit_rows, grad_of_edges
from gatkernels.backends.triton import node_scores as nodes
from gatkernels.backends.triton import rowwise, separable, tiling
from gatkernels.backends.triton import rowwise_backward as rowwise_back
from gatkernels.backends.triton import separable_backward as separable_back
from gatkernels.backends.triton.common import Rows
from gatkernels.backends.triton.dots import dot_alpha, dot_destinations, dot_forward, dot_sources
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
from gatkernels.backends.triton.scores import SCORERS
from gatkernels.backends.triton.tiling import Tile, tile
from gatkernels.ops.call import (
    Edges,
    GatCall,
    GatDestinationGrads,
    GatInputs,
    GatSaved,
    GatSourceGrads,
    OutGrads,
    RowwiseCall,
    RowwiseDestinationGrads,
    RowwiseInputs,
    RowwiseSaved,
)

__all__ = [
    "dot_alpha",
    "dot_destinations",
    "dot_forward",
    "dot_sources",
    "gat_alpha",
    "gat_destinations",
    "gat_forward",
    "gat_sources",
    "node_scores",
    "rowwise_alpha",
    "rowwise_destinations",
    "rowwise_forward",
    "rowwise_sources",
]


def _gat_scores(inputs: GatInputs) -> separable.Scores:
    src, dst = inputs.score_src, inputs.score_dst
    assert src is not None
    assert dst is not None
    return separable.Scores(src, dst, inputs.edge_score, src.stride(0), dst.stride(0))


def node_scores(call: GatCall) -> tuple[Tensor, Tensor | None]:
    x, _, _, _, att_src, att_dst = fit(call.inputs)
    assert att_src is not None
    rows, heads, channels = x.shape
    score_src = att_src.new_empty(rows, heads)
    score_dst = None if att_dst is None else att_src.new_empty(rows, heads)
    unit = unit_of(x)
    cut = tile(heads, channels, score_src.dtype, unit)
    with guard(x):
        to = nodes.Vectors(att_src, att_dst, score_src, score_dst)
        launch(nodes.scores, -(-rows // cut.tiny.rows), cut, rows, matrix(x, unit), to)
    return score_src, score_dst


def _node_score_gradients(inputs: GatInputs, grad_dst: Tensor, grads: GatSourceGrads) -> None:
    x, (grad_x, grad_src, _, grad_att) = inputs.x, grads
    rows, heads, channels = x.shape
    unit = unit_of(x, grad_x)
    cut = tile(heads, channels, grad_att.dtype, unit, tiles=2)
    programs = min(tiling.PERSISTENT, -(-rows // cut.tiny.rows))
    parts = grad_att.new_empty(programs, *grad_att.shape)
    x_rows, grad_rows = matrix(x, unit), matrix(grad_x, unit)
    both = None if inputs.att_dst is None else grad_dst
    of = nodes.Vectors(inputs.att_src, inputs.att_dst, grad_src, both)
    launch(nodes.gradients, programs, cut, rows, x_rows, grad_rows, of, parts)
    torch.sum(parts, 0, out=grad_att)


def gat_forward(
    call: GatCall, training: bool, statistics: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    job, inputs = Job(call.csr, call.scoring), fit(call.inputs)
    x, given = inputs.x, _gat_scores(inputs)
    heads, channels = x.shape[1:]
    like = given.src  # of the dtype of sums
    out = x.new_empty(job.rows, heads, channels)
    out_pos = like.new_empty(job.rows, heads, channels) if training else None
    stats = like.new_empty(job.rows, 3, heads) if statistics else None
    unit = unit_of(x)
    cut = tile(heads, channels, like.dtype, unit)
    partial = partial_of(like, job, (heads, channels), 3, training)
    to = separable.Forward(out, stats, out_pos)
    with guard(x):
        args = (matrix(x, unit), given, to, partial, *options(call.scoring))
        launch(separable.forward, job.programs(cut), cut, *job.args(), *args)
        launch(separable.merge, job.chunks, cut, job.work, to, partial)
    return out, out_pos, stats


def gat_alpha(call: GatCall, stats: Tensor) -> Tensor:
    job, heads = Job(call.csr, call.scoring), stats.shape[2]
    alpha = stats.new_zeros(call.csr.col.shape[0], heads)
    cut = tile(heads, 1, stats.dtype)
    with guard(stats):
        args = (_gat_scores(fit(call.inputs)), stats, alpha, *options(call.scoring))
        launch(separable.alpha, job.programs(cut), cut, *job.args(), *args)
    return alpha


def gat_destinations(call: GatCall, saved: GatSaved, grads: OutGrads) -> GatDestinationGrads:
    job, inputs = Job(call.csr, call.scoring), fit(call.inputs)
    given, stats = _gat_scores(inputs), saved.stats
    grad, grad_alpha = fit_grads(grads)
    heads, channels = inputs.x.shape[1:]
    grad_dst = stats.new_empty(given.dst.shape)
    fields = stats.new_empty(job.rows, 4 * heads)
    unit = unit_of(grad)
    cut = tile(heads, channels, stats.dtype, unit, tiles=1)
    alpha = None if grad_alpha is None else saved.alpha
    left = separable_back.Saved(saved.out, saved.out_pos, stats, alpha, grad_alpha)
    args = (matrix(grad, unit), given, left, fields, grad_dst, grad_dst.stride(0))
    with guard(grad):
        slope = call.scoring.negative_slope
        run_prologue(separable_back.prologue, job, cut, grad_alpha is not None, *args, slope)
    return GatDestinationGrads(grad_dst, fields)


def gat_sources(
    call: GatCall, csc: Edges, found: GatDestinationGrads, grads: OutGrads, of_edges: bool
) -> GatSourceGrads:
    columns, inputs = Job(csc, call.scoring), fit(call.inputs)
    x, given, edge = inputs.x, _gat_scores(inputs), inputs.edge_score
    grad, grad_alpha = fit_grads(grads)
    heads, channels = x.shape[1:]
    like = given.src  # of the dtype of sums
    vectors = (inputs.att_src is not None) + (inputs.att_dst is not None)
    results = GatSourceGrads(
        x.new_empty(x.shape),
        like.new_empty(given.src.shape),
        grad_of_edges(edge, of_edges),
        like.new_empty(vectors, heads, channels),
    )
    grad_x, grad_src, grad_edge, _ = results
    unit = unit_of(x, grad, grad_x)
    cut = tile(heads, channels, like.dtype, unit, tiles=1 if edge is None else 2)
    partial = partial_of(like, columns, (heads, channels), 1, edge is None)
    to = separable_back.Grads(
        grad_x, grad_src, grad_edge, matrix(grad_x, unit).stride, grad_src.stride(0)
    )
    seed, slope, *dropout = options(call.scoring)
    x_rows, grad_rows = matrix(x, unit), matrix(grad, unit)
    with guard(x):
        args: tuple[Any, ...] = (x_rows, grad_rows, given, found.fields, grad_alpha, to, partial)
        args = (*args, seed, slope, *dropout)
        launch(separable_back.backward, columns.programs(cut), cut, *columns.args(), *args)
        cut = tile(heads, channels, like.dtype, unit, tiles=2)
        launch(separable_back.merge, columns.chunks, cut, columns.work, x_rows, to, partial, slope)
        if inputs.att_src is not None:
            _node_score_gradients(inputs, found.dst, results)
    return results


def _row_scores(scorer: str, inputs: RowwiseInputs, unit: int) -> rowwise.Scores:
    _, x_dst, att, edge = inputs
    return rowwise.Scores(SCORERS[scorer], x_dst, att, edge, x_dst.stride(0) // unit)


def rowwise_forward(call: RowwiseCall, statistics: bool) -> tuple[Tensor, Tensor | None]:
    job, inputs = Job(call.csr, call.scoring), fit_rows(call.inputs)
    x, x_dst, att, edge = inputs
    heads, channels = x.shape[1:]
    out = x.new_empty(job.rows, heads, channels)
    stats = att.new_empty(job.rows, 3, heads) if statistics else None
    unit = unit_of(x, x_dst)
    cut = tile(heads, channels, att.dtype, unit, tiles=1 if edge is None else 2)
    partial = partial_of(att, job, (heads, channels), 3, False)
    to, given = separable.Forward(out, stats, None), _row_scores(call.scorer, inputs, unit)
    with guard(x):
        args = (matrix(x, unit), given, to, partial, *options(call.scoring))
        launch(rowwise.forward, job.programs(cut), cut, *job.args(), *args)
        launch(separable.merge, job.chunks, cut, job.work, to, partial)
    return out, stats


def rowwise_alpha(call: RowwiseCall, stats: Tensor) -> Tensor:
    job, inputs = Job(call.csr, call.scoring), fit_rows(call.inputs)
    x, x_dst, _, edge = inputs
    heads, channels = x.shape[1:]
    alpha = stats.new_zeros(call.csr.col.shape[0], heads)
    unit = unit_of(x, x_dst)
    cut = tile(heads, channels, stats.dtype, unit, tiles=1 if edge is None else 2)
    with guard(x):
        given = _row_scores(call.scorer, inputs, unit)
        args = (matrix(x, unit), given, stats, alpha, *options(call.scoring))
        launch(rowwise.alpha, job.programs(cut), cut, *job.args(), *args)
    return alpha


class _BothSides(NamedTuple):
    """What both sides of a row-wise backward are given, as kernels take it."""

    job: Job
    cut: Tile
    x: Rows
    given: rowwise_back.Given
    scores: rowwise.Scores
    dropout: tuple[Any, ...]


def _both_sides(call: RowwiseCall, edges: Edges, fields: Tensor, grads: OutGrads) -> _BothSides:
    inputs, (grad, grad_alpha) = fit_rows(call.inputs), fit_grads(grads)
    x, x_dst, att, edge = inputs
    unit = unit_of(x, x_dst, grad)
    given = rowwise_back.Given(grad, fields, grad_alpha, grad.stride(0) // unit)
    heads, channels = x.shape[1:]
    cut = tile(heads, channels, att.dtype, unit, tiles=2 if edge is None else 4)
    scores = _row_scores(call.scorer, inputs, unit)
    return _BothSides(
        Job(edges, call.scoring), cut, matrix(x, unit), given, scores, options(call.scoring)
    )


def rowwise_destinations(
    call: RowwiseCall, saved: RowwiseSaved, grads: OutGrads, of_edges: bool
) -> RowwiseDestinationGrads:
    (x, x_dst, att, edge), (out, stats, alpha) = call.inputs, saved
    heads, channels = x.shape[1:]
    results = RowwiseDestinationGrads(
        x.new_empty(x_dst.shape),
        att.new_empty(att.shape),
        grad_of_edges(edge, of_edges),
        stats.new_empty(x_dst.shape[0], 3 * heads),
    )
    grad_dst, grad_att, grad_edge, fields = results
    rows, cut, x_rows, given, from_scores, dropout = _both_sides(call, call.csr, fields, grads)
    packs, grad_alpha = rows.packs(cut), given.grad_alpha
    programs = min(tiling.PERSISTENT, rows.singles + packs)
    att_parts = stats.new_empty(programs, heads, channels)
    by_row = partial_of(stats, rows, (heads, channels), 0, False)
    grad_rows = Rows(given.grad, given.grad_stride)
    with guard(x):
        left = separable_back.Saved(
            out, None, stats, None if grad_alpha is None else alpha, grad_alpha
        )
        walk = grad_alpha is not None
        run_prologue(rowwise_back.prologue, rows, cut, walk, grad_rows, left, fields)
        args: tuple[Any, ...] = (x_rows, given, from_scores, grad_dst, grad_edge)
        args = (*rows.args(), packs, *args, att_parts, by_row, *dropout)
        launch(rowwise_back.by_destination, programs, cut, *args)
        args = (rows.work, grad_dst, from_scores, by_row)
        launch(rowwise_back.merge, rows.chunks, cut, *args)
        torch.sum(att_parts, 0, out=grad_att)
    return results


def rowwise_sources(call: RowwiseCall, csc: Edges, fields: Tensor, grads: OutGrads) -> Tensor:
    x, _, att, _ = call.inputs
    columns, cut, x_rows, given, from_scores, dropout = _both_sides(call, csc, fields, grads)
    grad_x = x.new_empty(x.shape)
    heads, channels = x.shape[1:]
    by_column = partial_of(att, columns, (heads, channels), 0, True)
    with guard(x):
        args = (*columns.args(), x_rows, given, from_scores, grad_x, by_column, *dropout)
        launch(rowwise_back.by_source, columns.programs(cut), cut, *args)
        args = (columns.work, grad_x, from_scores, by_column)
        launch(rowwise_back.merge, columns.chunks, cut, *args)
    return grad_x
