"""GAT's scores from features, and the gradients that come back through them: R rows at a time."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gatkernels.backends.triton.common import (
    SIZES,
    features,
    in_row,
    load_heads,
    load_rows,
    store_heads,
    store_rows,
)


class Vectors(NamedTuple):
    """Attention vectors ``[H, C]``, and ``[N, H]`` of each: the scores, or their gradients."""

    att_src: Any
    att_dst: Any  # or None
    src: Any
    dst: Any  # or None


@triton.jit
def load_att(att, head, dtype: tl.constexpr, tile: tl.constexpr):
    return tl.load(att + features(head, tile), mask=in_row(head, tile), other=0.0).to(dtype)


@triton.jit(do_not_specialize=SIZES)
def scores(rows, x, to, tile: tl.constexpr):
    """A program owns R rows, and writes their scores."""
    R: tl.constexpr = tile.tiny.rows
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    there = row < rows
    dtype: tl.constexpr = to.src.dtype.element_ty
    feature = load_rows(x.data, row * x.stride * tile.UNIT, there, head, tile).to(dtype)
    src = load_att(to.att_src, head, dtype, tile)
    score = tl.sum(feature * src[None, :, :], axis=2)
    store_heads(to.src, tile.H, row, score, there, head, tile)
    if to.att_dst is not None:
        dst = load_att(to.att_dst, head, dtype, tile)
        score = tl.sum(feature * dst[None, :, :], axis=2)
        store_heads(to.dst, tile.H, row, score, there, head, tile)


@triton.jit
def passed_on(x, score, used, att, total):
    """A row's gradient with what comes through its score, and what its features give att's."""
    row_part = score[:, :, None] * att[None, :, :]
    return row_part, total + tl.sum(tl.where(used, score[:, :, None] * x, 0.0), axis=0)


@triton.jit(do_not_specialize=SIZES)
def gradients(rows, x, grad_x, grads, parts, tile: tl.constexpr):
    """A program owns every num_programs-th R rows, and adds to their ``grad_x``.

    ``parts [programs, vectors, H, C]``: what its rows give the attention vectors' gradients.
    """
    R: tl.constexpr = tile.tiny.rows
    pid = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    dtype: tl.constexpr = grads.src.dtype.element_ty
    vectors: tl.constexpr = 1 if grads.att_dst is None else 2
    att_src = load_att(grads.att_src, head, dtype, tile)
    total_src = tl.zeros([tile.BH, tile.BC], dtype)
    total_dst = tl.zeros([tile.BH, tile.BC], dtype)
    if grads.att_dst is not None:
        att_dst = load_att(grads.att_dst, head, dtype, tile)
    for first in range(pid * R, rows, tl.num_programs(0) * R):
        row = first + tl.arange(0, R)
        there = row < rows
        feature = load_rows(x.data, row * x.stride * tile.UNIT, there, head, tile).to(dtype)
        at = row * grad_x.stride * tile.UNIT
        total = load_rows(grad_x.data, at, there, head, tile).to(dtype)
        src = load_heads(grads.src, tile.H, row, there, head, tile)
        # a node without edges has no gradient, and its features may not be finite
        used = (src != 0.0)[:, :, None]
        if grads.att_dst is not None:
            dst = load_heads(grads.dst, tile.H, row, there, head, tile)
            used = used | (dst != 0.0)[:, :, None]
            part, total_dst = passed_on(feature, dst, used, att_dst, total_dst)
            total += part
        part, total_src = passed_on(feature, src, used, att_src, total_src)
        total += part
        store_rows(grad_x.data, at, total, there, head, tile)
    to = parts + pid * (vectors * tile.H * tile.C) + features(head, tile)
    mask = in_row(head, tile)
    tl.store(to, total_src, mask=mask)
    if grads.att_dst is not None:
        tl.store(to + tile.H * tile.C, total_dst, mask=mask)
