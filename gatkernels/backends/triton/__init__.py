"""The Triton backend: the functions of :mod:`gatkernels.backends.protocol` for tensors on a GPU.

Nothing here waits for the device or copies from it: grids follow from the shapes alone, so that a
CUDA graph can capture a call (after a first one, which compiles).
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels.backends import schedule
from gatkernels.backends.native import fit, fit_grads, fit_rows, grad_of_edges, rule
from gatkernels.backends.triton import node_scores as nodes
from gatkernels.backends.triton import rowwise, separable, tiling
from gatkernels.backends.triton import rowwise_backward as rowwise_back
from gatkernels.backends.triton import separable_backward as separable_back
from gatkernels.backends.triton.common import Partial, Rows, Work
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
    Scoring,
)


@functools.cache
def constants(cut: Tile) -> dict[str, Any]:
    """``cut`` for a kernel, and how it is compiled."""
    return {"tile": cut, "num_warps": cut.warps, "enable_fp_fusion": True}


def launch(kernel: Any, programs: int, cut: Tile, *args: Any) -> None:
    """Run ``kernel`` on the current device, ``programs`` for each group of heads."""
    if programs > 0:
        kernel[(programs, cut.groups)](*args, **constants(cut))


def _guard(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device; make that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _unit(*matrices: Tensor) -> int:
    """Elements, up to 16 bytes of them, of which every row stride is a multiple."""
    unit = max(16 // matrices[0].element_size(), 1)
    return math.gcd(unit, *(matrix.stride(0) for matrix in matrices))


def _matrix(tensor: Tensor, unit: int) -> Rows:
    return Rows(tensor, tensor.stride(0) // unit)


def _prologue(kernel: Any, job: _Job, cut: Tile, walk: bool, *args: Any) -> None:
    """Several destinations to a program; one, where it walks their edges."""
    rows = 1 if walk else cut.tiny.rows
    launch(kernel, -(-job.rows // rows), cut, *job.args()[:2], *args)


def _partial(like: Tensor, job: _Job, size: tuple[int, int], sums: int, pair: bool) -> Partial:
    """Room for the chunks' ``sums`` of each head, and one or two of each feature."""
    # allocated one by one, they are aligned; else kernels are compiled anew
    rows, rows2 = (like.new_empty(job.chunks, *size) if wanted else None for wanted in (True, pair))
    return Partial(like.new_empty(job.chunks, sums, size[0]) if sums else None, rows, rows2)


class _Job:
    """The work on the rows of a CSR graph, as kernels take it."""

    def __init__(self, edges_by_row: Edges) -> None:
        rowptr, col, eid, parts = edges_by_row
        plan, edges = schedule.read(parts), col.shape[0]
        self.rows, self.chunks = rowptr.shape[0] - 1, plan.chunks
        # a kernel that need not look at chunks gets something of the same type
        chunk_row = col if plan.chunk_row is None else plan.chunk_row
        chunk_end = rowptr if plan.chunk_end is None else plan.chunk_end
        chunk = schedule.chunk_of(edges)
        self.work = Work(rowptr, col, eid, chunk_row, chunk_end, plan.order, plan.bigs, chunk)
        self.packed = plan.order is not None
        bigs = min(self.rows, edges // (schedule.TINY + 1)) if self.packed else self.rows
        self.singles = plan.chunks + bigs

    def packs(self, cut: Tile) -> int:
        return -(-self.rows // cut.tiny.rows) if self.packed else 0

    def programs(self, cut: Tile) -> int:
        return self.singles + self.packs(cut)

    def args(self) -> tuple[Any, ...]:
        return self.work, self.rows, self.singles, self.chunks


def _options(scoring: Scoring) -> tuple[Tensor | None, float, float, int]:
    slope, seed, threshold, scale = rule(scoring)
    return seed, slope, scale, threshold


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
    unit = _unit(x)
    cut = tile(heads, channels, score_src.dtype, unit)
    with _guard(x):
        to = nodes.Vectors(att_src, att_dst, score_src, score_dst)
        launch(nodes.scores, -(-rows // cut.tiny.rows), cut, rows, _matrix(x, unit), to)
    return score_src, score_dst


def _node_score_gradients(inputs: GatInputs, grad_dst: Tensor, grads: GatSourceGrads) -> None:
    x, (grad_x, grad_src, _, grad_att) = inputs.x, grads
    rows, heads, channels = x.shape
    unit = _unit(x, grad_x)
    cut = tile(heads, channels, grad_att.dtype, unit, tiles=2)
    programs = min(tiling.PERSISTENT, -(-rows // cut.tiny.rows))
    parts = grad_att.new_empty(programs, *grad_att.shape)
    x_rows, grad_rows = _matrix(x, unit), _matrix(grad_x, unit)
    both = None if inputs.att_dst is None else grad_dst
    of = nodes.Vectors(inputs.att_src, inputs.att_dst, grad_src, both)
    launch(nodes.gradients, programs, cut, rows, x_rows, grad_rows, of, parts)
    torch.sum(parts, 0, out=grad_att)


def gat_forward(
    call: GatCall, training: bool, statistics: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    job, inputs = _Job(call.csr), fit(call.inputs)
    x, given = inputs.x, _gat_scores(inputs)
    heads, channels = x.shape[1:]
    like = given.src  # of the dtype of sums
    out = x.new_empty(job.rows, heads, channels)
    out_pos = like.new_empty(job.rows, heads, channels) if training else None
    stats = like.new_empty(job.rows, 3, heads) if statistics else None
    unit = _unit(x)
    cut = tile(heads, channels, like.dtype, unit)
    partial = _partial(like, job, (heads, channels), 3, training)
    to = separable.Forward(out, stats, out_pos)
    with _guard(x):
        args = (_matrix(x, unit), given, to, partial, *_options(call.scoring))
        launch(separable.forward, job.programs(cut), cut, *job.args(), *args)
        launch(separable.merge, job.chunks, cut, job.work, to, partial)
    return out, out_pos, stats


def gat_alpha(call: GatCall, stats: Tensor) -> Tensor:
    job, heads = _Job(call.csr), stats.shape[2]
    alpha = stats.new_zeros(call.csr.col.shape[0], heads)
    cut = tile(heads, 1, stats.dtype)
    with _guard(stats):
        args = (_gat_scores(fit(call.inputs)), stats, alpha, *_options(call.scoring))
        launch(separable.alpha, job.programs(cut), cut, *job.args(), *args)
    return alpha


def gat_destinations(call: GatCall, saved: GatSaved, grads: OutGrads) -> GatDestinationGrads:
    job, inputs = _Job(call.csr), fit(call.inputs)
    given, stats = _gat_scores(inputs), saved.stats
    grad, grad_alpha = fit_grads(grads)
    heads, channels = inputs.x.shape[1:]
    grad_dst = stats.new_empty(given.dst.shape)
    fields = stats.new_empty(job.rows, 4 * heads)
    unit = _unit(grad)
    cut = tile(heads, channels, stats.dtype, unit, tiles=1)
    alpha = None if grad_alpha is None else saved.alpha
    left = separable_back.Saved(saved.out, saved.out_pos, stats, alpha, grad_alpha)
    args = (_matrix(grad, unit), given, left, fields, grad_dst, grad_dst.stride(0))
    with _guard(grad):
        slope = call.scoring.negative_slope
        _prologue(separable_back.prologue, job, cut, grad_alpha is not None, *args, slope)
    return GatDestinationGrads(grad_dst, fields)


def gat_sources(
    call: GatCall, csc: Edges, found: GatDestinationGrads, grads: OutGrads
) -> GatSourceGrads:
    columns, inputs = _Job(csc), fit(call.inputs)
    x, given, edge = inputs.x, _gat_scores(inputs), inputs.edge_score
    grad, grad_alpha = fit_grads(grads)
    heads, channels = x.shape[1:]
    like = given.src  # of the dtype of sums
    vectors = (inputs.att_src is not None) + (inputs.att_dst is not None)
    results = GatSourceGrads(
        x.new_empty(x.shape),
        like.new_empty(given.src.shape),
        grad_of_edges(edge),
        like.new_empty(vectors, heads, channels),
    )
    grad_x, grad_src, grad_edge, _ = results
    unit = _unit(x, grad, grad_x)
    cut = tile(heads, channels, like.dtype, unit, tiles=1 if edge is None else 2)
    partial = _partial(like, columns, (heads, channels), 1, edge is None)
    to = separable_back.Grads(
        grad_x, grad_src, grad_edge, _matrix(grad_x, unit).stride, grad_src.stride(0)
    )
    seed, slope, *dropout = _options(call.scoring)
    x_rows, grad_rows = _matrix(x, unit), _matrix(grad, unit)
    with _guard(x):
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
    job, inputs = _Job(call.csr), fit_rows(call.inputs)
    x, x_dst, att, edge = inputs
    heads, channels = x.shape[1:]
    out = x.new_empty(job.rows, heads, channels)
    stats = att.new_empty(job.rows, 3, heads) if statistics else None
    unit = _unit(x, x_dst)
    cut = tile(heads, channels, att.dtype, unit, tiles=1 if edge is None else 2)
    partial = _partial(att, job, (heads, channels), 3, False)
    to, given = separable.Forward(out, stats, None), _row_scores(call.scorer, inputs, unit)
    with _guard(x):
        args = (_matrix(x, unit), given, to, partial, *_options(call.scoring))
        launch(rowwise.forward, job.programs(cut), cut, *job.args(), *args)
        launch(separable.merge, job.chunks, cut, job.work, to, partial)
    return out, stats


def rowwise_alpha(call: RowwiseCall, stats: Tensor) -> Tensor:
    job, inputs = _Job(call.csr), fit_rows(call.inputs)
    x, x_dst, _, edge = inputs
    heads, channels = x.shape[1:]
    alpha = stats.new_zeros(call.csr.col.shape[0], heads)
    unit = _unit(x, x_dst)
    cut = tile(heads, channels, stats.dtype, unit, tiles=1 if edge is None else 2)
    with _guard(x):
        given = _row_scores(call.scorer, inputs, unit)
        args = (_matrix(x, unit), given, stats, alpha, *_options(call.scoring))
        launch(rowwise.alpha, job.programs(cut), cut, *job.args(), *args)
    return alpha


class _BothSides(NamedTuple):
    """What both sides of a row-wise backward are given, as kernels take it."""

    job: _Job
    cut: Tile
    x: Rows
    given: rowwise_back.Given
    scores: rowwise.Scores
    dropout: tuple[Any, ...]


def _both_sides(call: RowwiseCall, edges: Edges, fields: Tensor, grads: OutGrads) -> _BothSides:
    inputs, (grad, grad_alpha) = fit_rows(call.inputs), fit_grads(grads)
    x, x_dst, att, edge = inputs
    unit = _unit(x, x_dst, grad)
    given = rowwise_back.Given(grad, fields, grad_alpha, grad.stride(0) // unit)
    heads, channels = x.shape[1:]
    cut = tile(heads, channels, att.dtype, unit, tiles=2 if edge is None else 4)
    scores = _row_scores(call.scorer, inputs, unit)
    return _BothSides(_Job(edges), cut, _matrix(x, unit), given, scores, _options(call.scoring))


def rowwise_destinations(
    call: RowwiseCall, saved: RowwiseSaved, grads: OutGrads
) -> RowwiseDestinationGrads:
    (x, x_dst, att, edge), (out, stats, alpha) = call.inputs, saved
    heads, channels = x.shape[1:]
    results = RowwiseDestinationGrads(
        x.new_empty(x_dst.shape),
        att.new_empty(att.shape),
        grad_of_edges(edge),
        stats.new_empty(x_dst.shape[0], 3 * heads),
    )
    grad_dst, grad_att, grad_edge, fields = results
    rows, cut, x_rows, given, from_scores, dropout = _both_sides(call, call.csr, fields, grads)
    packs, grad_alpha = rows.packs(cut), given.grad_alpha
    programs = min(tiling.PERSISTENT, rows.singles + packs)
    att_parts = stats.new_empty(programs, heads, channels)
    by_row = _partial(stats, rows, (heads, channels), 0, False)
    grad_rows = Rows(given.grad, given.grad_stride)
    with _guard(x):
        left = separable_back.Saved(
            out, None, stats, None if grad_alpha is None else alpha, grad_alpha
        )
        walk = grad_alpha is not None
        _prologue(rowwise_back.prologue, rows, cut, walk, grad_rows, left, fields)
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
    by_column = _partial(att, columns, (heads, channels), 0, True)
    with _guard(x):
        args = (*columns.args(), x_rows, given, from_scores, grad_x, by_column, *dropout)
        launch(rowwise_back.by_source, columns.programs(cut), cut, *args)
        args = (columns.work, grad_x, from_scores, by_column)
        launch(rowwise_back.merge, columns.chunks, cut, *args)
    return grad_x
