"""GAT's scores from features, and the gradients that come back through them: R rows at a time."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

from gatkernels.backends.triton.common import SIZES, features, in_row, load_heads, load_rows


class Vectors(NamedTuple):
    """Attention vectors ``[H, C]``, and ``[N, H]`` of each: the scores, or their gradients."""

    att_src: Any
    att_dst: Any  # or None
    src: Any
    dst: Any  # or None


@triton.jit
def load_att(att, head, dtype: tl.constexpr, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):
    return tl.load(att + features(head, C, BC), mask=in_row(head, H, C, BC), other=0.0).to(dtype)


@triton.jit(do_not_specialize=SIZES)
def scores(rows, x, to, H: tl.constexpr, C: tl.constexpr, BH: tl.constexpr, BC: tl.constexpr,
           UNIT: tl.constexpr, R: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    there = row < rows
    dtype: tl.constexpr = to.src.dtype.element_ty
    feature = load_rows(x.data, row * x.stride * UNIT, there, head, H, C, BC).to(dtype)
    at = row[:, None] * H + head[None, :]
    mask = there[:, None] & (head < H)[None, :]
    src = load_att(to.att_src, head, dtype, H, C, BC)
    tl.store(to.src + at, tl.sum(feature * src[None, :, :], axis=2), mask=mask)
    if to.att_dst is not None:
        dst = load_att(to.att_dst, head, dtype, H, C, BC)
        tl.store(to.dst + at, tl.sum(feature * dst[None, :, :], axis=2), mask=mask)


@triton.jit
def passed_on(x, score, used, att, total):
    """A row's gradient with what comes through its score, and what its features give att's."""
    row_part = score[:, :, None] * att[None, :, :]
    return row_part, total + tl.sum(tl.where(used, score[:, :, None] * x, 0.0), axis=0)


@triton.jit(do_not_specialize=SIZES)
def gradients(rows, x, grad_x, grads, parts, H: tl.constexpr, C: tl.constexpr,
              BH: tl.constexpr, BC: tl.constexpr, UNIT: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Adds to ``grad_x``; ``parts [programs, vectors, H, C]``: the sums of each program's rows."""
    pid = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BH + tl.arange(0, BH)
    dtype: tl.constexpr = grads.src.dtype.element_ty
    vectors: tl.constexpr = 1 if grads.att_dst is None else 2
    att_src = load_att(grads.att_src, head, dtype, H, C, BC)
    total_src = tl.zeros([BH, BC], dtype)
    total_dst = tl.zeros([BH, BC], dtype)
    if grads.att_dst is not None:
        att_dst = load_att(grads.att_dst, head, dtype, H, C, BC)
    for first in range(pid * R, rows, tl.num_programs(0) * R):
        row = first + tl.arange(0, R)
        there = row < rows
        feature = load_rows(x.data, row * x.stride * UNIT, there, head, H, C, BC).to(dtype)
        at = row * grad_x.stride * UNIT
        total = load_rows(grad_x.data, at, there, head, H, C, BC).to(dtype)
        src = load_heads(grads.src, H, row, there, head, H)
        # a node without edges has no gradient, and its features may not be finite
        used = (src != 0.0)[:, :, None]
        if grads.att_dst is not None:
            dst = load_heads(grads.dst, H, row, there, head, H)
            used = used | (dst != 0.0)[:, :, None]
            part, total_dst = passed_on(feature, dst, used, att_dst, total_dst)
            total += part
        part, total_src = passed_on(feature, src, used, att_src, total_src)
        total += part
        mask = there[:, None, None] & in_row(head, H, C, BC)[None, :, :]
        tl.store(
            grad_x.data + at[:, None, None] + features(head, C, BC)[None, :, :], total, mask=mask
        )
    to = parts + pid * (vectors * H * C) + features(head, C, BC)
    mask = in_row(head, H, C, BC)
    tl.store(to, total_src, mask=mask)
    if grads.att_dst is not None:
        tl.store(to + H * C, total_dst, mask=mask)
