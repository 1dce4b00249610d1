"""Training steps on a new graph each, through every layer: memory, descriptors and threads stay.

python bench/soak.py            # 20,000 steps, some minutes
python bench/soak.py --steps 500
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import gatkernels.nn
import gatkernels.pyg
from gatkernels import Graph
from gatkernels.extras import require

FEATURES, HEADS, CHANNELS = 16, 4, 4
Step = Callable[[Tensor, Tensor, int], Tensor]


def steps_of_layers() -> tuple[dict[str, Step], list[nn.Module]]:
    """A forward of each layer, of features, edges and the number of nodes; and the layers."""
    steps: dict[str, Step] = {}
    layers: list[nn.Module] = []
    for package in (gatkernels.nn, gatkernels.pyg):
        for kind in ("GATConv", "GATv2Conv", "TransformerConv"):
            layer = getattr(package, kind)(FEATURES, CHANNELS, heads=HEADS, dropout=0.3)
            layers.append(layer)
            steps[f"{package.__name__}.{kind}"] = partial(_by_edges, layer)
    steps["a Graph"] = partial(_by_graph, layers[0])
    try:
        from gatkernels import dgl
    except ImportError:
        print("DGL is not installed: its layers are left out")
        return steps, layers
    for kind in ("GATConv", "GATv2Conv"):
        layer = getattr(dgl, kind)(FEATURES, CHANNELS, HEADS, allow_zero_in_degree=True)
        layers.append(layer)
        steps[f"gatkernels.dgl.{kind}"] = partial(_by_dgl, layer)
    return steps, layers


def _by_edges(layer: nn.Module, x: Tensor, edges: Tensor, nodes: int) -> Tensor:
    return layer(x, edges)  # type: ignore[no-any-return]


def _by_graph(layer: nn.Module, x: Tensor, edges: Tensor, nodes: int) -> Tensor:
    return layer(x, Graph.from_edge_index(edges, nodes))  # type: ignore[no-any-return]


def _by_dgl(layer: nn.Module, x: Tensor, edges: Tensor, nodes: int) -> Tensor:
    import dgl

    return layer(dgl.graph((edges[0], edges[1]), num_nodes=nodes), x)  # type: ignore[no-any-return]


def held() -> tuple[float, int, int]:
    """MiB resident, open descriptors, threads."""
    gc.collect()
    fields = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    resident = int(fields["VmRSS"].split()[0]) / 1024
    return resident, len(os.listdir("/proc/self/fd")), int(fields["Threads"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    steps, layers = steps_of_layers()
    optimiser = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=1e-3)
    progress = require("rich.progress", "rich", "bench")
    marks: list[tuple[float, int, int]] = []
    start = time.monotonic()
    for number in progress.track(range(args.steps), "steps"):
        # Sizes come round, so that memory could be the same.
        nodes = 50 + 37 * (number * 7919 % 100)
        edges = torch.randint(0, nodes, (2, 3 * nodes + number % 1000))
        x = torch.randn(nodes, FEATURES)
        optimiser.zero_grad()
        name = list(steps)[number % len(steps)]
        steps[name](x, edges, nodes).square().mean().backward()
        optimiser.step()
        if (number + 1) % max(args.steps // 10, 1) == 0:
            marks.append(held())
    seconds = time.monotonic() - start
    print(f"{args.steps} steps of {len(steps)} layers in {seconds:.0f} s")
    print("MiB resident, descriptors, threads, by tenths:")
    for resident, descriptors, threads in marks:
        print(f"  {resident:8.1f} {descriptors:5d} {threads:5d}")
    settled = marks[len(marks) // 5 :]  # allocators and caches have their size
    growth = max(m[0] for m in settled) / settled[0][0] - 1
    print(f"growth since the second tenth: {growth:.2%}")
    steady = all(mark[1:] == settled[0][1:] for mark in settled)
    return 0 if growth <= 0.01 and steady else 1


if __name__ == "__main__":
    sys.exit(main())
