"""Row-wise scores, forward: a gathered row gives the score and, from the same registers, the sum.

How an edge scores is in scores.py. The running maximum is raised, and the sums rescaled, once per
step of D edges.
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
    load_heads,
    load_rows,
    settings,
    store_heads,
)
from gatkernels.backends.triton.separable import store_forward


class Scores(NamedTuple):
    """Where the scores of an edge come from, besides x of its source."""

    scorer: Any
    dst: Any  # [Nd, H, C], rows dst_stride * UNIT apart
    att: Any  # [H, C]
    edge: Any  # [E, H, C] or None
    dst_stride: int


@triton.jit
def load_att(scores, head, tile: tl.constexpr):
    """``att [1, 1, BH, BC]``."""
    zero = tl.zeros([1, 1], tl.int64)
    return load_rows(scores.att, zero, zero == 0, head, tile)


@triton.jit
def logits(work, scores, att, x_src, x_dst, place, there, slope, head, tile: tl.constexpr):
    """``x_j``, x_src with the edges' features, ``[R, D, BH, BC]``, and logits ``[R, D, BH]``."""
    x_j = x_src
    if scores.edge is not None:
        at = ids(work.eid, place, there) * (tile.H * tile.C)
        x_j += load_rows(scores.edge, at, there, head, tile).to(x_src.dtype)
    return x_j, tl.sum(att * scores.scorer.value(x_j, x_dst, slope), axis=3)


@triton.jit
def forward_rows(
    work, part, x, scores, to, partial, slope, drop, head, tile: tl.constexpr, block: tl.constexpr
):
    """A part's maxima and sums ``[R, BH]``, and weighted sums of features ``[R, BH, BC]``."""
    att = load_att(scores, head, tile)
    dtype: tl.constexpr = att.dtype
    row, here = part.row, part.row >= 0
    x_dst = load_rows(scores.dst, row * scores.dst_stride * tile.UNIT, here, head, tile)
    x_dst = x_dst.to(dtype)[:, None, :, :]
    top = tl.full([block.rows, tile.BH], LOWEST, dtype)
    total = tl.zeros([block.rows, block.edges, tile.BH], dtype)
    acc = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        # gather D rows and score them
        place, there = edges(part.begin, part.end, step, block.edges)
        at = ids(work.col, place, there) * x.stride * tile.UNIT
        x_src = load_rows(x.data, at, there, head, tile).to(dtype)
        _, logit = logits(work, scores, att, x_src, x_dst, place, there, slope, head, tile)
        logit = tl.where(there[:, :, None], logit, float("-inf"))
        # raise the maximum, and bring what was summed to it
        higher = tl.maximum(top, tl.max(logit, axis=1))
        factor = tl.exp(top - higher)[:, None, :]
        weight = tl.exp(logit - higher[:, None, :])
        total = total * factor + weight
        weight = dropped(weight, drop, work, place, there, head, tile)
        acc = fold(acc * factor[:, :, :, None], weight[:, :, :, None] * x_src)
        top = higher
    total, acc = tl.sum(total, axis=1), tl.sum(acc, axis=1)
    none = tl.zeros([block.rows, tile.BH], dtype)
    store_forward(to, partial, part, top, total, none, acc, acc, head, tile)


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
    dtype: tl.constexpr = scores.att.dtype.element_ty
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
def alpha_rows(
    work, part, x, scores, stats, to, slope, drop, head, tile: tl.constexpr, block: tl.constexpr
):
    """The weights ``[R, D, BH]`` of a part's edges, each to its place in the user's order."""
    row, here = part.row, part.row >= 0
    att = load_att(scores, head, tile)
    dtype: tl.constexpr = att.dtype
    x_dst = load_rows(scores.dst, row * scores.dst_stride * tile.UNIT, here, head, tile)
    x_dst = x_dst.to(dtype)[:, None, :, :]
    top = load_heads(stats, 3 * tile.H, row, here, head, tile)
    inverse = load_heads(stats + tile.H, 3 * tile.H, row, here, head, tile)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        place, there = edges(part.begin, part.end, step, block.edges)
        at = ids(work.col, place, there) * x.stride * tile.UNIT
        x_src = load_rows(x.data, at, there, head, tile).to(dtype)
        _, logit = logits(work, scores, att, x_src, x_dst, place, there, slope, head, tile)
        weight = tl.exp(logit - top[:, None, :]) * inverse[:, None, :]
        weight = dropped(weight, drop, work, place, there, head, tile)
        store_heads(to, tile.H, ids(work.eid, place, there), weight, there, head, tile)


@triton.jit(do_not_specialize=SIZES)
def alpha(
    work,
    rows,
    singles,
    chunks,
    x,
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
        (x, scores, stats, to, slope, drop, head),
        tile,
    )
