"""GAT backward: a prologue over destinations, then one pass over CSC by sources.

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
from gatkernels.backends.triton.gat import score


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


class Partial(NamedTuple):
    """What the chunks of hubs leave behind for the merge."""

    sums: Any  # [chunks, H]
    rows: Any  # [chunks, H, C]
    rows_pos: Any  # [chunks, H, C]


@triton.jit
def attention_share(work, saved, scores, row, here, score_dst, head,
                    H: tl.constexpr, S: tl.constexpr):  # fmt: skip
    """``sum_e alpha_e m_e dalpha_e [R, BH]`` over all edges of rows and, with ``scores``, s > 0."""
    begin = tl.load(work.rowptr + row, mask=here, other=0)
    end = tl.load(work.rowptr + row + 1, mask=here, other=0)
    total = tl.zeros([row.shape[0], S, head.shape[0]], score_dst.dtype)
    total_pos = tl.zeros([row.shape[0], S, head.shape[0]], score_dst.dtype)
    for step in range(0, tl.max(end - begin, axis=0), S):
        place, there = edges(begin, end, step, S)
        eid = ids(work.eid, place, there)
        share = load_heads(saved.alpha, H, eid, there, head, H)
        share *= load_heads(saved.grad_alpha, H, eid, there, head, H)
        total += share
        if scores is not None:
            s = score(work, scores, place, there, score_dst, head, H)
            total_pos += tl.where(s > 0, share, 0.0)
    return tl.sum(total, axis=1), tl.sum(total_pos, axis=1)


@triton.jit(do_not_specialize=SIZES)
def prologue(work, rows, grad, scores, saved, terms, grad_dst, dst_stride, slope: tl.float64,
             H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
             UNIT: tl.constexpr, S: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """For R destinations: ``grad_dst`` and the terms their edges need.

    ``terms [Nd, 4, H]``: score_dst, maximum, 1 / sum, delta = <dO, out>; the gradient is
    ``(1 - slope) (<dO, out_pos> - delta share)``.
    """
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    there = row < rows
    dtype: tl.constexpr = terms.dtype.element_ty
    at = row * (H * C)
    d_out = load_rows(grad.data, row * grad.stride * UNIT, there, head, H, C, BC).to(dtype)
    delta = tl.sum(load_rows(saved.out, at, there, head, H, C, BC).to(dtype) * d_out, axis=2)
    delta_pos = tl.sum(load_rows(saved.out_pos, at, there, head, H, C, BC) * d_out, axis=2)
    score_dst = load_heads(scores.dst, scores.dst_stride, row, there, head, H)
    if saved.grad_alpha is not None:
        share, share_pos = attention_share(work, saved, scores, row, there, score_dst, head, H, S)
        delta += share
        delta_pos += share_pos
    to = terms + row[:, None] * (4 * H) + head[None, :]
    mask = there[:, None] & (head < H)[None, :]
    tl.store(to, score_dst, mask=mask)
    tl.store(to + H, load_heads(saved.stats, 3 * H, row, there, head, H), mask=mask)
    inverse = load_heads(saved.stats + H, 3 * H, row, there, head, H)
    tl.store(to + 2 * H, inverse, mask=mask)
    tl.store(to + 3 * H, delta, mask=mask)
    positive = load_heads(saved.stats + 2 * H, 3 * H, row, there, head, H)
    slope = tl.full([1, 1], slope, dtype)
    d_dst = (1.0 - slope) * (delta_pos - delta * positive)
    d_dst = tl.where(inverse == 0.0, 0.0, d_dst)  # a row without edges: dO may not be finite
    tl.store(grad_dst + row[:, None] * dst_stride + head[None, :], d_dst, mask=mask)


@triton.jit
def store_backward(to, row, used, total, acc, acc_pos, x, slope, head, H: tl.constexpr,
                   C: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr):  # fmt: skip
    """``used``: whether a row has edges; without, its features may not be finite."""
    there = row >= 0
    mask = there[:, None, None] & in_row(head, H, C, BC)
    at = (row * to.x_stride * UNIT)[:, None, None] + features(head, C, BC)
    tl.store(to.x + at, acc, mask=mask)
    if to.edge is None:
        feature = load_rows(x.data, row * x.stride * UNIT, used, head, H, C, BC).to(acc.dtype)
        total += tl.sum((slope * acc + (1.0 - slope) * acc_pos) * feature, axis=2)
    mask = there[:, None] & (head < H)[None, :]
    tl.store(to.src + row[:, None] * to.src_stride + head[None, :], total, mask=mask)


@triton.jit
def store_partial(to, chunk, total, acc, acc_pos, head, PAIR: tl.constexpr,
                  H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    chunk = chunk.to(tl.int64)
    tl.store(to.sums + chunk * H + head[None, :], total, mask=(head < H)[None, :])
    at = chunk * (H * C) + features(head, C, BC)[None, :, :]
    mask = in_row(head, H, C, BC)[None, :, :]
    tl.store(to.rows + at, acc, mask=mask)
    if PAIR:
        tl.store(to.rows_pos + at, acc_pos, mask=mask)


@triton.jit
def row_sums(work, x, grad, scores, terms, grad_alpha, grad_edge, row, begin, end, slope, drop,
             head, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr,
             D: tl.constexpr, A: tl.constexpr):  # fmt: skip
    """Sums over the edges out of each row: of scores' gradients ``[R, BH]``, of alpha m dO and
    of its part from positive scores ``[R, BH, BC]``. ``scores`` are seen from the sources.

    Without edge scores the first sum leaves out <dO, x>, which the last two give.
    """
    R: tl.constexpr = row.shape[0]
    BH: tl.constexpr = head.shape[0]
    score_src = load_heads(scores.src, scores.src_stride, row, row >= 0, head, H)
    dtype: tl.constexpr = score_src.dtype
    if grad_edge is not None:
        feature = load_rows(x.data, row * x.stride * UNIT, end > begin, head, H, C, BC).to(dtype)
    total = tl.zeros([R, D, BH], dtype)
    acc = tl.zeros([R, A, BH, BC], dtype)
    acc_pos = tl.zeros([R, A, BH, BC], dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        place, there = edges(begin, end, step, D)
        dst = ids(work.col, place, there)
        d_out = load_rows(grad.data, dst * grad.stride * UNIT, there, head, H, C, BC).to(dtype)
        s = load_heads(terms, 4 * H, dst, there, head, H) + score_src[:, None, :]
        top = load_heads(terms + H, 4 * H, dst, there, head, H)
        inverse = load_heads(terms + 2 * H, 4 * H, dst, there, head, H)
        delta = load_heads(terms + 3 * H, 4 * H, dst, there, head, H)
        eid = ids(work.eid, place, there)
        if scores.edge is not None:
            s += load_heads(scores.edge, H, eid, there, head, H)
        alpha = tl.where(there[:, :, None], tl.exp(leaky(s, slope) - top) * inverse, 0.0)
        weight = dropped(alpha, drop, work, place, there, head, BH)
        gain = tl.zeros([R, D, BH], dtype)
        if grad_alpha is not None:
            gain += load_heads(grad_alpha, H, eid, there, head, H)
        if grad_edge is not None:
            gain += tl.sum(d_out * feature[:, None, :, :], axis=3)
        d_score = tl.where(s > 0, 1.0, slope) * (weight * gain - alpha * delta)
        total += d_score
        acc = fold(acc, weight[:, :, :, None] * d_out)
        if grad_edge is not None:
            mask = there[:, :, None] & (head < H)
            tl.store(grad_edge + eid[:, :, None] * H + head, d_score, mask=mask)
        else:
            acc_pos = fold(acc_pos, tl.where(s > 0, weight, 0.0)[:, :, :, None] * d_out)
    return tl.sum(total, axis=1), tl.sum(acc, axis=1), tl.sum(acc_pos, axis=1)


@triton.jit
def backward_rows(work, row, begin, end, chunks, x, grad, scores, terms, grad_alpha, to, partial,
                  slope, drop, head, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr,
                  UNIT: tl.constexpr, R: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
                  SEGMENT: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    total, acc, acc_pos = row_sums(
        work, x, grad, scores, terms, grad_alpha, to.edge, row, begin, end, slope, drop,
        head, H, C, BC, UNIT, D, A,
    )  # fmt: skip
    if SEGMENT:
        if pid < chunks:
            store_partial(partial, pid, total, acc, acc_pos, head, to.edge is None, H, C, BC)
        else:
            store_backward(
                to, row, end > begin, total, acc, acc_pos, x, slope, head, H, C, BC, UNIT
            )
    else:
        store_backward(to, row, end > begin, total, acc, acc_pos, x, slope, head, H, C, BC, UNIT)


@triton.jit(do_not_specialize=SIZES)
def backward(work, rows, segments, chunks, x, grad, scores, terms, grad_alpha, to, partial, seed,
             slope: tl.float64, scale: tl.float64, threshold: tl.int64,
             H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
             UNIT: tl.constexpr, D: tl.constexpr, R: tl.constexpr, T: tl.constexpr,
             A: tl.constexpr, AT: tl.constexpr):  # fmt: skip
    """Programs: the segments of long rows of CSC, then packs of R tiny rows; heads by BH."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype: tl.constexpr = terms.dtype.element_ty
    slope = tl.full([1, 1, 1], slope, dtype)
    drop = (seed, tl.full([1, 1, 1], scale, dtype), threshold)
    pid = tl.program_id(0)
    if pid < segments:
        row, begin, end, there = segment_of(work, rows, chunks, pid)
        if there:
            backward_rows(work, row, begin, end, chunks, x, grad, scores, terms, grad_alpha, to,
                          partial, slope, drop, head, H, C, BC, UNIT, 1, D, A, True)  # fmt: skip
    elif work.order is not None:
        pack, first, last, there = tiny_rows(work, rows, pid - segments, R)
        if there:
            backward_rows(work, pack, first, last, chunks, x, grad, scores, terms, grad_alpha, to,
                          partial, slope, drop, head, H, C, BC, UNIT, R, T, AT, False)  # fmt: skip


@triton.jit
def merge(work, x, to, partial, slope: tl.float64, H: tl.constexpr, C: tl.constexpr,
          BH: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr,
          A: tl.constexpr):  # fmt: skip
    """A hub's row from its chunks, in their order."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    row, begin, end = hub_of(work, tl.program_id(0))
    dtype: tl.constexpr = partial.sums.dtype.element_ty
    total = tl.zeros([1, D, BH], dtype)
    acc = tl.zeros([1, A, BH, BC], dtype)
    acc_pos = tl.zeros([1, A, BH, BC], dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        chunk, there = edges(begin, end, step, D)
        chunk = chunk.to(tl.int64)
        total += load_heads(partial.sums, H, chunk, there, head, H)
        acc = fold(acc, load_rows(partial.rows, chunk * (H * C), there, head, H, C, BC))
        if to.edge is None:
            part = load_rows(partial.rows_pos, chunk * (H * C), there, head, H, C, BC)
            acc_pos = fold(acc_pos, part)
    total, acc, acc_pos = tl.sum(total, axis=1), tl.sum(acc, axis=1), tl.sum(acc_pos, axis=1)
    slope = tl.full([1, 1, 1], slope, dtype)
    store_backward(to, row, row >= 0, total, acc, acc_pos, x, slope, head, H, C, BC, UNIT)
