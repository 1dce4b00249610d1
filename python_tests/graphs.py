"""Adversarial graphs, and inputs to run an operator on them."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from gatkernels import Graph
from gatkernels.testing import DEGREES, adversarial_graphs

#: Where operators are tested. Inputs are drawn on the CPU, which makes them the same everywhere.
DEVICE = torch.device(os.environ.get("GATKERNELS_TEST_DEVICE", "cpu"))
#: Triton's interpreter is a thousand times slower than a kernel; it splits rows sooner, too.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: The GPU kernels cut rows sooner, and those that are emulated or interpreted are slow.
ON_GPU = DEVICE.type != "cpu" or os.environ.get("GATKERNELS_TEST_BACKEND", "cpu") != "cpu"
if ON_GPU:
    DEGREES = (0, 1, 2, 15, 16, 17, 64, 65, 129, 256, 257, 700)
BLOCK, CHUNKS_OF_HUB = (300, 600) if ON_GPU else (700, 7000)  # edges of hubs
MANY = 2_000 if ON_GPU else 20_000  # edges beside which nodes are few
#: Numbers of threads that no result may depend on; on a GPU, two runs of the same.
THREADS = (1, 2) if ON_GPU else (1, 2, 3, 4, 2)


GRAPHS = adversarial_graphs(DEVICE, DEGREES, (BLOCK, CHUNKS_OF_HUB))


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
