"""What every Triton kernel does: find its rows, gather, draw the dropout mask.

Shape tags: R rows of the graph, D edges of each at a time, BH heads, BC channels of a program. A
program works on one segment of a row (R = 1, D edges side by side) or on R tiny rows (few edges of
each). Addresses are 64-bit: ids are widened before they are multiplied.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

#: Where a softmax over logits of -inf starts: -inf - LOWEST is -inf, -inf - -inf is not a number.
LOWEST = tl.constexpr(-3.4028234663852886e38)


#: Arguments that differ from graph to graph: no kernel is compiled anew for their values.
SIZES = ("rows", "segments", "chunks", "packs")


class Work(NamedTuple):
    """A graph's edges by row, its :class:`Schedule`, edges of a chunk."""

    rowptr: Any
    col: Any
    eid: Any
    chunk_row: Any
    chunk_end: Any
    order: Any  # or None: every row is a big one, in the order of the numbers
    bigs: Any  # or None
    chunk: int


class Rows(NamedTuple):
    """A matrix whose rows are ``stride * UNIT`` elements apart; UNIT lets loads be 128-bit."""

    data: Any
    stride: int


@triton.jit
def one(value):
    """``[1]``, as what belongs to the one row of a program."""
    return value + tl.zeros([1], tl.int64)


@triton.jit
def first_chunk(work, row):
    return tl.load(work.chunk_end + row - 1, mask=row > 0, other=0)


@triton.jit
def segment_of(work, rows, chunks, pid):
    """Row, first and last edge ``[1]`` of a program, a chunk or a big row, and if there is one."""
    if pid < chunks:
        row = tl.load(work.chunk_row + pid).to(tl.int64)
        there = row >= 0
        begin = tl.load(work.rowptr + row, mask=there, other=0)
        begin += (pid - first_chunk(work, row)) * work.chunk
        end = tl.load(work.rowptr + row + 1, mask=there, other=0)
        end = tl.minimum(end, begin + work.chunk)
    else:
        at = (pid - chunks).to(tl.int64)
        if work.order is None:
            there = at < rows
            row = at
        else:
            there = at < tl.load(work.bigs)
            row = tl.load(work.order + at, mask=there, other=0).to(tl.int64)
        begin = tl.load(work.rowptr + row, mask=there, other=0)
        end = tl.load(work.rowptr + row + 1, mask=there, other=0)
        there = there & (end - begin <= work.chunk)  # a hub's chunks are above
    return one(row), one(begin), one(end), there


@triton.jit
def tiny_rows(work, rows, pack, R: tl.constexpr):
    """Rows, first and last edges ``[R]`` of a pack, and if there are any; no row is -1."""
    at = tl.load(work.bigs) + pack * R + tl.arange(0, R)
    there = at < rows
    row = tl.load(work.order + at, mask=there, other=-1)
    begin = tl.load(work.rowptr + row, mask=there, other=0)
    end = tl.load(work.rowptr + row + 1, mask=there, other=0)
    return row.to(tl.int64), begin, end, tl.load(work.bigs) + pack * R < rows


@triton.jit
def hub_of(work, pid):
    """A hub, its first chunk and the one after its last, ``[1]``; row -1 but for a first chunk."""
    row = tl.load(work.chunk_row + pid).to(tl.int64)
    first = (row >= 0) & (first_chunk(work, row) == pid)
    end = tl.load(work.chunk_end + row, mask=first, other=pid)
    return one(tl.where(first, row, -1)), one(pid), one(end)


@triton.jit
def edges(begin, end, step, D: tl.constexpr):
    """Places ``[R, D]`` of the edges from ``begin + step`` on, and which of them are there."""
    place = begin[:, None] + step + tl.arange(0, D)[None, :]
    return place, place < end[:, None]


@triton.jit
def ids(data, place, there):
    return tl.load(data + place, mask=there, other=0).to(tl.int64)


@triton.jit
def load_heads(data, stride, node, there, head, H: tl.constexpr):
    """``[..., BH]`` values of the heads of each node."""
    at = tl.expand_dims(node * stride, -1) + head
    return tl.load(data + at, mask=tl.expand_dims(there, -1) & (head < H), other=0.0)


@triton.jit
def features(head, C: tl.constexpr, BC: tl.constexpr):
    """Places ``[BH, BC]`` in a row of H * C features."""
    return head[:, None] * C + tl.arange(0, BC)[None, :]


@triton.jit
def in_row(head, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):
    return (head < H)[:, None] & (tl.arange(0, BC) < C)[None, :]


@triton.jit
def load_rows(data, node, there, head, H: tl.constexpr, C: tl.constexpr, BC: tl.constexpr):
    """``[..., BH, BC]`` rows of contiguous features, ``data`` being at the start of row 0."""
    start = tl.expand_dims(tl.expand_dims(node, -1), -1)
    mask = tl.expand_dims(tl.expand_dims(there, -1), -1) & in_row(head, H, C, BC)
    return tl.load(data + start + features(head, C, BC), mask=mask, other=0.0)


@triton.jit
def fold(total, term):
    """Adds edges ``[R, D, ...]`` to a total that has them side by side, or summed (D = 1)."""
    if total.shape[1] == term.shape[1]:
        return total + term
    else:
        return total + tl.sum(term, axis=1, keep_dims=True)


@triton.jit
def leaky(s, slope):
    return tl.where(s > 0, s, slope * s)


@triton.jit
def dropped(weight, drop, work, place, there, head, BH: tl.constexpr):
    """``weight [R, D, BH]`` of edges after dropout, ``drop = (seed, scale, threshold)``.

    A head is kept where its word of Philox4x32-10 reaches the threshold, see csrc/core/philox.h.
    """
    seed, scale, threshold = drop
    if seed is None:
        return weight
    else:
        G: tl.constexpr = (BH + 3) // 4
        eid = ids(work.eid, place, there)
        low = (eid[:, :, None] & 0xFFFFFFFF).to(tl.uint32)
        group = (tl.min(head, axis=0) // 4 + tl.arange(0, G)).to(tl.uint32)
        zero = tl.zeros([eid.shape[0], eid.shape[1], G], tl.uint32)
        w0, w1, w2, w3 = tl.philox(tl.load(seed), low + zero, zero, group + zero, zero)
        if BH >= 4:
            words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
            words = words.reshape(eid.shape[0], eid.shape[1], BH)
        else:
            lane = (head % 4)[None, None, :]
            words = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
        return tl.where(words.to(tl.int64) >= threshold, weight * scale, 0.0)
