"""Attention by dot products, forward: rows of keys give the logits, rows of values the sum.

``l_e = scale (<q_i, k_j> + <query_i, edge_e>)``. The running maximum is raised, and the sums
rescaled, once per step of D edges. Rows are of three widths: ``tile.k`` is of q and k,
``tile.v`` of v and out, ``tile.query`` of what edge features meet, which are ``tile.edge``.
Without edge features nothing is compiled of them.
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


class Given(NamedTuple):
    """The inputs: :class:`Rows` but for ``edge``."""

    q: Any  # [Nd, H, C]
    k: Any  # [Ns, H, C]
    v: Any  # [Ns, H, D]
    edge: Any  # [E, F] or None
    query: Any  # [Nd, H, F] or None


class Sides(NamedTuple):
    """What nodes' values and, where there are some, edges' features each have one of."""

    nodes: Any
    edges: Any


@triton.jit
def gather(rows, node, there, head, dtype: tl.constexpr, tile: tl.constexpr):
    """``[..., BH, BC]`` rows of nodes; a zero of None, as Triton before 3.7 returns no None."""
    if rows is None:
        return tl.zeros([1, 1, 1, 1], dtype)
    else:
        return load_rows(rows.data, node * rows.stride * tile.UNIT, there, head, tile).to(dtype)


@triton.jit
def gather_edges(work, given, place, there, dtype: tl.constexpr, tile: tl.constexpr):
    """``[R, D, 1, BF]`` features of edges; a zero where there are none."""
    if given.edge is None:
        return tl.zeros([1, 1, 1, 1], dtype)
    else:
        at = ids(work.eid, place, there) * tile.edge.C
        return load_rows(given.edge, at, there, tl.arange(0, 1), tile.edge).to(dtype)


@triton.jit
def logits(q, k, query, edge, scale, with_edge: tl.constexpr):
    """``[R, D, BH]`` of rows ``[R, D, BH, ...]``; those of one end have D = 1."""
    product = tl.sum(q * k, axis=3)
    if with_edge:
        product += tl.sum(query * edge, axis=3)
    return scale * product


@triton.jit
def no_sums(block: tl.constexpr, dtype: tl.constexpr, tile: tl.constexpr):
    """Zeros ``[R, A, BH, BC]`` for :func:`fold`; rows of each width have an A of their own."""
    A: tl.constexpr = 1 if tile.big.sums == 1 else block.edges
    return tl.zeros([block.rows, A, tile.BH, tile.BC], dtype)


@triton.jit
def forward_rows(
    work, part, given, to, partial, scale, drop, head, tile: tl.constexpr, block: tl.constexpr
):
    """A part's maxima and sums ``[R, BH]``, weighted sums of values and of edge features."""
    dtype: tl.constexpr = partial.nodes.rows.dtype.element_ty
    row, here = part.row[:, None], (part.row >= 0)[:, None]
    q = gather(given.q, row, here, head, dtype, tile.k)
    query = gather(given.query, row, here, head, dtype, tile.query)
    top = tl.full([block.rows, tile.BH], LOWEST, dtype)
    total = tl.zeros([block.rows, block.edges, tile.BH], dtype)
    acc = no_sums(block, dtype, tile.v)
    edge_acc = no_sums(block, dtype, tile.query)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        # gather D rows of keys and values, and score them
        place, there = edges(part.begin, part.end, step, block.edges)
        src = ids(work.col, place, there)
        k = gather(given.k, src, there, head, dtype, tile.k)
        v = gather(given.v, src, there, head, dtype, tile.v)
        edge = gather_edges(work, given, place, there, dtype, tile)
        logit = logits(q, k, query, edge, scale, given.edge is not None)
        logit = tl.where(there[:, :, None], logit, float("-inf"))
        # raise the maximum, and bring what was summed to it
        higher = tl.maximum(top, tl.max(logit, axis=1))
        factor = tl.exp(top - higher)[:, None, :]
        weight = tl.exp(logit - higher[:, None, :])
        total = total * factor + weight
        weight = dropped(weight, drop, work, place, there, head, tile)
        factor, weight = factor[:, :, :, None], weight[:, :, :, None]
        acc = fold(acc * factor, weight * v)
        if given.edge is not None:
            edge_acc = fold(edge_acc * factor, weight * edge)
        top = higher
    total, acc = tl.sum(total, axis=1), tl.sum(acc, axis=1)
    none = tl.zeros([block.rows, tile.BH], dtype)
    store_forward(to.nodes, partial.nodes, part, top, total, none, acc, acc, head, tile.v)
    if given.edge is not None:
        edge_acc = tl.sum(edge_acc, axis=1)
        store_forward(
            to.edges, partial.edges, part, top, total, none, edge_acc, edge_acc, head, tile.query
        )


@triton.jit(do_not_specialize=SIZES)
def forward(
    work,
    rows,
    singles,
    chunks,
    given,
    to,
    partial,
    seed,
    scale: tl.float64,
    keep_scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns a part of CSR, and writes its rows of ``out`` and ``edge_out``."""
    dtype: tl.constexpr = partial.nodes.rows.dtype.element_ty
    head, scale, keep_scale = settings(scale, keep_scale, dtype, tile)
    drop = (seed, keep_scale, threshold)
    each_part(
        forward_rows,
        work,
        rows,
        singles,
        chunks,
        (given, to, partial, scale, drop, head),
        tile,
    )


@triton.jit
def alpha_rows(
    work, part, given, stats, to, scale, drop, head, tile: tl.constexpr, block: tl.constexpr
):
    """The weights ``[R, D, BH]`` of a part's edges, each to its place in the user's order."""
    dtype: tl.constexpr = stats.dtype.element_ty
    row, here = part.row[:, None], (part.row >= 0)[:, None]
    q = gather(given.q, row, here, head, dtype, tile.k)
    query = gather(given.query, row, here, head, dtype, tile.query)
    top = load_heads(stats, 3 * tile.H, row, here, head, tile)
    inverse = load_heads(stats + tile.H, 3 * tile.H, row, here, head, tile)
    for step in range(0, tl.max(part.end - part.begin, axis=0), block.edges):
        place, there = edges(part.begin, part.end, step, block.edges)
        k = gather(given.k, ids(work.col, place, there), there, head, dtype, tile.k)
        edge = gather_edges(work, given, place, there, dtype, tile)
        weight = tl.exp(logits(q, k, query, edge, scale, given.edge is not None) - top) * inverse
        weight = dropped(weight, drop, work, place, there, head, tile)
        store_heads(to, tile.H, ids(work.eid, place, there), weight, there, head, tile)


@triton.jit(do_not_specialize=SIZES)
def alpha(
    work,
    rows,
    singles,
    chunks,
    given,
    stats,
    to,
    seed,
    scale: tl.float64,
    keep_scale: tl.float64,
    threshold: tl.int64,
    tile: tl.constexpr,
):
    """A program owns a part of CSR, and writes ``[E, H]`` of its edges from the statistics."""
    dtype: tl.constexpr = stats.dtype.element_ty
    head, scale, keep_scale = settings(scale, keep_scale, dtype, tile)
    drop = (seed, keep_scale, threshold)
    each_part(
        alpha_rows,
        work,
        rows,
        singles,
        chunks,
        (given, stats, to, scale, drop, head),
        tile,
    )
