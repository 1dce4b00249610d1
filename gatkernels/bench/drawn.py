"""Graphs drawn by torch on the device they are for: 1e8 edges in seconds on a GPU.

Of the size and skew of the twins in `graphs.py`, which take numpy most of a minute each; other
random numbers, so not the same edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gatkernels.bench.generate import EXPONENT, SEED, Ranks
from gatkernels.bench.graphs import Edges, Unavailable


class Size(NamedTuple):
    """`edges` of the whole graph: arcs of the links, plus one loop per node where it has loops."""

    nodes: int
    edges: int
    top: int  # about the largest degree
    loops: bool = False


SIZES = {
    "reddit": Size(232_965, 114_615_892, 21_657),
    "products": Size(2_449_029, 123_718_280, 17_481),
    "proteins": Size(132_534, 79_122_504, 7_750),
    "arxiv": Size(169_343, 2_484_941, 13_161, loops=True),
    "cora": Size(2_708, 10_556, 168),
    "hub": Size(200_000, 2_000_000, 1_000_000),
    "even": Size(200_000, 2_000_000, 0),
}
#: A cut graph keeps at least so many node pairs per edge: it is no graph of its kind else.
SPARSE = 16


def draw(name: str, scale: float = 1.0, device: torch.device | str = "cpu") -> Edges:
    """A graph of SIZES, its nodes and edges cut to `scale`; a small one is not cut.

    Raises: Unavailable where there is no such graph.
    """
    if name not in SIZES:
        raise Unavailable(f"no graph '{name}' to draw; known: {', '.join(SIZES)}")
    size = SIZES[name]
    scale = 1.0 if name == "cora" else scale
    edges = max(round(size.edges * scale / 2) * 2, 64) if scale < 1 else size.edges
    nodes = max(round(size.nodes * scale), math.isqrt(SPARSE * edges), 64)
    nodes = size.nodes if scale == 1 else nodes
    generator = torch.Generator(device).manual_seed(SEED)
    if name in ("hub", "even"):
        src, dst = (_integers(nodes, edges, generator) for _ in range(2))
        if name == "hub":
            dst[: edges // 2] = 0
        note = "half of the edges into one node" if name == "hub" else "uniformly random"
        # Left in random order: sorted, the hub would meet each source's parallel edges in a row.
        return Edges(torch.stack([src, dst]), nodes, nodes, f"drawn, {note}")
    arcs = edges - (nodes if size.loops else 0)
    edge_index = power_law(nodes, arcs // 2, size.top, generator)
    if size.loops:
        loops = torch.arange(nodes, device=device)
        src, dst = (torch.cat([end, loops]) for end in edge_index)
        edge_index = _by_source(src, dst, nodes)
    return Edges(edge_index, nodes, nodes, f"drawn with the size and skew of {name}")


def power_law(nodes: int, links: int, top: int, generator: torch.Generator) -> Tensor:
    """Both directions of `links` different links, as `generate.power_law` draws them."""
    ranks = Ranks(nodes, min(top, nodes // 2) * nodes / (2 * links))
    keys = _distinct_links(lambda count: _ranks(ranks, count, generator), nodes, links, generator)
    label = torch.randperm(nodes, generator=generator, device=generator.device)
    one, other = label[keys // nodes], label[keys % nodes]
    return _by_source(torch.cat([one, other]), torch.cat([other, one]), nodes)


def _distinct_links(
    ranks: Callable[[int], Tensor], nodes: int, links: int, generator: torch.Generator
) -> Tensor:
    """Keys `low * nodes + high` of that many links, without self loops."""
    keys = torch.empty(0, dtype=torch.int64, device=generator.device)
    while keys.numel() < links:
        missing = links - keys.numel()
        missing += links // 8 + 16  # hubs are drawn again and again
        one, other = ranks(missing), ranks(missing)
        new = torch.minimum(one, other) * nodes + torch.maximum(one, other)
        keys = torch.cat([keys, new[one != other]]).unique()
    chosen = torch.randperm(keys.numel(), generator=generator, device=keys.device)[:links]
    return keys[chosen]


def _ranks(ranks: Ranks, count: int, generator: torch.Generator) -> Tensor:
    """As `Ranks.draw`."""
    power = 1.0 - EXPONENT
    start, stop = ranks.shift**power, (ranks.num_nodes + ranks.shift) ** power
    place = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    place.mul_(stop - start).add_(start).pow_(1.0 / power).sub_(ranks.shift)
    return place.long().clamp_(0, ranks.num_nodes - 1)


def _integers(stop: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(stop, (count,), generator=generator, device=generator.device)


def _by_source(src: Tensor, dst: Tensor, nodes: int) -> Tensor:
    keys = (src * nodes + dst).sort().values
    return torch.stack([keys // nodes, keys % nodes])
