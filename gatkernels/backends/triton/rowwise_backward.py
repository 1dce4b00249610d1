"""Row-wise scores, backward: a prologue, a pass over CSR for grad_dst and grad_att, one over CSC
for grad_src.

Per edge, with dl = alpha (m <dO, x_src> - delta), and value v(x_j, x_i) of scores.py::

    grad_dst += dl att dv/dx_i    grad_att += dl v    grad_edge = dl att dv/dx_j
    grad_src += dl att dv/dx_j + alpha m dO

att, the same for all edges, is left out of the sums over them.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gatkernels.backends.triton.common import (
    SIZES,
    Part,
    dropped,
    each_part,
    edges,
    features,
    fold,
    ids,
    in_row,
    load_heads,
    load_rows,
    merge_chunks,
    settings,
    single_row,
    store_heads,
    store_partial,
    store_rows,
    tiny_rows,
)
from gatkernels.backends.triton.rowwise import load_att, logits
from gatkernels.backends.triton.separable_backward import attention_share


class Given(NamedTuple):
    """What the edges of either pass read besides x and scores."""

    grad: Any  # [Nd, H, C], rows grad_stride * UNIT apart
    fields: Any  # [Nd, 3, H]: maximum, 1 / sum, delta
    grad_alpha: Any  # [E, H] or None
    grad_stride: int


@triton.jit
def store_fields(to, stats, delta, row, there, head, tile: tl.constexpr):
    """``[Nd, 3, H]`` of rows: maximum, 1 / sum, delta."""
    H: tl.constexpr = tile.H
    top = load_heads(stats, 3 * H, row, there, head, tile)
    store_heads(to, 3 * H, row, top, there, head, tile)
    inverse = load_heads(stats + H, 3 * H, row, there, head, tile)
    store_heads(to + H, 3 * H, row, inverse, there, head, tile)
    store_heads(to + 2 * H, 3 * H, row, delta, there, head, tile)


@triton.jit
def load_fields(fields, node, there, head, tile: tl.constexpr):
    """What :func:`store_fields` left of nodes, each ``[..., BH]``."""
    H: tl.constexpr = tile.H
    top = load_heads(fields, 3 * H, node, there, head, tile)
    inverse = load_heads(fields + H, 3 * H, node, there, head, tile)
    delta = load_heads(fields + 2 * H, 3 * H, node, there, head, tile)
    return top, inverse, delta


@triton.jit(do_not_specialize=SIZES)
def prologue(work, rows, grad, saved, fields, tile: tl.constexpr):
    """A program owns R destinations, and writes their ``fields [Nd, 3, H]``: maximum, 1 / sum,
    delta = <dO, out>."""
    # several rows, or one and its edges
    R: tl.constexpr = tile.tiny.rows if saved.grad_alpha is None else 1
    H: tl.constexpr = tile.H
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    there = row < rows
    dtype: tl.constexpr = fields.dtype.element_ty
    d_out = load_rows(grad.data, row * grad.stride * tile.UNIT, there, head, tile).to(dtype)
    out = load_rows(saved.out, row * (H * tile.C), there, head, tile).to(dtype)
    delta = tl.sum(out * d_out, axis=2)
    if saved.grad_alpha is not None:
        delta += attention_share(work, saved, None, row, there, delta, head, tile)[0]
    store_fields(fields, saved.stats, delta, row, there, head, tile)


@triton.jit
def load_destination(given, scores, node, there, head, tile: tl.constexpr):
    """dO and x_dst ``[..., BH, BC]``; maximum, 1 / sum, delta ``[..., BH]`` of destinations."""
    dtype: tl.constexpr = given.fields.dtype.element_ty
    d_out = load_rows(given.grad, node * given.grad_stride * tile.UNIT, there, head, tile)
    x_dst = load_rows(scores.dst, node * scores.dst_stride * tile.UNIT, there, head, tile)
    fields = load_fields(given.fields, node, there, head, tile)
    return d_out.to(dtype), x_dst.to(dtype), fields


@triton.jit
def edge_gradients(
    work,
    given,
    scores,
    att,
    x_src,
    d_out,
    x_dst,
    fields,
    place,
    there,
    slope,
    drop,
    head,
    tile: tl.constexpr,
):
    """``x_j [R, D, BH, BC]``, ``alpha m`` and ``dl [R, D, BH]``; one end's values have D = 1."""
    top, inverse, delta = fields
    x_j, logit = logits(work, scores, att, x_src, x_dst, place, there, slope, head, tile)
    alpha = tl.where(there[:, :, None], tl.exp(logit - top) * inverse, 0.0)
    weight = dropped(alpha, drop, work, place, there, head, tile)
    gain = tl.sum(d_out * x_src, axis=3)
    if given.grad_alpha is not None:
        eid = ids(work.eid, place, there)
        gain += load_heads(given.grad_alpha, tile.H, eid, there, head, tile)
    return x_j, weight, weight * gain - alpha * delta


@triton.jit
def store_gradient(to, partial, part, reached, att, rest, head, tile: tl.constexpr):
    """A gradient's rows, or the sums of a hub's chunk."""
    if part.of_hub:
        store_partial(partial, part.number, None, None, None, reached, rest, head, tile)
    else:
        grad = reached * tl.sum(att, axis=1) + rest
        store_rows(to, part.row * (tile.H * tile.C), grad, part.row >= 0, head, tile)


@triton.jit
def destination_rows(
    work,
    part,
    x,
    given,
    scores,
    grad_dst,
    grad_edge,
    partial,
    slope,
    drop,
    head,
    tile: tl.constexpr,
    block: tl.constexpr,
):
    """grad_dst of a part's rows; returns what they give grad_att ``[BH, BC]``."""
    att = load_att(scores, head, tile)
    dtype: tl.constexpr = att.dtype
    used = part.end > part.begin  # what belongs to a row without edges may not be finite
    d_out, x_dst, fields = load_destination(
        given, scores, part.row[:, None], used[:, None], head, tile
    )
    reached = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    values = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        # gather D rows of x, and their logits' gradients
        place, there = edges(part.begin, part.end, step, block.edges)
        at = ids(work.col, place, there) * x.stride * tile.UNIT
        x_src = load_rows(x.data, at, there, head, tile).to(dtype)
        x_j, _, d_logit = edge_gradients(
            work,
            given,
            scores,
            att,
            x_src,
            d_out,
            x_dst,
            fields,
            place,
            there,
            slope,
            drop,
            head,
            tile,
        )
        # what they reach
        d_logit = d_logit[:, :, :, None]
        by_j, by_i = scores.scorer.reach(x_j, x_dst, slope)
        reached = fold(reached, d_logit * by_i)
        values = fold(values, d_logit * scores.scorer.value(x_j, x_dst, slope))
        if grad_edge is not None:
            at = ids(work.eid, place, there) * (tile.H * tile.C)
            store_rows(grad_edge, at, d_logit * by_j * att, there, head, tile)
    reached = tl.sum(reached, axis=1)
    store_gradient(grad_dst, partial, part, reached, att, 0.0, head, tile)
    return tl.sum(tl.sum(values, axis=1), axis=0)


@triton.jit(do_not_specialize=SIZES)
def by_destination(
    work,
    rows,
    singles,
    chunks,
    packs,
    x,
    given,
    scores,
    grad_dst,
    grad_edge,
    att_parts,
    partial,
    seed,
    slope: tl.float64,
    scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns every num_programs-th part of CSR, so that few parts of grad_att
    ``[programs, H, C]`` are left to add; it writes its own, and its rows of grad_dst."""
    pid = tl.program_id(0)
    dtype: tl.constexpr = att_parts.dtype.element_ty
    head, slope, scale = settings(slope, scale, dtype, tile)
    drop = (seed, scale, threshold)
    att_part = tl.zeros([tile.BH, tile.BC], dtype)
    for item in range(pid, singles, tl.num_programs(0)):
        row, begin, end, there = single_row(work, rows, chunks, item)
        if there:
            att_part += destination_rows(
                work,
                Part(row, begin, end, item, item < chunks),
                x,
                given,
                scores,
                grad_dst,
                grad_edge,
                partial,
                slope,
                drop,
                head,
                tile,
                tile.big,
            )
    if work.order is not None:
        for item in range(singles + pid, singles + packs, tl.num_programs(0)):
            pack, first, last, _ = tiny_rows(work, rows, item - singles, tile.tiny.rows)
            att_part += destination_rows(
                work,
                Part(pack, first, last, item, False),
                x,
                given,
                scores,
                grad_dst,
                grad_edge,
                partial,
                slope,
                drop,
                head,
                tile,
                tile.tiny,
            )
    at = pid.to(tl.int64) * (tile.H * tile.C) + features(head, tile)
    tl.store(att_parts + at, att_part, mask=in_row(head, tile))


@triton.jit
def source_rows(
    work,
    part,
    x,
    given,
    scores,
    grad_src,
    partial,
    slope,
    drop,
    head,
    tile: tl.constexpr,
    block: tl.constexpr,
):
    """grad_src of a part's rows."""
    att = load_att(scores, head, tile)
    dtype: tl.constexpr = att.dtype
    used = part.end > part.begin  # what belongs to a row without edges may not be finite
    x_src = load_rows(x.data, part.row * x.stride * tile.UNIT, used, head, tile)
    x_src = x_src.to(dtype)[:, None, :, :]
    reached = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    rest = tl.zeros([block.rows, block.sums, tile.BH, tile.BC], dtype)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        # gather D rows of dO and x_dst, and their logits' gradients
        place, there = edges(part.begin, part.end, step, block.edges)
        dst = ids(work.col, place, there)
        d_out, x_dst, fields = load_destination(given, scores, dst, there, head, tile)
        x_j, weight, d_logit = edge_gradients(
            work,
            given,
            scores,
            att,
            x_src,
            d_out,
            x_dst,
            fields,
            place,
            there,
            slope,
            drop,
            head,
            tile,
        )
        # what reaches the source through them, and through the sum of its features
        by_j, _ = scores.scorer.reach(x_j, x_dst, slope)
        reached = fold(reached, d_logit[:, :, :, None] * by_j)
        rest = fold(rest, weight[:, :, :, None] * d_out)
    reached, rest = tl.sum(reached, axis=1), tl.sum(rest, axis=1)
    store_gradient(grad_src, partial, part, reached, att, rest, head, tile)


@triton.jit(do_not_specialize=SIZES)
def by_source(
    work,
    rows,
    singles,
    chunks,
    x,
    given,
    scores,
    grad_src,
    partial,
    seed,
    slope: tl.float64,
    scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns a part of CSC, and writes its rows of grad_src."""
    dtype: tl.constexpr = given.fields.dtype.element_ty
    head, slope, scale = settings(slope, scale, dtype, tile)
    drop = (seed, scale, threshold)
    each_part(
        source_rows,
        work,
        rows,
        singles,
        chunks,
        (x, given, scores, grad_src, partial, slope, drop, head),
        tile,
    )


@triton.jit
def merge(work, to, scores, partial, tile: tl.constexpr):
    """The program of a hub's first chunk owns its row of a gradient."""
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    row, _, _, _, _, reached, rest = merge_chunks(work, partial, False, head, tile)
    grad = reached * tl.sum(load_att(scores, head, tile), axis=1) + rest
    store_rows(to, row * (tile.H * tile.C), grad, row >= 0, head, tile)
