"""How many heads the CUDA kernels gather at a time: fewer than all where that pays.

Edges gather rows of a matrix of features. Where this is larger than the GPU's cache, they come from
memory again for most edges. A tile of heads, done for all nodes before the next tile, may fit the
cache; but every edge and its scores are then read once for each tile, and what comes from the cache
takes time too. So it pays where the cache is large and much faster than memory: by this model on an
RTX 4090, rarely on an A100 or H100. It knows bytes alone, not instructions, and nothing of it has
been timed.
"""

from __future__ import annotations

from typing import NamedTuple

SECTOR, LINE = 32, 128  # bytes: what a GPU's cache reads at least, and what it makes room for
EDGE = 8  # bytes of an edge: its other end and its id
FIELDS = 16  # bytes that an edge gathers per head besides rows, backward
ROW = 1024  # bytes of a tile at most, about: what the lanes of a warp hold
#: The share of the cache that rows can have. Edges and results stream through the rest, and the
#: halves of a large GPU's cache hold what all its multiprocessors read twice.
USABLE = 0.5
#: Bytes that a multiprocessor gets from the cache in a cycle: 5.2 TB/s on an H100.
CYCLE = 20
#: Tiles must promise at least this much less time: the promise is a model's.
MARGIN = 0.8


class Gpu(NamedTuple):
    """A GPU's cache in bytes, and bytes per second from it and from memory; zeros: not known."""

    cache: int
    cached: float
    memory: float

    @classmethod
    def of(cls, cache: int, processors: int, clock: int, memory_clock: int, memory_bus: int) -> Gpu:
        """From what a driver gives: clocks in kHz, the bus in bits, two transfers a cycle."""
        cached = processors * clock * 1e3 * CYCLE
        return cls(cache, cached, memory_clock * 1e3 * 2 * memory_bus / 8)


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def most_heads(gpu: Gpu, nodes: int, edges: int, heads: int, head_bytes: int) -> int:
    """The most heads of a tile, for rows ``[nodes, heads]`` of ``head_bytes`` that edges gather."""
    if 0 in gpu or nodes * heads * head_bytes <= USABLE * gpu.cache or edges <= nodes:
        return heads

    def seconds(tile: int) -> float:  # per edge
        tiles, row = -(-heads // tile), tile * head_bytes
        from_cache = tiles * (_up(row, SECTOR) + _up(tile * FIELDS, SECTOR) + EDGE)
        missing = max(1 - USABLE * gpu.cache / (nodes * _up(row, LINE)), nodes / edges)
        from_memory = heads * head_bytes * missing + tiles * EDGE
        return max(from_cache / gpu.cached, from_memory / gpu.memory)

    whole = min(heads, max(1, ROW // head_bytes))  # a wider row is cut anyway
    halves = [1 << k for k in reversed(range((whole - 1).bit_length()))]
    best = min(halves, key=seconds, default=whole)
    return best if seconds(best) < MARGIN * seconds(whole) else heads
