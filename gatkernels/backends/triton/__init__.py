"""The Triton backend: the functions of :mod:`gatkernels.backends.native` for tensors on a GPU.

Nothing here waits for the device or copies from it: grids follow from the shapes alone, so that a
CUDA graph can capture a call (after a first one, which compiles).
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
from torch import Tensor

from gatkernels.backends import schedule
from gatkernels.backends.native import Atts, Csr, Gatv2Scores, Scores, _rows
from gatkernels.backends.triton import node_scores as nodes
from gatkernels.backends.triton import rowwise, rowwise_backward, separable, tiling
from gatkernels.backends.triton import separable_backward as backward
from gatkernels.backends.triton.common import Partial, Rows, Work
from gatkernels.backends.triton.scores import SCORERS
from gatkernels.backends.triton.tiling import Tile, tile


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

    def __init__(self, csr: Csr) -> None:
        rowptr, col, eid, parts = csr
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


def _options(scores: Scores | Gatv2Scores) -> tuple[Tensor | None, float, float, int]:
    """Seed, slope, and what dropout does: times ``scale`` where a word reaches ``threshold``."""
    *_, slope, p, seed = scores
    scale = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    return seed if p > 0.0 else None, slope, scale, math.ceil(p * 2.0**32)


def _gat_scores(scores: Scores) -> separable.Scores:
    src, dst = _rows(scores[0]), _rows(scores[1])
    edge = None if scores[2] is None else scores[2].contiguous()
    return separable.Scores(src, dst, edge, src.stride(0), dst.stride(0))


def _vectors(atts: Atts, scores: tuple[Tensor, ...]) -> nodes.Vectors:
    att_src, att_dst = (None if att is None else att.contiguous() for att in atts)
    return nodes.Vectors(att_src, att_dst, scores[0], None if att_dst is None else scores[1])


def node_scores(csr: Csr, x: Tensor, atts: Atts) -> Tensor:
    x, att_src = _rows(x), atts[0]
    assert att_src is not None
    rows, heads, channels = x.shape
    scores = att_src.new_empty(1 if atts[1] is None else 2, rows, heads)
    unit = _unit(x)
    cut = tile(heads, channels, scores.dtype, unit)
    with _guard(x):
        to = _vectors(atts, tuple(scores))
        launch(nodes.scores, -(-rows // cut.tiny.rows), cut, rows, _matrix(x, unit), to)
    return scores


def _node_score_gradients(
    x: Tensor, atts: Atts, scores: tuple[Tensor, Tensor], grad_x: Tensor, grad_att: Tensor
) -> None:
    rows, heads, channels = x.shape
    unit = _unit(x, grad_x)
    cut = tile(heads, channels, grad_att.dtype, unit, tiles=2)
    programs = min(tiling.PERSISTENT, -(-rows // cut.tiny.rows))
    parts = grad_att.new_empty(programs, *grad_att.shape)
    x_rows, grad_rows = _matrix(x, unit), _matrix(grad_x, unit)
    args = (rows, x_rows, grad_rows, _vectors(atts, scores), parts)
    launch(nodes.gradients, programs, cut, *args)
    torch.sum(parts, 0, out=grad_att)


def gat_forward(
    csr: Csr, x: Tensor, scores: Scores, training: bool, statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``out``, ``out_pos`` and ``stats``; the last two are empty unless asked for.

    ``training``: a backward will follow, which needs both.
    """
    job, x, like = _Job(csr), _rows(x), scores[0]
    heads, channels = x.shape[1:]
    out = x.new_empty(job.rows, heads, channels)
    out_pos = like.new_empty(job.rows, heads, channels) if training else None
    stats = like.new_empty(job.rows, 3, heads) if statistics else None
    unit = _unit(x)
    cut = tile(heads, channels, like.dtype, unit)
    partial = _partial(like, job, (heads, channels), 3, training)
    to = separable.Forward(out, stats, out_pos)
    with _guard(x):
        args = (_matrix(x, unit), _gat_scores(scores), to, partial, *_options(scores))
        launch(separable.forward, job.programs(cut), cut, *job.args(), *args)
        launch(separable.merge, job.chunks, cut, job.work, to, partial)
    if out_pos is None:
        out_pos = like.new_empty(0)
    return out, out_pos, like.new_empty(0) if stats is None else stats


def gat_alpha(csr: Csr, scores: Scores, stats: Tensor) -> Tensor:
    job, heads = _Job(csr), stats.shape[2]
    alpha = stats.new_zeros(csr[1].shape[0], heads)
    cut = tile(heads, 1, stats.dtype)
    with _guard(stats):
        args = (_gat_scores(scores), stats, alpha, *_options(scores))
        launch(separable.alpha, job.programs(cut), cut, *job.args(), *args)
    return alpha


def gat_backward(
    csr: Csr,
    csc: Csr,
    x: Tensor,
    scores: Scores,
    atts: Atts,
    saved: tuple[Tensor, Tensor, Tensor, Tensor | None],
    grads: tuple[Tensor, Tensor | None],
    results: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Writes ``results``: the gradients of x, the scores' three parts and the attention vectors.

    ``saved``: out, out_pos, stats and, with a gradient of alpha, alpha; ``grads``: of out, alpha.
    """
    rows, columns, (x, grad) = _Job(csr), _Job(csc), map(_rows, (x, grads[0]))
    heads, channels = x.shape[1:]
    stats = saved[2]
    grad_alpha = None if grads[1] is None else grads[1].contiguous()
    grad_x, grad_src, grad_dst, grad_edge, grad_att = results
    unit = _unit(x, grad, grad_x)
    cut = tile(heads, channels, stats.dtype, unit, tiles=1 if scores[2] is None else 2)
    fields = stats.new_empty(rows.rows, 4, heads)
    partial = _partial(stats, columns, (heads, channels), 1, scores[2] is None)
    given = _gat_scores(scores)
    alpha = None if grad_alpha is None else saved[3]
    edge = None if scores[2] is None else grad_edge
    to = backward.Grads(grad_x, grad_src, edge, _matrix(grad_x, unit).stride, grad_src.stride(0))
    seed, slope, *dropout = _options(scores)
    x_rows, grad_rows = _matrix(x, unit), _matrix(grad, unit)
    with _guard(x):
        left = backward.Saved(*saved[:3], alpha, grad_alpha)
        args: tuple[Any, ...] = (grad_rows, given, left, fields)
        args = (*args, grad_dst, grad_dst.stride(0), slope)
        _prologue(backward.prologue, rows, cut, grad_alpha is not None, *args)
        args = (x_rows, grad_rows, given, fields, grad_alpha, to, partial, seed, slope, *dropout)
        launch(backward.backward, columns.programs(cut), cut, *columns.args(), *args)
        cut = tile(heads, channels, stats.dtype, unit, tiles=2)
        launch(backward.merge, columns.chunks, cut, columns.work, x_rows, to, partial, slope)
        if atts[0] is not None:
            _node_score_gradients(x, atts, (grad_src, grad_dst), grad_x, grad_att)


def _gatv2_scores(scores: Gatv2Scores, unit: int) -> rowwise.Scores:
    x_dst, att, edge = scores[:3]
    edge = None if edge is None else edge.contiguous()
    return rowwise.Scores(SCORERS["gatv2"], x_dst, att.contiguous(), edge, x_dst.stride(0) // unit)


def gatv2_forward(
    csr: Csr, x: Tensor, scores: Gatv2Scores, statistics: bool
) -> tuple[Tensor, Tensor]:
    """``out``, and ``stats``, which are empty unless asked for."""
    job, x, x_dst, like = _Job(csr), _rows(x), _rows(scores[0]), scores[1]
    heads, channels = x.shape[1:]
    out = x.new_empty(job.rows, heads, channels)
    stats = like.new_empty(job.rows, 3, heads) if statistics else None
    unit = _unit(x, x_dst)
    cut = tile(heads, channels, like.dtype, unit, tiles=1 if scores[2] is None else 2)
    partial = _partial(like, job, (heads, channels), 3, False)
    to, given = separable.Forward(out, stats, None), _gatv2_scores((x_dst, *scores[1:]), unit)
    with _guard(x):
        args = (_matrix(x, unit), given, to, partial, *_options(scores))
        launch(rowwise.forward, job.programs(cut), cut, *job.args(), *args)
        launch(separable.merge, job.chunks, cut, job.work, to, partial)
    return out, like.new_empty(0) if stats is None else stats


def gatv2_alpha(csr: Csr, x: Tensor, scores: Gatv2Scores, stats: Tensor) -> Tensor:
    job, x, x_dst = _Job(csr), _rows(x), _rows(scores[0])
    heads, channels = x.shape[1:]
    alpha = stats.new_zeros(csr[1].shape[0], heads)
    unit = _unit(x, x_dst)
    cut = tile(heads, channels, stats.dtype, unit, tiles=1 if scores[2] is None else 2)
    given = _gatv2_scores((x_dst, *scores[1:]), unit)
    with _guard(x):
        args = (_matrix(x, unit), given, stats, alpha, *_options(scores))
        launch(rowwise.alpha, job.programs(cut), cut, *job.args(), *args)
    return alpha


def gatv2_backward(
    csr: Csr,
    csc: Csr,
    x: Tensor,
    scores: Gatv2Scores,
    saved: tuple[Tensor, Tensor, Tensor | None],
    grads: tuple[Tensor, Tensor | None],
    results: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Writes ``results``: the gradients of x_src, x_dst, att and edge.

    ``saved``: out, stats and, with a gradient of alpha, alpha; ``grads``: of out, alpha.
    """
    rows, columns = _Job(csr), _Job(csc)
    x, x_dst, grad = map(_rows, (x, scores[0], grads[0]))
    heads, channels = x.shape[1:]
    out, stats, alpha = saved
    grad_alpha = None if grads[1] is None else grads[1].contiguous()
    grad_src, grad_dst, grad_att, grad_edge = results
    unit = _unit(x, x_dst, grad)
    cut = tile(heads, channels, stats.dtype, unit, tiles=2 if scores[2] is None else 4)
    fields = stats.new_empty(rows.rows, 3, heads)
    x_rows, grad_rows = _matrix(x, unit), _matrix(grad, unit)
    given = rowwise_backward.Given(grad, fields, grad_alpha, grad_rows.stride)
    from_scores = _gatv2_scores((x_dst, *scores[1:]), unit)
    edge = None if scores[2] is None else grad_edge
    dropout = _options(scores)
    packs = rows.packs(cut)
    programs = min(tiling.PERSISTENT, rows.singles + packs)
    att_parts = stats.new_empty(programs, heads, channels)
    by_row = _partial(stats, rows, (heads, channels), 0, False)
    by_column = _partial(stats, columns, (heads, channels), 0, True)
    with _guard(x):
        left = backward.Saved(out, None, stats, None if grad_alpha is None else alpha, grad_alpha)
        walk = grad_alpha is not None
        _prologue(rowwise_backward.prologue, rows, cut, walk, grad_rows, left, fields)
        args: tuple[Any, ...] = (x_rows, given, from_scores, grad_dst, edge)
        args = (*rows.args(), packs, *args, att_parts, by_row, *dropout)
        launch(rowwise_backward.by_destination, programs, cut, *args)
        args = (rows.work, grad_dst, from_scores, by_row)
        launch(rowwise_backward.merge, rows.chunks, cut, *args)
        torch.sum(att_parts, 0, out=grad_att)
        args = (*columns.args(), x_rows, given, from_scores, grad_src, by_column, *dropout)
        launch(rowwise_backward.by_source, columns.programs(cut), cut, *args)
        args = (columns.work, grad_src, from_scores, by_column)
        launch(rowwise_backward.merge, columns.chunks, cut, *args)
