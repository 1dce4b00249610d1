"""Attention by dot products, backward: a prologue, a pass over CSR for the destinations and the
edges, one over CSC for the sources.

Per edge, with ``dl = scale alpha (m (<dO, v> + <dE, edge>) - delta)``, where dE is the gradient of
edge_out::

    grad_q += dl k    grad_query += dl edge    grad_edge = sum_h (dl query + alpha m dE)
    grad_k += dl q    grad_v += alpha m dO

An edge's heads may be of several programs: each then has a place for its share of grad_edge.
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
    load_heads,
    load_rows,
    merge_chunks,
    settings,
    store_partial,
    store_rows,
)
from gatkernels.backends.triton.dot import gather, gather_edges, logits, no_sums
from gatkernels.backends.triton.rowwise_backward import load_fields, store_fields
from gatkernels.backends.triton.separable_backward import attention_share


class Saved(NamedTuple):
    """What the forward left, and the gradient of ``alpha`` where there is one."""

    out: Any  # [Nd, H, D]
    edge_out: Any  # [Nd, H, F] or None
    stats: Any  # [Nd, 3, H]
    alpha: Any  # [E, H] after dropout, or None
    grad_alpha: Any  # [E, H] or None


class Grads(NamedTuple):
    """Gradients of results, the first two :class:`Rows`, and what a prologue makes of them."""

    out: Any  # [Nd, H, D]
    edge_out: Any  # [Nd, H, F] or None
    alpha: Any  # [E, H] or None
    fields: Any  # [Nd, 3, H]


class Destination(NamedTuple):
    """Rows of destinations ``[..., BH, width]``, and their fields, each ``[..., BH]``."""

    q: Any
    query: Any
    d_out: Any
    d_edge_out: Any
    fields: Any


@triton.jit(do_not_specialize=SIZES)
def prologue(work, rows, grads, saved, tile: tl.constexpr):
    """A program owns R destinations, and writes their fields: maximum, 1 / sum, delta."""
    # several rows, or one and its edges
    R: tl.constexpr = tile.tiny.rows if saved.grad_alpha is None else 1
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    there = row < rows
    dtype: tl.constexpr = grads.fields.dtype.element_ty
    d_out = gather(grads.out, row, there, head, dtype, tile.v)
    at = row * (tile.H * tile.v.C)
    delta = tl.sum(load_rows(saved.out, at, there, head, tile.v).to(dtype) * d_out, axis=2)
    if grads.edge_out is not None:
        d_out = gather(grads.edge_out, row, there, head, dtype, tile.query)
        at = row * (tile.H * tile.query.C)
        out = load_rows(saved.edge_out, at, there, head, tile.query)
        delta += tl.sum(out.to(dtype) * d_out, axis=2)
    if saved.grad_alpha is not None:
        delta += attention_share(work, saved, None, row, there, delta, head, tile)[0]
    store_fields(grads.fields, saved.stats, delta, row, there, head, tile)


@triton.jit
def load_destination(given, grads, node, there, head, tile: tl.constexpr):
    dtype: tl.constexpr = grads.fields.dtype.element_ty
    q = gather(given.q, node, there, head, dtype, tile.k)
    query = gather(given.query, node, there, head, dtype, tile.query)
    d_out = gather(grads.out, node, there, head, dtype, tile.v)
    d_edge_out = gather(grads.edge_out, node, there, head, dtype, tile.query)
    fields = load_fields(grads.fields, node, there, head, tile)
    return Destination(q, query, d_out, d_edge_out, fields)


@triton.jit
def edge_gradients(
    work, grads, dst, k, v, edge, place, there, scale, drop, head, tile: tl.constexpr
):
    """``alpha m`` and ``dl [R, D, BH, 1]``; the rows of one end have D = 1."""
    top, inverse, delta = dst.fields
    with_edge: tl.constexpr = grads.edge_out is not None
    logit = logits(dst.q, k, dst.query, edge, scale, with_edge)
    alpha = tl.where(there[:, :, None], tl.exp(logit - top) * inverse, 0.0)
    weight = dropped(alpha, drop, work, place, there, head, tile)
    gain = tl.sum(dst.d_out * v, axis=3)
    if with_edge:
        gain += tl.sum(dst.d_edge_out * edge, axis=3)
    if grads.alpha is not None:
        eid = ids(work.eid, place, there)
        gain += load_heads(grads.alpha, tile.H, eid, there, head, tile)
    d_logit = scale * (weight * gain - alpha * delta)
    return weight[:, :, :, None], d_logit[:, :, :, None]


@triton.jit
def store_gradient(to, partial, part, total, head, tile: tl.constexpr):
    """A gradient's rows, or the sums of a hub's chunk."""
    total = tl.sum(total, axis=1)
    if part.of_hub:
        store_partial(partial, part.number, None, None, None, total, None, head, tile)
    else:
        store_rows(to, part.row * (tile.H * tile.C), total, part.row >= 0, head, tile)


@triton.jit
def destination_rows(
    work,
    part,
    given,
    grads,
    to,
    partial,
    scale,
    drop,
    head,
    tile: tl.constexpr,
    block: tl.constexpr,
):
    """grad_q and grad_query of a part's rows, and grad_edge of their edges."""
    dtype: tl.constexpr = grads.fields.dtype.element_ty
    used = part.end > part.begin  # what belongs to a row without edges may not be finite
    dst = load_destination(given, grads, part.row[:, None], used[:, None], head, tile)
    grad_q = no_sums(block, dtype, tile.k)
    grad_query = no_sums(block, dtype, tile.query)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        place, there = edges(part.begin, part.end, step, block.edges)
        src = ids(work.col, place, there)
        k = gather(given.k, src, there, head, dtype, tile.k)
        v = gather(given.v, src, there, head, dtype, tile.v)
        edge = gather_edges(work, given, place, there, dtype, tile)
        weight, d_logit = edge_gradients(
            work, grads, dst, k, v, edge, place, there, scale, drop, head, tile
        )
        grad_q = fold(grad_q, d_logit * k)
        if given.edge is not None:
            grad_query = fold(grad_query, d_logit * edge)
        if to.edge is not None:
            share = tl.sum(d_logit * dst.query + weight * dst.d_edge_out, axis=2, keep_dims=True)
            at = ids(work.eid, place, there) * tile.groups + tl.program_id(1)
            store_rows(to.edge, at * tile.edge.C, share, there, tl.arange(0, 1), tile.edge)
    store_gradient(to.q, partial.nodes, part, grad_q, head, tile.k)
    if given.edge is not None:
        store_gradient(to.edge_query, partial.edges, part, grad_query, head, tile.query)


@triton.jit(do_not_specialize=SIZES)
def by_destination(
    work,
    rows,
    singles,
    chunks,
    given,
    grads,
    to,
    partial,
    seed,
    scale: tl.float64,
    keep_scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns a part of CSR, and writes the gradients of its rows and edges."""
    dtype: tl.constexpr = grads.fields.dtype.element_ty
    head, scale, keep_scale = settings(scale, keep_scale, dtype, tile)
    drop = (seed, keep_scale, threshold)
    each_part(
        destination_rows,
        work,
        rows,
        singles,
        chunks,
        (given, grads, to, partial, scale, drop, head),
        tile,
    )


@triton.jit
def source_rows(
    work,
    part,
    given,
    grads,
    to,
    partial_k,
    partial_v,
    scale,
    drop,
    head,
    tile: tl.constexpr,
    block: tl.constexpr,
):
    """grad_k and grad_v of a part's rows."""
    dtype: tl.constexpr = grads.fields.dtype.element_ty
    used = part.end > part.begin  # what belongs to a row without edges may not be finite
    row, used = part.row[:, None], used[:, None]
    k = gather(given.k, row, used, head, dtype, tile.k)
    v = gather(given.v, row, used, head, dtype, tile.v)
    grad_k = no_sums(block, dtype, tile.k)
    grad_v = no_sums(block, dtype, tile.v)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        place, there = edges(part.begin, part.end, step, block.edges)
        node = ids(work.col, place, there)
        dst = load_destination(given, grads, node, there, head, tile)
        edge = gather_edges(work, given, place, there, dtype, tile)
        weight, d_logit = edge_gradients(
            work, grads, dst, k, v, edge, place, there, scale, drop, head, tile
        )
        grad_k = fold(grad_k, d_logit * dst.q)
        grad_v = fold(grad_v, weight * dst.d_out)
    store_gradient(to.k, partial_k, part, grad_k, head, tile.k)
    store_gradient(to.v, partial_v, part, grad_v, head, tile.v)


@triton.jit(do_not_specialize=SIZES)
def by_source(
    work,
    rows,
    singles,
    chunks,
    given,
    grads,
    to,
    partial_k,
    partial_v,
    seed,
    scale: tl.float64,
    keep_scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns a part of CSC, and writes its rows of the sources' gradients."""
    dtype: tl.constexpr = grads.fields.dtype.element_ty
    head, scale, keep_scale = settings(scale, keep_scale, dtype, tile)
    drop = (seed, keep_scale, threshold)
    each_part(
        source_rows,
        work,
        rows,
        singles,
        chunks,
        (given, grads, to, partial_k, partial_v, scale, drop, head),
        tile,
    )


@triton.jit
def merge(work, to, partial, tile: tl.constexpr):
    """The program of a hub's first chunk owns its row of a gradient."""
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    row, _, _, _, _, total, _ = merge_chunks(work, partial, False, head, tile)
    store_rows(to, row * (tile.H * tile.C), total, row >= 0, head, tile)
