"""Separable scores, backward: a prologue over destinations, then one pass over CSC by sources.

Walking the edges out of j, only rows of the output's gradient are gathered; x_j enters once per
row, because sum_e alpha m leaky' <dO_i, x_j> = <sum_e alpha m leaky' dO_i, x_j>. Where each edge's
own gradient is wanted, its dot product is taken instead.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gatkernels.backends.triton.common import (
    SIZES,
    dropped,
    each_part,
    edges,
    fold,
    ids,
    leaky,
    load_heads,
    load_rows,
    merge_chunks,
    settings,
    store_heads,
    store_partial,
    store_rows,
)
from gatkernels.backends.triton.separable import score


class Saved(NamedTuple):
    """What the forward left, and the gradient of ``alpha`` where there is one."""

    out: Any  # [Nd, H, C]
    out_pos: Any  # [Nd, H, C]
    stats: Any  # [Nd, 3, H]
    alpha: Any  # [E, H] after dropout, or None
    grad_alpha: Any  # [E, H] or None


class Grads(NamedTuple):
    """Gradients by source."""

    x: Any  # [Ns, H, C], rows x_stride * UNIT apart
    src: Any  # [Ns, H]
    edge: Any  # [E, H] or None
    x_stride: int
    src_stride: int


@triton.jit
def attention_share(work, saved, scores, row, here, score_dst, head, tile: tl.constexpr):
    """``sum_e alpha_e m_e dalpha_e [R, BH]`` over all edges of rows and, with ``scores``, s > 0."""
    D: tl.constexpr = tile.big.scalars
    begin = tl.load(work.rowptr + row, mask=here, other=0)
    end = tl.load(work.rowptr + row + 1, mask=here, other=0)
    total = tl.zeros([row.shape[0], D, tile.BH], score_dst.dtype)
    total_pos = tl.zeros([row.shape[0], D, tile.BH], score_dst.dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        place, there = edges(begin, end, step, D)
        eid = ids(work.eid, place, there)
        share = load_heads(saved.alpha, tile.H, eid, there, head, tile)
        share *= load_heads(saved.grad_alpha, tile.H, eid, there, head, tile)
        total += share
        if scores is not None:
            s = score(work, scores, place, there, score_dst, head, tile)
            total_pos += tl.where(s > 0, share, 0.0)
    return tl.sum(total, axis=1), tl.sum(total_pos, axis=1)


@triton.jit(do_not_specialize=SIZES)
def prologue(
    work,
    rows,
    grad,
    scores,
    saved,
    fields,
    grad_dst,
    dst_stride,
    slope: tl.float64,
    tile: tl.constexpr,
):
    """A program owns R destinations; it writes their ``grad_dst`` and what their edges need.

    ``fields [Nd, 4, H]``: score_dst, maximum, 1 / sum, delta = <dO, out>; the gradient is
    ``(1 - slope) (<dO, out_pos> - delta share)``.
    """
    # several rows, or one and its edges
    R: tl.constexpr = tile.tiny.rows if saved.grad_alpha is None else 1
    H: tl.constexpr = tile.H
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    there = row < rows
    dtype: tl.constexpr = fields.dtype.element_ty
    at = row * (H * tile.C)
    d_out = load_rows(grad.data, row * grad.stride * tile.UNIT, there, head, tile).to(dtype)
    delta = tl.sum(load_rows(saved.out, at, there, head, tile).to(dtype) * d_out, axis=2)
    delta_pos = tl.sum(load_rows(saved.out_pos, at, there, head, tile) * d_out, axis=2)
    score_dst = load_heads(scores.dst, scores.dst_stride, row, there, head, tile)
    if saved.grad_alpha is not None:
        share, share_pos = attention_share(work, saved, scores, row, there, score_dst, head, tile)
        delta += share
        delta_pos += share_pos
    store_heads(fields, 4 * H, row, score_dst, there, head, tile)
    top = load_heads(saved.stats, 3 * H, row, there, head, tile)
    store_heads(fields + H, 4 * H, row, top, there, head, tile)
    inverse = load_heads(saved.stats + H, 3 * H, row, there, head, tile)
    store_heads(fields + 2 * H, 4 * H, row, inverse, there, head, tile)
    store_heads(fields + 3 * H, 4 * H, row, delta, there, head, tile)
    positive = load_heads(saved.stats + 2 * H, 3 * H, row, there, head, tile)
    slope = tl.full([1, 1], slope, dtype)
    d_dst = (1.0 - slope) * (delta_pos - delta * positive)
    d_dst = tl.where(inverse == 0.0, 0.0, d_dst)  # a row without edges: dO may not be finite
    store_heads(grad_dst, dst_stride, row, d_dst, there, head, tile)


@triton.jit
def finish(to, row, used, total, acc, acc_pos, x, slope, head, tile: tl.constexpr):
    """Gradients of rows; ``used``: whether a row has edges, else its x may not be finite."""
    there = row >= 0
    store_rows(to.x, row * to.x_stride * tile.UNIT, acc, there, head, tile)
    if to.edge is None:
        feature = load_rows(x.data, row * x.stride * tile.UNIT, used, head, tile).to(acc.dtype)
        total += tl.sum((slope * acc + (1.0 - slope) * acc_pos) * feature, axis=2)
    store_heads(to.src, to.src_stride, row, total, there, head, tile)


@triton.jit
def backward_rows(
    work,
    part,
    x,
    grad,
    scores,
    fields,
    grad_alpha,
    to,
    partial,
    slope,
    drop,
    head,
    tile: tl.constexpr,
    block: tl.constexpr,
):
    """Sums over the edges out of each row of a part: of scores' gradients ``[R, BH]``, of alpha m
    dO and of its share from positive scores ``[R, BH, BC]``. ``scores`` are seen from the sources.

    Without edge scores the first sum leaves out <dO, x>, which the last two give.
    """
    H: tl.constexpr = tile.H
    row = part.row
    score_src = load_heads(scores.src, scores.src_stride, row, row >= 0, head, tile)
    dtype: tl.constexpr = score_src.dtype
    if to.edge is not None:
        used = part.end > part.begin
        feature = load_rows(x.data, row * x.stride * tile.UNIT, used, head, tile).to(dtype)
    total = tl.zeros([block.rows, block.edges, tile.BH], dtype)
    acc = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    acc_pos = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        # gather D rows of dO, and the fields of their nodes
        place, there = edges(part.begin, part.end, step, block.edges)
        dst = ids(work.col, place, there)
        d_out = load_rows(grad.data, dst * grad.stride * tile.UNIT, there, head, tile).to(dtype)
        s = load_heads(fields, 4 * H, dst, there, head, tile) + score_src[:, None, :]
        top = load_heads(fields + H, 4 * H, dst, there, head, tile)
        inverse = load_heads(fields + 2 * H, 4 * H, dst, there, head, tile)
        delta = load_heads(fields + 3 * H, 4 * H, dst, there, head, tile)
        # alpha again, from them
        eid = ids(work.eid, place, there)
        if scores.edge is not None:
            s += load_heads(scores.edge, H, eid, there, head, tile)
        alpha = tl.where(there[:, :, None], tl.exp(leaky(s, slope) - top) * inverse, 0.0)
        weight = dropped(alpha, drop, work, place, there, head, tile)
        # the scores' gradients
        gain = tl.zeros([block.rows, block.edges, tile.BH], dtype)
        if grad_alpha is not None:
            gain += load_heads(grad_alpha, H, eid, there, head, tile)
        if to.edge is not None:
            gain += tl.sum(d_out * feature[:, None, :, :], axis=3)
        d_score = tl.where(s > 0, 1.0, slope) * (weight * gain - alpha * delta)
        total += d_score
        # the features'
        acc = fold(acc, weight[:, :, :, None] * d_out)
        if to.edge is not None:
            store_heads(to.edge, H, eid, d_score, there, head, tile)
        else:
            acc_pos = fold(acc_pos, tl.where(s > 0, weight, 0.0)[:, :, :, None] * d_out)
    total, acc, acc_pos = tl.sum(total, axis=1), tl.sum(acc, axis=1), tl.sum(acc_pos, axis=1)
    if part.of_hub:
        store_partial(partial, part.number, None, total, None, acc, acc_pos, head, tile)
    else:
        finish(to, row, part.end > part.begin, total, acc, acc_pos, x, slope, head, tile)


@triton.jit(do_not_specialize=SIZES)
def backward(
    work,
    rows,
    singles,
    chunks,
    x,
    grad,
    scores,
    fields,
    grad_alpha,
    to,
    partial,
    seed,
    slope: tl.float64,
    scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns a part of CSC, and writes its rows of the sources' gradients."""
    dtype: tl.constexpr = fields.dtype.element_ty
    head, slope, scale = settings(slope, scale, dtype, tile)
    drop = (seed, scale, threshold)
    each_part(
        backward_rows,
        work,
        rows,
        singles,
        chunks,
        (x, grad, scores, fields, grad_alpha, to, partial, slope, drop, head),
        tile,
    )


@triton.jit
def merge(work, x, to, partial, slope: tl.float64, tile: tl.constexpr):
    """The program of a hub's first chunk owns its row."""
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    row, used, _, total, _, acc, acc_pos = merge_chunks(work, partial, False, head, tile)
    slope = tl.full([1, 1, 1], slope, acc.dtype)
    finish(to, row, used, total, acc, acc_pos, x, slope, head, tile)
