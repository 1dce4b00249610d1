"""Separable scores, forward: a pass for each row's maximum, and one for the sums.

``l_e = leaky(score_src[j] + score_dst[i] + edge_score[e])`` is GAT's, and the family is closed.
The first pass reads scalars alone, which the second finds in the cache, so that nothing is rescaled
per edge. It takes the maximum of the logits, not of score_src: the loads are the same, and it is
right for every slope.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gatkernels.backends.triton.common import (
    LOWEST,
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


class Scores(NamedTuple):
    """Where the scores of an edge come from."""

    src: Any  # [Ns, H]
    dst: Any  # [Nd, H]
    edge: Any  # [E, H] or None
    src_stride: int
    dst_stride: int


class Forward(NamedTuple):
    """Results of a forward; the last two are None where they are not wanted."""

    out: Any  # [Nd, H, C]
    stats: Any  # [Nd, 3, H]
    out_pos: Any  # [Nd, H, C]


@triton.jit
def score(work, scores, place, there, score_dst, head, tile: tl.constexpr):
    """Scores ``[R, D, BH]`` of edges into the rows of ``score_dst [R, BH]``."""
    src = ids(work.col, place, there)
    s = load_heads(scores.src, scores.src_stride, src, there, head, tile) + score_dst[:, None, :]
    if scores.edge is not None:
        s += load_heads(scores.edge, tile.H, ids(work.eid, place, there), there, head, tile)
    return s


@triton.jit
def finish(to, row, some, top, total, total_pos, acc, acc_pos, head, tile: tl.constexpr):
    """Results of rows from their maxima and sums; zeros where there are no edges."""
    inverse = tl.where(some[:, None], 1.0 / total, 0.0)  # [R, BH]
    there = row >= 0
    if to.stats is not None:
        H: tl.constexpr = tile.H
        top = tl.where(some[:, None], top, 0.0)
        store_heads(to.stats, 3 * H, row, top, there, head, tile)
        store_heads(to.stats + H, 3 * H, row, inverse, there, head, tile)
        store_heads(to.stats + 2 * H, 3 * H, row, total_pos * inverse, there, head, tile)
    at = row * (tile.H * tile.C)
    store_rows(to.out, at, acc * inverse[:, :, None], there, head, tile)
    if to.out_pos is not None:
        store_rows(to.out_pos, at, acc_pos * inverse[:, :, None], there, head, tile)


@triton.jit
def store_forward(to, partial, part, top, total, total_pos, acc, acc_pos, head, tile: tl.constexpr):
    """Results of whole rows, or the sums of a hub's chunk."""
    if part.of_hub:
        store_partial(partial, part.number, top, total, total_pos, acc, acc_pos, head, tile)
    else:
        some = part.end > part.begin
        finish(to, part.row, some, top, total, total_pos, acc, acc_pos, head, tile)


@triton.jit
def row_maximum(work, scores, part, slope, head, tile: tl.constexpr, block: tl.constexpr):
    """``score_dst`` and the largest logit ``[R, BH]`` of each row, by a pass over scalars alone."""
    score_dst = load_heads(scores.dst, scores.dst_stride, part.row, part.row >= 0, head, tile)
    best = tl.full([block.rows, block.scalars, tile.BH], LOWEST, score_dst.dtype)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.scalars):
        place, there = edges(part.begin, part.end, step, block.scalars)
        logit = leaky(score(work, scores, place, there, score_dst, head, tile), slope)
        best = tl.maximum(best, tl.where(there[:, :, None], logit, LOWEST))
    return score_dst, tl.max(best, axis=1)


@triton.jit
def forward_rows(
    work, part, x, scores, to, partial, slope, drop, head, tile: tl.constexpr, block: tl.constexpr
):
    """A part's maxima and sums ``[R, BH]``, and weighted sums of features ``[R, BH, BC]``."""
    training: tl.constexpr = to.out_pos is not None
    score_dst, top = row_maximum(work, scores, part, slope, head, tile, block)
    dtype: tl.constexpr = score_dst.dtype
    total = tl.zeros([block.rows, block.edges, tile.BH], dtype)
    total_pos = tl.zeros([block.rows, block.edges, tile.BH], dtype)
    acc = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    acc_pos = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        # gather D rows of features, and their scores
        place, there = edges(part.begin, part.end, step, block.edges)
        src = ids(work.col, place, there)
        feature = load_rows(x.data, src * x.stride * tile.UNIT, there, head, tile).to(dtype)
        s = score(work, scores, place, there, score_dst, head, tile)
        # the softmax's sums, before dropout
        weight = tl.where(there[:, :, None], tl.exp(leaky(s, slope) - top[:, None, :]), 0.0)
        total += weight
        if training:
            total_pos += tl.where(s > 0, weight, 0.0)
        # the features' sums, after it
        weight = dropped(weight, drop, work, place, there, head, tile)
        acc = fold(acc, weight[:, :, :, None] * feature)
        if training:
            acc_pos = fold(acc_pos, tl.where(s > 0, weight, 0.0)[:, :, :, None] * feature)
    total, total_pos = tl.sum(total, axis=1), tl.sum(total_pos, axis=1)
    acc, acc_pos = tl.sum(acc, axis=1), tl.sum(acc_pos, axis=1)
    store_forward(to, partial, part, top, total, total_pos, acc, acc_pos, head, tile)


@triton.jit(do_not_specialize=SIZES)
def forward(
    work,
    rows,
    singles,
    chunks,
    x,
    scores,
    to,
    partial,
    seed,
    slope: tl.float64,
    scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns a part of CSR, and writes its rows of ``out``."""
    dtype: tl.constexpr = scores.dst.dtype.element_ty
    head, slope, scale = settings(slope, scale, dtype, tile)
    drop = (seed, scale, threshold)
    each_part(
        forward_rows,
        work,
        rows,
        singles,
        chunks,
        (x, scores, to, partial, slope, drop, head),
        tile,
    )


@triton.jit
def merge(work, to, partial, tile: tl.constexpr):
    """The program of a hub's first chunk owns its row; for all forwards."""
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    row, some, top, total, total_pos, acc, acc_pos = merge_chunks(work, partial, True, head, tile)
    finish(to, row, some, top, total, total_pos, acc, acc_pos, head, tile)


@triton.jit
def alpha_rows(
    work, part, scores, stats, to, slope, drop, head, tile: tl.constexpr, block: tl.constexpr
):
    """The weights ``[R, D, BH]`` of a part's edges, each to its place in the user's order."""
    row, here = part.row, part.row >= 0
    score_dst = load_heads(scores.dst, scores.dst_stride, row, here, head, tile)
    top = load_heads(stats, 3 * tile.H, row, here, head, tile)
    inverse = load_heads(stats + tile.H, 3 * tile.H, row, here, head, tile)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.scalars):
        place, there = edges(part.begin, part.end, step, block.scalars)
        s = score(work, scores, place, there, score_dst, head, tile)
        weight = tl.exp(leaky(s, slope) - top[:, None, :]) * inverse[:, None, :]
        weight = dropped(weight, drop, work, place, there, head, tile)
        store_heads(to, tile.H, ids(work.eid, place, there), weight, there, head, tile)


@triton.jit(do_not_specialize=SIZES)
def alpha(
    work,
    rows,
    singles,
    chunks,
    scores,
    stats,
    to,
    seed,
    slope: tl.float64,
    scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns a part of CSR, and writes ``[E, H]`` of its edges from the statistics."""
    dtype: tl.constexpr = stats.dtype.element_ty
    head, slope, scale = settings(slope, scale, dtype, tile)
    drop = (seed, scale, threshold)
    each_part(
        alpha_rows,
        work,
        rows,
        singles,
        chunks,
        (scores, stats, to, slope, drop, head),
        tile,
    )
