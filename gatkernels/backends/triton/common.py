"""What every Triton kernel does: find its rows, gather, draw the dropout mask, merge hubs.

A program owns up to BH heads, by ``program_id(1)``, and by ``program_id(0)`` a part of the edges:
a chunk of a hub's, a big row's (up to a chunk of edges), or those of a pack of tiny rows.

Shape tags: H heads and C channels of a row, BH heads and BC channels of a program (powers of two);
R rows of the graph, D edges of each at a time, A sums of each side by side: D, or 1 where threads
add up edges by themselves. The numbers are in :class:`tiling.Tile`, for big rows (R = 1) and tiny
ones. Addresses are 64-bit: ids are widened before they are multiplied.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from typing import Any, NamedTuple

import triton
import triton.language as tl

#: Where a softmax over logits of -inf starts: -inf - LOWEST is -inf, -inf - -inf is not a number.
LOWEST = tl.constexpr(-3.4028234663852886e38)


#: Arguments that differ from graph to graph: no kernel is compiled anew for their values.
#: ``singles``: programs of a single row, the ``chunks`` of hubs and then the big rows.
SIZES = ("rows", "singles", "chunks", "packs")


class Work(NamedTuple):
    """A graph's edges by row, its :class:`Schedule`, edges of a chunk."""

    rowptr: Any
    col: Any
    eid: Any
    draw: Any  # what dropout draws by; None: eid
    chunk_row: Any
    chunk_end: Any
    order: Any  # or None: every row is a big one, in the order of the numbers
    bigs: Any  # or None
    chunk: int
    first_head: Any  # to dropout's draws; None: 0


class Rows(NamedTuple):
    """A matrix whose rows are ``stride * UNIT`` elements apart; UNIT lets loads be 128-bit."""

    data: Any
    stride: int


class Part(NamedTuple):
    """What a program works on: rows ``[R]``, -1 where there is none, and some of their edges."""

    row: Any
    begin: Any
    end: Any
    number: Any
    of_hub: Any  # the part is chunk ``number``, whose sums a merge adds to those of others


class Partial(NamedTuple):
    """What the chunks of hubs leave behind for the merge."""

    sums: Any  # [chunks, 3, H], a softmax's maximum and two sums; or [chunks, H]; or None
    rows: Any  # [chunks, H, C]
    rows2: Any  # [chunks, H, C] or None


@triton.jit
def one(value):
    """``[1]``, as what belongs to the one row of a program."""
    return value + tl.zeros([1], tl.int64)


@triton.jit
def first_chunk(work, row):
    return tl.load(work.chunk_end + row - 1, mask=row > 0, other=0)


@triton.jit
def single_row(work, rows, chunks, pid):
    """Row, first and last edge ``[1]`` of a chunk or a big row, and if there is one."""
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
def load_heads(data, stride, node, there, head, tile: tl.constexpr):
    """``[..., BH]`` values of the heads of each node."""
    at = tl.expand_dims(node * stride, -1) + head
    return tl.load(data + at, mask=tl.expand_dims(there, -1) & (head < tile.H), other=0.0)


@triton.jit
def features(head, tile: tl.constexpr):
    """Places ``[BH, BC]`` in a row of H * C features."""
    return head[:, None] * tile.C + tl.arange(0, tile.BC)[None, :]


@triton.jit
def in_row(head, tile: tl.constexpr):
    return (head < tile.H)[:, None] & (tl.arange(0, tile.BC) < tile.C)[None, :]


@triton.jit
def load_rows(data, at, there, head, tile: tl.constexpr):
    """``[..., BH, BC]`` rows of contiguous features, which start at elements ``at``."""
    start = tl.expand_dims(tl.expand_dims(at, -1), -1)
    mask = tl.expand_dims(tl.expand_dims(there, -1), -1) & in_row(head, tile)
    return tl.load(data + start + features(head, tile), mask=mask, other=0.0)


@triton.jit
def store_heads(to, stride, node, value, there, head, tile: tl.constexpr):
    """``value [..., BH]`` where :func:`load_heads` finds it."""
    at = tl.expand_dims(node * stride, -1) + head
    tl.store(to + at, value, mask=tl.expand_dims(there, -1) & (head < tile.H))


@triton.jit
def store_rows(to, at, value, there, head, tile: tl.constexpr):
    """``value [..., BH, BC]`` where :func:`load_rows` finds it."""
    start = tl.expand_dims(tl.expand_dims(at, -1), -1)
    mask = tl.expand_dims(tl.expand_dims(there, -1), -1) & in_row(head, tile)
    tl.store(to + start + features(head, tile), value, mask=mask)


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
def dropped(weight, drop, work, place, there, head, tile: tl.constexpr):
    """``weight [R, D, BH]`` of edges after dropout, ``drop = (seed, scale, threshold)``.

    A head is kept where its word of Philox4x32-10 reaches the threshold, see csrc/core/philox.h.
    """
    seed, scale, threshold = drop
    if seed is None:
        return weight
    else:
        draw = ids(work.eid if work.draw is None else work.draw, place, there)
        low = (draw[:, :, None] & 0xFFFFFFFF).to(tl.uint32)
        if work.first_head is None:
            words = aligned_words(tl.load(seed), low, head, tile)
        else:
            words = words_of_each(tl.load(seed), low, head + work.first_head)
        return tl.where(words.to(tl.int64) >= threshold, weight * scale, 0.0)


@triton.jit
def aligned_words(seed, low, head, tile: tl.constexpr):
    """``[R, D, BH]``, four heads of a draw, the first of them a multiple of four."""
    G: tl.constexpr = (tile.BH + 3) // 4
    if tile.BH < 4:
        return words_of_each(seed, low, head)
    else:
        group = (tl.min(head, axis=0) // 4 + tl.arange(0, G)).to(tl.uint32)
        zero = tl.zeros([low.shape[0], low.shape[1], G], tl.uint32)
        w0, w1, w2, w3 = tl.philox(seed, low + zero, zero, group + zero, zero)
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
        return words.reshape(low.shape[0], low.shape[1], tile.BH)


@triton.jit
def words_of_each(seed, low, head):
    """``[R, D, BH]``, a draw for each head."""
    lane, group = (head % 4)[None, None, :], (head // 4).to(tl.uint32)
    zero = tl.zeros([low.shape[0], low.shape[1], head.shape[0]], tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low + zero, zero, group + zero, zero)
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))


@triton.jit
def settings(slope, scale, dtype: tl.constexpr, tile: tl.constexpr):
    """The heads of this program, and what :func:`leaky` and :func:`dropped` multiply by.

    Triton before 3.7 returns no tuple with None among it, as a seed may be.
    """
    head = tl.program_id(1) * tile.BH + tl.arange(0, tile.BH)
    return head, tl.full([1, 1, 1], slope, dtype), tl.full([1, 1, 1], scale, dtype)


@triton.jit
def each_part(body, work, rows, singles, chunks, args, tile: tl.constexpr):
    """Calls ``body(work, part, *args, tile, block)`` for the part of this program."""
    pid = tl.program_id(0)
    if pid < singles:
        row, begin, end, there = single_row(work, rows, chunks, pid)
        if there:
            body(work, Part(row, begin, end, pid, pid < chunks), *args, tile, tile.big)
    elif work.order is not None:
        pack, first, last, there = tiny_rows(work, rows, pid - singles, tile.tiny.rows)
        if there:
            body(work, Part(pack, first, last, pid, False), *args, tile, tile.tiny)


@triton.jit
def store_partial(to, chunk, top, total, total2, acc, acc2, head, tile: tl.constexpr):
    """The sums ``[1, ...]`` of a hub's chunk; no ``top``: they are no softmax's."""
    H: tl.constexpr = tile.H
    chunk = one(chunk)
    here = chunk >= 0
    if top is not None:
        store_heads(to.sums, 3 * H, chunk, top, here, head, tile)
        store_heads(to.sums + H, 3 * H, chunk, total, here, head, tile)
        store_heads(to.sums + 2 * H, 3 * H, chunk, total2, here, head, tile)
    elif to.sums is not None:
        store_heads(to.sums, H, chunk, total, here, head, tile)
    store_rows(to.rows, chunk * (H * tile.C), acc, here, head, tile)
    if to.rows2 is not None:
        store_rows(to.rows2, chunk * (H * tile.C), acc2, here, head, tile)


@triton.jit
def merge_chunks(work, partial, softmax: tl.constexpr, head, tile: tl.constexpr):
    """The hub whose first chunk is this program's, if it is one, and its chunks' sums in order."""
    row, begin, end = hub_of(work, tl.program_id(0))
    D: tl.constexpr = tile.big.edges
    H: tl.constexpr = tile.H
    dtype: tl.constexpr = partial.rows.dtype.element_ty
    best = tl.full([1, D, tile.BH], LOWEST, dtype)
    if softmax:
        for step in range(0, tl.max(end - begin, axis=0), D):
            chunk, there = edges(begin, end, step, D)
            top = load_heads(partial.sums, 3 * H, chunk.to(tl.int64), there, head, tile)
            best = tl.maximum(best, tl.where(there[:, :, None], top, LOWEST))
    best = tl.max(best, axis=1)
    total = tl.zeros([1, D, tile.BH], dtype)
    total2 = tl.zeros([1, D, tile.BH], dtype)
    acc = tl.zeros([1, tile.big.sums, tile.BH, tile.BC], dtype)
    acc2 = tl.zeros([1, tile.big.sums, tile.BH, tile.BC], dtype)
    for step in range(0, tl.max(end - begin, axis=0), D):
        chunk, there = edges(begin, end, step, D)
        chunk = chunk.to(tl.int64)
        factor = tl.full([1, D, tile.BH], 1.0, dtype)
        if softmax:
            top = load_heads(partial.sums, 3 * H, chunk, there, head, tile)
            factor = tl.where(there[:, :, None], tl.exp(top - best[:, None, :]), 0.0)
            total += factor * load_heads(partial.sums + H, 3 * H, chunk, there, head, tile)
            total2 += factor * load_heads(partial.sums + 2 * H, 3 * H, chunk, there, head, tile)
        elif partial.sums is not None:
            total += load_heads(partial.sums, H, chunk, there, head, tile)
        factor = factor[:, :, :, None]
        at = chunk * (H * tile.C)
        acc = fold(acc, factor * load_rows(partial.rows, at, there, head, tile))
        if partial.rows2 is not None:
            acc2 = fold(acc2, factor * load_rows(partial.rows2, at, there, head, tile))
    total, total2 = tl.sum(total, axis=1), tl.sum(total2, axis=1)
    acc, acc2 = tl.sum(acc, axis=1), tl.sum(acc2, axis=1)
    return row, end > begin, best, total, total2, acc, acc2
