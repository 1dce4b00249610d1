"""Adversarial graphs, and inputs to run an operator on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gatkernels import Graph

#: Where operators are tested. Inputs are drawn on the CPU, which makes them the same everywhere.
DEVICE = torch.device(os.environ.get("GATKERNELS_TEST_DEVICE", "cpu"))
#: Triton's interpreter is a thousand times slower than a kernel; it splits rows sooner, too.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: The GPU kernels cut rows sooner, and those that are emulated or interpreted are slow.
ON_GPU = DEVICE.type != "cpu" or os.environ.get("GATKERNELS_TEST_BACKEND", "cpu") != "cpu"
#: Degrees around the sizes at which the kernels change course: vectors, blocks, segments.
DEGREES = (0, 1, 2, 15, 16, 17, 127, 128, 129, 257, 2047, 2048, 2049, 6200)
if ON_GPU:
    DEGREES = (0, 1, 2, 15, 16, 17, 64, 65, 129, 256, 257, 700)
BLOCK, SEGMENTS = (300, 600) if ON_GPU else (700, 7000)  # edges of hubs
MANY = 2_000 if ON_GPU else 20_000  # edges beside which nodes are few
#: Numbers of threads that no result may depend on; on a GPU, two runs of the same.
THREADS = (1, 2) if ON_GPU else (1, 2, 3, 4, 2)


def _graph(edge_index: Tensor, num_nodes: int | tuple[int, int], loops: bool = False) -> Graph:
    return Graph.from_edge_index(edge_index.to(DEVICE), num_nodes, loops)


def _random(num_src: int, num_dst: int, edges: int, loops: bool = False) -> Graph:
    generator = torch.Generator().manual_seed(num_src + 7 * num_dst + 31 * edges)
    src = torch.randint(0, num_src, (edges,), generator=generator)
    dst = torch.randint(0, num_dst, (edges,), generator=generator)
    return _graph(torch.stack([src, dst]), (num_src, num_dst), loops)


def _empty(num_src: int, num_dst: int) -> Graph:
    return _graph(torch.empty(2, 0, dtype=torch.int64), (num_src, num_dst))


def _hub(spokes: int, edges: int) -> Graph:
    """Every edge into node 3, from ``spokes`` sources."""
    src = torch.arange(edges) % spokes
    return _graph(torch.stack([src, torch.full_like(src, 3)]), spokes)


def _degrees() -> Graph:
    """One destination of each degree, the edges shuffled."""
    generator = torch.Generator().manual_seed(5)
    dst = torch.arange(len(DEGREES)).repeat_interleave(torch.tensor(DEGREES))
    dst = dst[torch.randperm(len(dst), generator=generator)]
    src = torch.randint(0, 50, dst.shape, generator=generator)
    return _graph(torch.stack([src, dst]), (50, len(DEGREES)))


def _isolated() -> Graph:
    return _graph(torch.tensor([[2, 9, 2], [9, 2, 4]]), 12)


def _parallel() -> Graph:
    src = torch.tensor([0, 1]).repeat_interleave(20)
    return _graph(torch.stack([src, 1 - src]), 3)


def _loops() -> Graph:
    nodes = torch.arange(6)
    return _graph(torch.stack([nodes, nodes]), 6)


GRAPHS: dict[str, Callable[[], Graph]] = {
    "no_nodes": lambda: _empty(0, 0),
    "no_edges": lambda: _empty(5, 5),
    "no_sources": lambda: _empty(0, 4),
    "no_destinations": lambda: _empty(4, 0),
    "one_edge": lambda: _random(1, 1, 1),
    "isolated": _isolated,
    "parallel": _parallel,
    "loops": _loops,
    "self_loops_replaced": lambda: _random(6, 6, 30, loops=True),
    "self_loops_bipartite": lambda: _random(5, 8, 40, loops=True),
    "self_loops_only": lambda: _graph(torch.empty(2, 0).long(), 7, True),
    "bipartite": lambda: _random(7, 11, 60),
    "one_destination": lambda: _random(9, 1, 40),
    "one_source": lambda: _random(1, 9, 40),
    "random": lambda: _random(40, 40, 300),
    "hub_block": lambda: _hub(37, BLOCK),
    "hub_segments": lambda: _hub(37, SEGMENTS),
    "hub_out": lambda: _hub(37, SEGMENTS).reverse(),
    "degrees": _degrees,
    "degrees_out": lambda: _degrees().reverse(),
}


class Inputs(NamedTuple):
    """The tensors of one call, and the gradients of its results."""

    x: Tensor  # [Ns, H, C]
    score_src: Tensor  # [Ns, H]
    score_dst: Tensor  # [Nd, H]
    edge_score: Tensor | None  # [E, H]
    grad_out: Tensor  # [Nd, H, C]
    grad_alpha: Tensor | None  # [E, H]

    def to(self, target: torch.dtype | torch.device) -> Inputs:
        return Inputs(*(None if t is None else t.to(target) for t in self))


def random_inputs(
    graph: Graph,
    heads: int,
    channels: int,
    dtype: torch.dtype,
    *,
    edge_score: bool = False,
    attention: bool = False,
    spread: float = 1.0,
) -> Inputs:
    """Normal values on DEVICE; scores have standard deviation ``spread``."""
    generator = torch.Generator().manual_seed(1000 * heads + channels)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    ns, nd, edges = graph.num_src, graph.num_dst, graph.num_edges
    return (
        Inputs(
            normal(ns, heads, channels),
            spread * normal(ns, heads),
            spread * normal(nd, heads),
            spread * normal(edges, heads) if edge_score else None,
            normal(nd, heads, channels),
            normal(edges, heads) if attention else None,
        )
        .to(dtype)
        .to(DEVICE)
    )
