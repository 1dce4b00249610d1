"""How the work is cut for the GPU: every tuning constant of the Triton kernels is here.

No GPU has measured them yet. The reasoning: attention over a graph is bound by memory, so a kernel
wants as many 16-byte loads in flight as registers allow. By Little's law an H200 (4.8 TB/s, about
0.8 microseconds) needs some 30 KB in flight on each of its 132 multiprocessors. A warp that holds
TILE = 1024 elements has 4 KB of float32 (2 KB of a 16-bit dtype) on its way, in 32 registers per
thread, and at most as many for each sum it keeps; at about 128 registers 16 such warps fit, 64 KB.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton

#: Elements of gathered rows that a warp holds at a time; half as many in float64, and where rows
#: are so short that threads share one: they keep sums of their own for each edge side by side.
TILE = 1024
#: Features from which each thread of a warp has its own, and can add up edges by itself.
ALONE = 128
#: Features for which a program takes one more warp, up to WARPS: 32 threads, 16 bytes each, twice.
WARP_FEATURES, WARPS = 256, 8
#: Features of one program; more heads than fit go to further programs.
PROGRAM_FEATURES = 2048
#: Edges and tiny rows side by side, at most; edges of a tiny row side by side.
EDGES, ROWS, TINY_EDGES = 32, 16, 2
#: Values a warp holds of what has no features, and edges side by side there.
SCALARS, SCALAR_EDGES = 256, 128
#: Programs that add up the gradient of an attention vector: enough to fill any GPU of today.
PERSISTENT = 1024
if triton.knobs.runtime.interpret:  # works on whole arrays: wide tiles and few programs are faster
    TILE, EDGES, ROWS, TINY_EDGES, SCALARS, SCALAR_EDGES = 1 << 16, 128, 256, 16, 1 << 14, 128
    PERSISTENT = 4


class Block(NamedTuple):
    """The edges that a program has in hand at a time."""

    rows: int  # R, rows of the graph
    edges: int  # D, edges of each row side by side
    scalars: int  # the same where there are no features
    sums: int  # A, sums over edges kept side by side: as many as edges, 1 where a thread holds all


class Tile(NamedTuple):
    """Compile-time constants of a launch, for all of its kernel's functions."""

    H: int  # heads
    C: int  # channels
    BH: int  # heads of a program
    BC: int  # channels, rounded up to a power of two
    UNIT: int  # row strides are multiples of this
    big: Block  # of one row: a big one, or a chunk of a hub
    tiny: Block  # of a pack of tiny rows; its ``rows`` also where rows are taken without edges
    groups: int  # programs that share the heads of a row
    warps: int


def power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def tile(heads: int, channels: int, dtype: torch.dtype, unit: int = 1, tiles: int = 1) -> Tile:
    """The tile for rows of ``heads * channels``, of which an edge needs ``tiles`` at a time."""
    block_c = power_of_two(channels)
    block_h = min(power_of_two(heads), max(1, PROGRAM_FEATURES // block_c))
    width = block_h * block_c
    warps = min(max(width * tiles // WARP_FEATURES, 1), WARPS)
    alone = width >= ALONE
    budget = TILE * warps // tiles
    budget //= (2 if dtype == torch.float64 else 1) * (1 if alone else 2)
    edges = min(max(budget // width, 1), EDGES)
    tiny_edges = min(edges, TINY_EDGES)
    scalars = min(max(SCALARS * warps // block_h, 1), SCALAR_EDGES)
    tiny_rows = min(max(budget // (width * tiny_edges), 1), ROWS)
    return Tile(
        H=heads,
        C=channels,
        BH=block_h,
        BC=block_c,
        UNIT=unit,
        big=Block(1, edges, scalars, 1 if alone else edges),
        tiny=Block(tiny_rows, tiny_edges, tiny_edges, 1 if alone else tiny_edges),
        groups=-(-heads // block_h),
        warps=warps,
    )


class DotTile(NamedTuple):
    """A launch's constants where rows differ in width, by the same heads and edges."""

    H: int
    BH: int
    k: Tile  # of rows [H, C], keys and queries
    v: Tile  # [H, D]
    query: Tile  # [H, F]
    edge: Tile  # [1, F], which the heads share
    big: Block
    tiny: Block
    groups: int
    warps: int


@functools.cache
def dot_tile(
    heads: int, sizes: tuple[int, int, int], dtype: torch.dtype, units: tuple[int, int, int]
) -> DotTile:
    """The tile for dot products of ``sizes`` C, D and F, where 0 may be no edge features at all."""
    blocks = [power_of_two(size) if size else 0 for size in sizes]
    widest = max(*blocks, 1)
    cut = tile(heads, widest, dtype, tiles=power_of_two(sum(blocks) // widest))

    def rows(channels: int, unit: int) -> Tile:
        block_c = power_of_two(channels)
        alone = cut.BH * block_c >= ALONE
        big, tiny = (b._replace(sums=1 if alone else b.edges) for b in (cut.big, cut.tiny))
        return cut._replace(C=channels, BC=block_c, UNIT=unit, big=big, tiny=tiny)

    k, v, query = map(rows, sizes, units)
    edge = query._replace(H=1, BH=1)
    return DotTile(cut.H, cut.BH, k, v, query, edge, cut.big, cut.tiny, cut.groups, cut.warps)
