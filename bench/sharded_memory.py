"""Peak memory of a rank that holds a shard of a graph, against one process that holds all of it.

python bench/sharded_memory.py                      # 1 and 4 processes, 8 M edges
python bench/sharded_memory.py --processes 1 2 4 8

Each process gets its share of the edges and its own rows of features, builds its graph and runs a
GAT layer forward and backward twice. Peaks are the kernel's (VmHWM, Linux), above what is resident
when imports are done, the processes know each other and a small layer has run: edges, features,
graph, weights, results, gradients, messages. A world's peak is that of the rank that needs most.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gatkernels import Graph
from gatkernels.bench.memory import forget_peak, highest, resident, trim
from gatkernels.distributed import ShardedGraph
from gatkernels.nn import GATConv

COMMUNITY = 1000  # nodes that are numbered together
FEATURES, HEADS, CHANNELS = 128, 8, 32
PHASES = ("build", "forward", "backward")


def draw(nodes: int, edges: int, away: float = 0.02) -> np.ndarray:
    """``[2, edges]``: both ends in one community, but of ``away`` of the edges."""
    rng = np.random.default_rng(0)
    src = rng.integers(0, nodes, edges)
    inside = src // COMMUNITY * COMMUNITY + rng.integers(0, COMMUNITY, edges)
    leaves = (rng.random(edges) < away) | (inside >= nodes)
    return np.stack([src, np.where(leaves, rng.integers(0, nodes, edges), inside)])


def build(edges: torch.Tensor, nodes: int, processes: int) -> Graph:
    if processes == 1:
        return Graph.from_edge_index(edges, nodes)
    return ShardedGraph.from_edge_index(edges, nodes, exchange="halo", timeout=600)


def share(path: str, rank: int, processes: int) -> torch.Tensor:
    edges = np.load(path, mmap_mode="r")
    bounds = np.linspace(0, edges.shape[1], processes + 1).astype(np.int64)
    return torch.from_numpy(np.array(edges[:, bounds[rank] : bounds[rank + 1]]))


def measured(path: str, nodes: int, rank: int, processes: int) -> dict[str, Any]:
    layer = GATConv(FEATURES, CHANNELS, heads=HEADS)
    few = build(torch.randint(0, 400, (2, 800)), 400, processes)
    layer(torch.randn(few.num_dst, FEATURES), few).sum().backward()
    del few
    peaks: dict[str, Any] = {}
    trim()
    before = resident()

    def note(phase: str) -> None:
        peaks[phase] = max(peaks.get(phase, 0), highest() - before)
        forget_peak()

    forget_peak()
    graph = build(share(path, rank, processes), nodes, processes)
    note("build")
    x = torch.randn(graph.num_dst, FEATURES)
    grad = torch.randn(graph.num_dst, HEADS * CHANNELS)
    for _ in range(2):
        out = layer(x, graph)
        note("forward")
        out.backward(grad)
        note("backward")
        del out
    peaks["rho"] = graph.rho if isinstance(graph, ShardedGraph) else 0.0
    return peaks


def run(rank: int, processes: int, folder: str, path: str, nodes: int, to: Any) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{processes}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    to.send(measured(path, nodes, rank, processes))
    dist.destroy_process_group()


def world(processes: int, folder: str, path: str, nodes: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    children = [
        context.Process(target=run, args=(rank, processes, folder, path, nodes, pipe[1]))
        for rank, pipe in enumerate(pipes)
    ]
    for child in children:
        child.start()
    for _, end in pipes:
        end.close()
    found = [pipe.recv() for pipe, _ in pipes]
    for child in children:
        child.join()
    return {name: max(one[name] for one in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--nodes", type=int, default=400_000)
    parser.add_argument("--edges", type=int, default=8_000_000)
    parser.add_argument("--away", type=float, default=0.02, help="part of edges that leave")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "edges.npy")
        np.save(path, draw(args.nodes, args.edges, args.away))
        first = None
        for processes in args.processes:
            found = world(processes, folder, path, args.nodes)
            peak = max(found[phase] for phase in PHASES)
            first = first or peak
            phases = ", ".join(f"{phase} {found[phase] / 2**20:,.0f}" for phase in PHASES)
            print(
                f"{processes} processes, rho {found['rho']:.2f}: {peak / 2**20:,.0f} MiB of a rank "
                f"({phases}), {peak / first:.3f} of the first"
            )


if __name__ == "__main__":
    main()
