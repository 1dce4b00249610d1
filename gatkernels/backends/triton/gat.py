"""GAT forward: one pass for each row's maximum, one for the sums; nothing is rescaled per edge.

The first pass reads scalars alone, which the second finds in the cache. It takes the maximum of the
logits, not of score_src: the loads are the same, and it is right for every slope.
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


class Scores(NamedTuple):
    """Where the scores of an edge come from."""

    src: Any  # [Ns, H], rows src_stride apart
    dst: Any  # [Nd, H]
    edge: Any  # [E, H] or None
    src_stride: int
    dst_stride: int


class Forward(NamedTuple):
    """Results of a forward; the last two are None where they are not wanted."""

    out: Any  # [Nd, H, C]
    stats: Any  # [Nd, 3, H]
    out_pos: Any  # [Nd, H, C]


class Partial(NamedTuple):
    """What the chunks of hubs leave behind for the merge."""

    sums: Any  # [chunks, 3, H]: maximum, sum, sum over positive scores
    rows: Any  # [chunks, H, C]
    rows_pos: Any  # [chunks, H, C] or None


@triton.jit
def score(work, scores, place, there, score_dst, head, H: tl.constexpr):
    """Scores ``[R, D, BH]`` of edges into the rows of ``score_dst [R, BH]``."""
    src = ids(work.col, place, there)
    s = load_heads(scores.src, scores.src_stride, src, there, head, H) + score_dst[:, None, :]
    if scores.edge is not None:
        s += load_heads(scores.edge, H, ids(work.eid, place, there), there, head, H)
    return s


@triton.jit
def store_forward(to, row, some, top, total, total_pos, acc, acc_pos, head,
                  H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Results of finished rows from their maxima and sums; zeros where there are no edges."""
    inverse = tl.where(some[:, None], 1.0 / total, 0.0)  # [R, BH]
    there = row >= 0
    if to.stats is not None:
        at = row[:, None] * (3 * H) + head[None, :]
        mask = there[:, None] & (head < H)[None, :]
        tl.store(to.stats + at, tl.where(some[:, None], top, 0.0), mask=mask)
        tl.store(to.stats + at + H, inverse, mask=mask)
        tl.store(to.stats + at + 2 * H, total_pos * inverse, mask=mask)
    at = row[:, None, None] * (H * C) + features(head, C, BC)
    mask = there[:, None, None] & in_row(head, H, C, BC)
    tl.store(to.out + at, acc * inverse[:, :, None], mask=mask)
    if to.out_pos is not None:
        tl.store(to.out_pos + at, acc_pos * inverse[:, :, None], mask=mask)


@triton.jit
def store_partial(to, chunk, top, total, total_pos, acc, acc_pos, head,
                  H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    at = chunk.to(tl.int64) * (3 * H) + head[None, :]
    mask = (head < H)[None, :]
    tl.store(to.sums + at, top, mask=mask)
    tl.store(to.sums + at + H, total, mask=mask)
    tl.store(to.sums + at + 2 * H, total_pos, mask=mask)
    at = chunk.to(tl.int64) * (H * C) + features(head, C, BC)[None, :, :]
    mask = in_row(head, H, C, BC)[None, :, :]
    tl.store(to.rows + at, acc, mask=mask)
    if to.rows_pos is not None:
        tl.store(to.rows_pos + at, acc_pos, mask=mask)


@triton.jit
def row_maximum(work, scores, row, begin, end, slope, head, H: tl.constexpr, S: tl.constexpr):
    """``score_dst`` and the largest logit ``[R, BH]`` of each row, by a pass over scalars alone."""
    score_dst = load_heads(scores.dst, scores.dst_stride, row, row >= 0, head, H)
    best = tl.full([row.shape[0], S, head.shape[0]], LOWEST, score_dst.dtype)
    for step in range(0, tl.max(end - begin, axis=0), S):
        place, there = edges(begin, end, step, S)
        logit = leaky(score(work, scores, place, there, score_dst, head, H), slope)
        best = tl.maximum(best, tl.where(there[:, :, None], logit, LOWEST))
    return score_dst, tl.max(best, axis=1)


@triton.jit
def row_sums(work, x, scores, row, begin, end, slope, drop, head,
             H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr,
             D: tl.constexpr, S: tl.constexpr, A: tl.constexpr,
             TRAIN: tl.constexpr):  # fmt: skip
    """Maximum and sums ``[R, BH]`` of rows, and weighted sums of features ``[R, BH, BC]``."""
    R: tl.constexpr = row.shape[0]
    BH: tl.constexpr = head.shape[0]
    score_dst, top = row_maximum(work, scores, row, begin, end, slope, head, H, S)
    dtype: tl.constexpr = score_dst.dtype
    total = tl.zeros([R, D, BH], dtype)
    total_pos = tl.zeros([R, D, BH], dtype)
    acc = tl.zeros([R, A, BH, BC], dtype)
    acc_pos = tl.zeros([R, A, BH, BC], dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        place, there = edges(begin, end, step, D)
        src = ids(work.col, place, there)
        feature = load_rows(x.data, src * x.stride * UNIT, there, head, H, C, BC).to(dtype)
        s = score(work, scores, place, there, score_dst, head, H)
        weight = tl.where(there[:, :, None], tl.exp(leaky(s, slope) - top[:, None, :]), 0.0)
        total += weight
        if TRAIN:
            total_pos += tl.where(s > 0, weight, 0.0)
        weight = dropped(weight, drop, work, place, there, head, BH)
        acc = fold(acc, weight[:, :, :, None] * feature)
        if TRAIN:
            acc_pos = fold(acc_pos, tl.where(s > 0, weight, 0.0)[:, :, :, None] * feature)
    total, total_pos = tl.sum(total, axis=1), tl.sum(total_pos, axis=1)
    return top, total, total_pos, tl.sum(acc, axis=1), tl.sum(acc_pos, axis=1)


@triton.jit
def forward_rows(work, row, begin, end, chunks, x, scores, to, partial, slope, drop, head,
                 H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr,
                 R: tl.constexpr, D: tl.constexpr, S: tl.constexpr, A: tl.constexpr,
                 SEGMENT: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    TRAIN: tl.constexpr = to.out_pos is not None
    top, total, total_pos, acc, acc_pos = row_sums(
        work, x, scores, row, begin, end, slope, drop, head, H, C, BC, UNIT, D, S, A, TRAIN
    )
    some = end > begin
    if SEGMENT:
        if pid < chunks:
            store_partial(partial, pid, top, total, total_pos, acc, acc_pos, head, H, C, BC)
        else:
            store_forward(to, row, some, top, total, total_pos, acc, acc_pos, head, H, C, BC)
    else:
        store_forward(to, row, some, top, total, total_pos, acc, acc_pos, head, H, C, BC)


@triton.jit(do_not_specialize=SIZES)
def forward(work, rows, segments, chunks, x, scores, to, partial, seed,
            slope: tl.float64, scale: tl.float64, threshold: tl.int64,
            H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
            UNIT: tl.constexpr, D: tl.constexpr, S: tl.constexpr, R: tl.constexpr,
            T: tl.constexpr, A: tl.constexpr, AT: tl.constexpr):  # fmt: skip
    """Programs: the segments of long rows, then packs of R tiny rows; heads by BH."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype: tl.constexpr = scores.dst.dtype.element_ty
    slope = tl.full([1, 1, 1], slope, dtype)
    drop = (seed, tl.full([1, 1, 1], scale, dtype), threshold)
    pid = tl.program_id(0)
    if pid < segments:
        row, begin, end, there = segment_of(work, rows, chunks, pid)
        if there:
            forward_rows(work, row, begin, end, chunks, x, scores, to, partial, slope, drop, head,
                         H, C, BC, UNIT, 1, D, S, A, True)  # fmt: skip
    elif work.order is not None:
        pack, first, last, there = tiny_rows(work, rows, pid - segments, R)
        if there:
            forward_rows(work, pack, first, last, chunks, x, scores, to, partial, slope, drop, head,
                         H, C, BC, UNIT, R, T, T, AT, False)  # fmt: skip


@triton.jit
def merge(work, to, partial, H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr,
          BC: tl.constexpr, D: tl.constexpr, A: tl.constexpr):  # fmt: skip
    """A hub's row from its chunks, in their order."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    row, begin, end = hub_of(work, tl.program_id(0))
    dtype: tl.constexpr = partial.sums.dtype.element_ty
    best = tl.full([1, D, BH], LOWEST, dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        chunk, there = edges(begin, end, step, D)
        chunk_top = load_heads(partial.sums, 3 * H, chunk.to(tl.int64), there, head, H)
        best = tl.maximum(best, tl.where(there[:, :, None], chunk_top, LOWEST))
    top = tl.max(best, axis=1)
    total = tl.zeros([1, D, BH], dtype)
    total_pos = tl.zeros([1, D, BH], dtype)
    acc = tl.zeros([1, A, BH, BC], dtype)
    acc_pos = tl.zeros([1, A, BH, BC], dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        chunk, there = edges(begin, end, step, D)
        chunk = chunk.to(tl.int64)
        chunk_top = load_heads(partial.sums, 3 * H, chunk, there, head, H)
        factor = tl.where(there[:, :, None], tl.exp(chunk_top - top[:, None, :]), 0.0)
        total += factor * load_heads(partial.sums + H, 3 * H, chunk, there, head, H)
        total_pos += factor * load_heads(partial.sums + 2 * H, 3 * H, chunk, there, head, H)
        factor = factor[:, :, :, None]
        acc = fold(acc, factor * load_rows(partial.rows, chunk * (H * C), there, head, H, C, BC))
        if to.out_pos is not None:
            rows = load_rows(partial.rows_pos, chunk * (H * C), there, head, H, C, BC)
            acc_pos = fold(acc_pos, factor * rows)
    store_forward(
        to, row, end > begin, top, tl.sum(total, axis=1), tl.sum(total_pos, axis=1),
        tl.sum(acc, axis=1), tl.sum(acc_pos, axis=1), head, H, C, BC,
    )  # fmt: skip


@triton.jit
def alpha_rows(work, row, begin, end, scores, stats, to, slope, drop, head,
               H: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
               SEGMENT: tl.constexpr):  # fmt: skip
    score_dst = load_heads(scores.dst, scores.dst_stride, row, row >= 0, head, H)
    top = load_heads(stats, 3 * H, row, row >= 0, head, H)
    inverse = load_heads(stats + H, 3 * H, row, row >= 0, head, H)
    for step in range(0, tl.max(end - begin, axis=0), S):
        place, there = edges(begin, end, step, S)
        s = score(work, scores, place, there, score_dst, head, H)
        weight = tl.exp(leaky(s, slope) - top[:, None, :]) * inverse[:, None, :]
        weight = dropped(weight, drop, work, place, there, head, head.shape[0])
        eid = ids(work.eid, place, there)
        tl.store(to + eid[:, :, None] * H + head, weight, mask=there[:, :, None] & (head < H))


@triton.jit(do_not_specialize=SIZES)
def alpha(work, rows, segments, chunks, scores, stats, to, seed,
          slope: tl.float64, scale: tl.float64, threshold: tl.int64,
          H: tl.constexpr, BH: tl.constexpr, S: tl.constexpr, R: tl.constexpr,
          T: tl.constexpr):  # fmt: skip
    """Attention weights ``[E, H]`` in the user's order, from a forward's statistics."""
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype: tl.constexpr = stats.dtype.element_ty
    slope = tl.full([1, 1, 1], slope, dtype)
    drop = (seed, tl.full([1, 1, 1], scale, dtype), threshold)
    pid = tl.program_id(0)
    if pid < segments:
        row, begin, end, there = segment_of(work, rows, chunks, pid)
        if there:
            alpha_rows(work, row, begin, end, scores, stats, to, slope, drop, head, H, 1, S, True)
    elif work.order is not None:
        pack, first, last, there = tiny_rows(work, rows, pid - segments, R)
        if there:
            alpha_rows(work, pack, first, last, scores, stats, to, slope, drop, head,
                       H, R, T, False)  # fmt: skip
