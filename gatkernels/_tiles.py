"""How many heads the CUDA kernels gather at a time: fewer than all where that pays.

Edges gather rows of a matrix of features. Where this is larger than the GPU's cache, they come from
memory again for most edges. A tile of heads, done for all nodes before the next tile, may fit the
cache; but every edge and its scores are then read once for each tile, and what comes from the cache
takes time too. So it pays where the cache is much faster than memory: by this model rarely on an
H100 or A100, often on an RTX 4090. Nothing of it has been timed.
"""

from __future__ import annotations

from typing import NamedTuple

SECTOR = 32  # bytes, what a GPU's cache reads at least
EDGE = 8  # bytes of an edge: its other end and its id
#: The share of the cache that rows can have; edges and results stream through the rest.
USABLE = 0.75
#: Bytes that a multiprocessor gets from the cache in a cycle: 5.5 TB/s on an H100.
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


def most_heads(gpu: Gpu, nodes: int, edges: int, heads: int, head_bytes: int) -> int:
    """The most heads of a tile, for rows ``[nodes, heads]`` of ``head_bytes`` that edges gather."""
    whole = nodes * heads * head_bytes
    if 0 in gpu or whole <= gpu.cache or edges <= nodes:
        return heads

    def seconds(tile: int) -> float:  # per edge
        tiles = -(-heads // tile)
        row = tile * head_bytes
        from_cache = tiles * (-(-row // SECTOR) * SECTOR + SECTOR + EDGE)
        missing = max(1 - USABLE * gpu.cache / (nodes * row), nodes / edges)
        from_memory = heads * head_bytes * missing + tiles * EDGE
        return max(from_cache / gpu.cached, from_memory / gpu.memory)

    halves = [1 << k for k in reversed(range((heads - 1).bit_length()))]
    best = min(halves, key=seconds, default=heads)
    return best if seconds(best) < MARGIN * seconds(heads) else heads
