"""GATv2 forward: a gathered row gives the score and, from the same registers, the sum.

The running maximum is raised, and the sums rescaled, once per step of D edges.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gatkernels.backends.triton.common import (
    LOWEST,
    SIZES,
    dropped,
    edges,
    fold,
    ids,
    leaky,
    load_heads,
    load_rows,
    segment_of,
    tiny_rows,
)
from gatkernels.backends.triton.gat import store_forward, store_partial


class Scores(NamedTuple):
    """Where the scores of an edge come from, besides x of its source."""

    dst: Any  # [Nd, H, C], rows dst_stride * UNIT apart
    att: Any  # [H, C]
    edge: Any  # [E, H, C] or None
    dst_stride: int


@triton.jit
def load_att(scores, head, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):
    """``att [1, 1, BH, BC]``."""
    zero = tl.zeros([1, 1], tl.int64)
    return load_rows(scores.att, zero, zero == 0, head, H, C, BC)


@triton.jit
def logits(work, scores, att, feature, x_dst, place, there, slope, head,
           H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """``u [R, D, BH, BC]`` and the logits ``[R, D, BH]`` of edges."""
    u = feature + x_dst
    if scores.edge is not None:
        eid = ids(work.eid, place, there)
        u += load_rows(scores.edge, eid * (H * C), there, head, H, C, BC).to(u.dtype)
    return u, tl.sum(att * leaky(u, slope), axis=3)


@triton.jit
def forward_rows(work, row, begin, end, chunks, x, scores, to, partial, slope, drop, head,
                 H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr,
                 R: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
                 SEGMENT: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    BH: tl.constexpr = head.shape[0]
    att = load_att(scores, head, H, C, BC)
    dtype: tl.constexpr = att.dtype
    x_dst = load_rows(scores.dst, row * scores.dst_stride * UNIT, row >= 0, head, H, C, BC)
    x_dst = x_dst.to(dtype)[:, None, :, :]
    top = tl.full([R, BH], LOWEST, dtype)
    total = tl.zeros([R, D, BH], dtype)
    acc = tl.zeros([R, A, BH, BC], dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        place, there = edges(begin, end, step, D)
        src = ids(work.col, place, there)
        feature = load_rows(x.data, src * x.stride * UNIT, there, head, H, C, BC).to(dtype)
        _, logit = logits(work, scores, att, feature, x_dst, place, there, slope, head, H, C, BC)
        logit = tl.where(there[:, :, None], logit, float("-inf"))
        higher = tl.maximum(top, tl.max(logit, axis=1))
        factor = tl.exp(top - higher)[:, None, :]
        weight = tl.exp(logit - higher[:, None, :])
        total = total * factor + weight
        weight = dropped(weight, drop, work, place, there, head, BH)
        acc = fold(acc * factor[:, :, :, None], weight[:, :, :, None] * feature)
        top = higher
    total, acc = tl.sum(total, axis=1), tl.sum(acc, axis=1)
    some, none = end > begin, tl.zeros([R, BH], dtype)
    if SEGMENT:
        if pid < chunks:
            store_partial(partial, pid, top, total, none, acc, acc, head, H, C, BC)
        else:
            store_forward(to, row, some, top, total, none, acc, acc, head, H, C, BC)
    else:
        store_forward(to, row, some, top, total, none, acc, acc, head, H, C, BC)


@triton.jit(do_not_specialize=SIZES)
def forward(work, rows, segments, chunks, x, scores, to, partial, seed,
            slope: tl.float64, scale: tl.float64, threshold: tl.int64,
            H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
            UNIT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
            A: tl.constexpr, AT: tl.constexpr):  # fmt: skip
    """Programs: the segments of long rows, then packs of R tiny rows; heads by BH."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype: tl.constexpr = scores.att.dtype.element_ty
    slope = tl.full([1, 1, 1, 1], slope, dtype)
    drop = (seed, tl.full([1, 1, 1], scale, dtype), threshold)
    pid = tl.program_id(0)
    if pid < segments:
        row, begin, end, there = segment_of(work, rows, chunks, pid)
        if there:
            forward_rows(work, row, begin, end, chunks, x, scores, to, partial, slope, drop, head,
                         H, C, BC, UNIT, 1, D, A, True)  # fmt: skip
    elif work.order is not None:
        pack, first, last, there = tiny_rows(work, rows, pid - segments, R)
        if there:
            forward_rows(work, pack, first, last, chunks, x, scores, to, partial, slope, drop, head,
                         H, C, BC, UNIT, R, T, AT, False)  # fmt: skip


@triton.jit
def alpha_rows(work, row, begin, end, x, scores, stats, to, slope, drop, head,
               H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr,
               R: tl.constexpr, D: tl.constexpr, SEGMENT: tl.constexpr):  # fmt: skip
    att = load_att(scores, head, H, C, BC)
    x_dst = load_rows(scores.dst, row * scores.dst_stride * UNIT, row >= 0, head, H, C, BC)
    x_dst = x_dst.to(att.dtype)[:, None, :, :]
    top = load_heads(stats, 3 * H, row, row >= 0, head, H)
    inverse = load_heads(stats + H, 3 * H, row, row >= 0, head, H)
    for step in range(0, tl.max(end - begin, axis=0), D):
        place, there = edges(begin, end, step, D)
        src = ids(work.col, place, there)
        feature = load_rows(x.data, src * x.stride * UNIT, there, head, H, C, BC).to(att.dtype)
        _, logit = logits(work, scores, att, feature, x_dst, place, there, slope, head, H, C, BC)
        weight = tl.exp(logit - top[:, None, :]) * inverse[:, None, :]
        weight = dropped(weight, drop, work, place, there, head, head.shape[0])
        eid = ids(work.eid, place, there)
        tl.store(to + eid[:, :, None] * H + head, weight, mask=there[:, :, None] & (head < H))


@triton.jit(do_not_specialize=SIZES)
def alpha(work, rows, segments, chunks, x, scores, stats, to, seed,
          slope: tl.float64, scale: tl.float64, threshold: tl.int64,
          H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
          UNIT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, T: tl.constexpr):  # fmt: skip
    """Attention weights ``[E, H]`` in the user's order, from a forward's statistics."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype: tl.constexpr = stats.dtype.element_ty
    slope = tl.full([1, 1, 1, 1], slope, dtype)
    drop = (seed, tl.full([1, 1, 1], scale, dtype), threshold)
    pid = tl.program_id(0)
    if pid < segments:
        row, begin, end, there = segment_of(work, rows, chunks, pid)
        if there:
            alpha_rows(work, row, begin, end, x, scores, stats, to, slope, drop, head,
                       H, C, BC, UNIT, 1, D, True)  # fmt: skip
    elif work.order is not None:
        pack, first, last, there = tiny_rows(work, rows, pid - segments, R)
        if there:
            alpha_rows(work, pack, first, last, x, scores, stats, to, slope, drop, head,
                       H, C, BC, UNIT, R, T, False)  # fmt: skip
