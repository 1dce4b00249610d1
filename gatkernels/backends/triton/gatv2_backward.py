"""GATv2 backward: a prologue, a pass over CSR for grad_dst and grad_att, one over CSC for grad_src.

Per edge, with u = x_src + x_dst + edge and dl = alpha (m <dO, x_src> - delta)::

    grad_dst += dl att leaky'(u)    grad_att += dl leaky(u)
    grad_src += dl att leaky'(u) + alpha m dO
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gatkernels.backends.triton.common import (
    SIZES,
    dropped,
    edges,
    features,
    fold,
    hub_of,
    ids,
    in_row,
    leaky,
    load_heads,
    load_rows,
    segment_of,
    tiny_rows,
)
from gatkernels.backends.triton.gat_backward import attention_share
from gatkernels.backends.triton.gatv2 import load_att, logits


class Given(NamedTuple):
    """What the edges of either pass read besides x and scores."""

    grad: Any  # [Nd, H, C], rows grad_stride * UNIT apart
    terms: Any  # [Nd, 3, H]: maximum, 1 / sum, delta
    grad_alpha: Any  # [E, H] or None
    grad_stride: int


class Partial(NamedTuple):
    """What the chunks of hubs leave behind for the merge, ``[chunks, H, C]`` each."""

    slopes: Any  # sum of dl leaky'(u)
    rest: Any  # sum of alpha m dO, or None


@triton.jit(do_not_specialize=SIZES)
def prologue(work, rows, grad, saved, terms, H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr,
             BC: tl.constexpr, UNIT: tl.constexpr, S: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """``terms [Nd, 3, H]`` of R destinations: maximum, 1 / sum, delta = <dO, out>."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    there = row < rows
    dtype: tl.constexpr = terms.dtype.element_ty
    d_out = load_rows(grad.data, row * grad.stride * UNIT, there, head, H, C, BC).to(dtype)
    out = load_rows(saved.out, row * (H * C), there, head, H, C, BC).to(dtype)
    delta = tl.sum(out * d_out, axis=2)
    if saved.grad_alpha is not None:
        delta += attention_share(work, saved, None, row, there, delta, head, H, S)[0]
    to = terms + row[:, None] * (3 * H) + head[None, :]
    mask = there[:, None] & (head < H)[None, :]
    tl.store(to, load_heads(saved.stats, 3 * H, row, there, head, H), mask=mask)
    tl.store(to + H, load_heads(saved.stats + H, 3 * H, row, there, head, H), mask=mask)
    tl.store(to + 2 * H, delta, mask=mask)


@triton.jit
def load_destination(given, scores, node, there, head, H: tl.constexpr, C: tl.constexpr,
                     BC: tl.constexpr, UNIT: tl.constexpr):  # fmt: skip
    """dO and x_dst ``[..., BH, BC]``; maximum, 1 / sum, delta ``[..., BH]`` of destinations."""
    dtype: tl.constexpr = given.terms.dtype.element_ty
    d_out = load_rows(given.grad, node * given.grad_stride * UNIT, there, head, H, C, BC).to(dtype)
    x_dst = load_rows(scores.dst, node * scores.dst_stride * UNIT, there, head, H, C, BC).to(dtype)
    top = load_heads(given.terms, 3 * H, node, there, head, H)
    inverse = load_heads(given.terms + H, 3 * H, node, there, head, H)
    return d_out, x_dst, top, inverse, load_heads(given.terms + 2 * H, 3 * H, node, there, head, H)


@triton.jit
def edge_terms(work, given, scores, att, feature, d_out, x_dst, top, inverse, delta, place, there,
               slope, drop, head, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """``u [R, D, BH, BC]``, ``alpha m`` and ``dl [R, D, BH]``; one end's values have D = 1."""
    u, logit = logits(work, scores, att, feature, x_dst, place, there, slope, head, H, C, BC)
    alpha = tl.where(there[:, :, None], tl.exp(logit - top) * inverse, 0.0)
    weight = dropped(alpha, drop, work, place, there, head, head.shape[0])
    gain = tl.sum(d_out * feature, axis=3)
    if given.grad_alpha is not None:
        gain += load_heads(given.grad_alpha, H, ids(work.eid, place, there), there, head, H)
    return u, weight, weight * gain - alpha * delta


@triton.jit
def store_rows(to, at, value, there, head, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):
    """``value [..., BH, BC]`` to rows that start at ``at``."""
    start = tl.expand_dims(tl.expand_dims(at, -1), -1)
    mask = tl.expand_dims(tl.expand_dims(there, -1), -1) & in_row(head, H, C, BC)
    tl.store(to + start + features(head, C, BC), value, mask=mask)


@triton.jit
def destination_rows(work, row, begin, end, chunks, item, x, given, scores, grad_dst, grad_edge,
                     partial, slope, drop, head,
                     H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr,
                     R: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
                     SEGMENT: tl.constexpr):  # fmt: skip
    """grad_dst of rows, or a chunk's part of it; returns their part of grad_att ``[BH, BC]``."""
    att = load_att(scores, head, H, C, BC)
    dtype: tl.constexpr = att.dtype
    used = end > begin  # what belongs to a row without edges may not be finite
    d_out, x_dst, top, inverse, delta = load_destination(
        given, scores, row[:, None], used[:, None], head, H, C, BC, UNIT
    )
    slopes = tl.zeros([R, A, head.shape[0], BC], dtype)
    values = tl.zeros([R, A, head.shape[0], BC], dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        place, there = edges(begin, end, step, D)
        src = ids(work.col, place, there)
        feature = load_rows(x.data, src * x.stride * UNIT, there, head, H, C, BC).to(dtype)
        u, _, d_logit = edge_terms(
            work, given, scores, att, feature, d_out, x_dst, top, inverse, delta, place, there,
            slope, drop, head, H, C, BC,
        )  # fmt: skip
        d_logit = d_logit[:, :, :, None]
        by_slope = d_logit * tl.where(u > 0, 1.0, slope)
        slopes = fold(slopes, by_slope)
        values = fold(values, d_logit * leaky(u, slope))
        if grad_edge is not None:
            eid = ids(work.eid, place, there)
            store_rows(grad_edge, eid * (H * C), by_slope * att, there, head, H, C, BC)
    slopes = tl.sum(slopes, axis=1)
    if SEGMENT:
        if item < chunks:
            at = (item + tl.zeros([1], tl.int64)) * (H * C)
            store_rows(partial.slopes, at, slopes, at >= 0, head, H, C, BC)
        else:
            grad = slopes * tl.sum(att, axis=1)
            store_rows(grad_dst, row * (H * C), grad, row >= 0, head, H, C, BC)
    else:
        grad = slopes * tl.sum(att, axis=1)
        store_rows(grad_dst, row * (H * C), grad, row >= 0, head, H, C, BC)
    return tl.sum(tl.sum(values, axis=1), axis=0)


@triton.jit(do_not_specialize=SIZES)
def by_destination(work, rows, segments, chunks, packs, x, given, scores, grad_dst, grad_edge,
                   att_parts, partial, seed,
                   slope: tl.float64, scale: tl.float64, threshold: tl.int64,
                   H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
                   UNIT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
                   A: tl.constexpr, AT: tl.constexpr):  # fmt: skip
    """Programs take every num_programs-th segment and pack, so that few parts of grad_att
    ``[programs, H, C]`` are left to add."""
    pid = tl.program_id(0)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype: tl.constexpr = att_parts.dtype.element_ty
    slope = tl.full([1, 1, 1, 1], slope, dtype)
    drop = (seed, tl.full([1, 1, 1], scale, dtype), threshold)
    att_part = tl.zeros([BH, BC], dtype)
    for item in range(pid, segments, tl.num_programs(0)):
        row, begin, end, there = segment_of(work, rows, chunks, item)
        if there:
            att_part += destination_rows(
                work, row, begin, end, chunks, item, x, given, scores, grad_dst, grad_edge, partial,
                slope, drop, head, H, C, BC, UNIT, 1, D, A, True,
            )  # fmt: skip
    if work.order is not None:
        for item in range(segments + pid, segments + packs, tl.num_programs(0)):
            pack, first, last, _ = tiny_rows(work, rows, item - segments, R)
            att_part += destination_rows(
                work, pack, first, last, chunks, item, x, given, scores, grad_dst, grad_edge,
                partial, slope, drop, head, H, C, BC, UNIT, R, T, AT, False,
            )  # fmt: skip
    at = pid.to(tl.int64) * (H * C) + features(head, C, BC)
    tl.store(att_parts + at, att_part, mask=in_row(head, H, C, BC))


@triton.jit
def source_rows(work, row, begin, end, chunks, x, given, scores, grad_src, partial, slope, drop,
                head, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr,
                R: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
                SEGMENT: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    att = load_att(scores, head, H, C, BC)
    dtype: tl.constexpr = att.dtype
    used = end > begin  # what belongs to a row without edges may not be finite
    feature = load_rows(x.data, row * x.stride * UNIT, used, head, H, C, BC)
    feature = feature.to(dtype)[:, None, :, :]
    slopes = tl.zeros([R, A, head.shape[0], BC], dtype)
    rest = tl.zeros([R, A, head.shape[0], BC], dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        place, there = edges(begin, end, step, D)
        dst = ids(work.col, place, there)
        d_out, x_dst, top, inverse, delta = load_destination(
            given, scores, dst, there, head, H, C, BC, UNIT
        )
        u, weight, d_logit = edge_terms(
            work, given, scores, att, feature, d_out, x_dst, top, inverse, delta, place, there,
            slope, drop, head, H, C, BC,
        )  # fmt: skip
        slopes = fold(slopes, d_logit[:, :, :, None] * tl.where(u > 0, 1.0, slope))
        rest = fold(rest, weight[:, :, :, None] * d_out)
    slopes, rest = tl.sum(slopes, axis=1), tl.sum(rest, axis=1)
    if SEGMENT:
        if pid < chunks:
            at = (pid + tl.zeros([1], tl.int64)) * (H * C)
            store_rows(partial.slopes, at, slopes, at >= 0, head, H, C, BC)
            store_rows(partial.rest, at, rest, at >= 0, head, H, C, BC)
        else:
            grad = slopes * tl.sum(att, axis=1) + rest
            store_rows(grad_src, row * (H * C), grad, row >= 0, head, H, C, BC)
    else:
        grad = slopes * tl.sum(att, axis=1) + rest
        store_rows(grad_src, row * (H * C), grad, row >= 0, head, H, C, BC)


@triton.jit(do_not_specialize=SIZES)
def by_source(work, rows, segments, chunks, x, given, scores, grad_src, partial, seed,
              slope: tl.float64, scale: tl.float64, threshold: tl.int64,
              H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
              UNIT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
              A: tl.constexpr, AT: tl.constexpr):  # fmt: skip
    """Programs: the segments of long rows of CSC, then packs of R tiny rows; heads by BH."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype: tl.constexpr = given.terms.dtype.element_ty
    slope = tl.full([1, 1, 1, 1], slope, dtype)
    drop = (seed, tl.full([1, 1, 1], scale, dtype), threshold)
    pid = tl.program_id(0)
    if pid < segments:
        row, begin, end, there = segment_of(work, rows, chunks, pid)
        if there:
            source_rows(work, row, begin, end, chunks, x, given, scores, grad_src, partial, slope,
                        drop, head, H, C, BC, UNIT, 1, D, A, True)  # fmt: skip
    elif work.order is not None:
        pack, first, last, there = tiny_rows(work, rows, pid - segments, R)
        if there:
            source_rows(work, pack, first, last, chunks, x, given, scores, grad_src, partial, slope,
                        drop, head, H, C, BC, UNIT, R, T, AT, False)  # fmt: skip


@triton.jit
def merge(work, to, scores, partial, H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr,
          BC: tl.constexpr, D: tl.constexpr, A: tl.constexpr):  # fmt: skip
    """A hub's row of a gradient from its chunks, in their order."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    row, begin, end = hub_of(work, tl.program_id(0))
    att = load_att(scores, head, H, C, BC)
    slopes = tl.zeros([1, A, BH, BC], att.dtype)
    rest = tl.zeros([1, A, BH, BC], att.dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        chunk, there = edges(begin, end, step, D)
        place = chunk.to(tl.int64) * (H * C)
        slopes = fold(slopes, load_rows(partial.slopes, place, there, head, H, C, BC))
        if partial.rest is not None:
            rest = fold(rest, load_rows(partial.rest, place, there, head, H, C, BC))
    grad = tl.sum(slopes, axis=1) * tl.sum(att, axis=1) + tl.sum(rest, axis=1)
    store_rows(to, row * (H * C), grad, row >= 0, head, H, C, BC)
