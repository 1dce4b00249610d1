"""Training steps on sampled mini-batches: PyG's layers before and after ``accelerate``.

Run as ``python -m gatkernels.bench.minibatch [--rounds N] [--threads N] [--json FILE]``. The
batches are in the layout of PyG's ``NeighborLoader``: seeds first, then the nodes of each hop,
edges by hop and destination, and a new ``edge_index`` in every step, so that building the graph is
timed with the step. Both models see the same batches, in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gatkernels
from gatkernels.bench.graphs import GRAPHS
from gatkernels.bench.measure import Timing, no_collection
from gatkernels.bench.results import environment

WIDTH, HEADS = 64, 8  # features, of the input and of every layer


class Workload(NamedTuple):
    """Batches of ``batch`` seeds on a graph, ``fan_out`` neighbours in each hop; the goal."""

    graph: str
    batch: int
    fan_out: tuple[int, ...]
    target: float


WORKLOADS = (
    Workload("cora", 32, (5, 5), 1.5),
    Workload("cora", 128, (10, 10), 2.0),
    Workload("arxiv", 1024, (15, 10), 4.0),
)


class Batch(NamedTuple):
    nodes: Tensor  # [n] ids, the seeds first
    edge_index: Tensor  # [2, e], places in ``nodes``
    seeds: int


class Sampler:
    """Draws neighbours without replacement, as PyG's sampler lays them out.

    Args:
        edge_index: ``[2, E]``.
        num_nodes: Number of nodes.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int) -> None:
        order = torch.argsort(edge_index[1], stable=True)
        self.source = edge_index[0][order]
        degree = torch.bincount(edge_index[1], minlength=num_nodes)
        self.first = torch.cat([degree.new_zeros(1), degree.cumsum(0)])
        self.place = torch.full((num_nodes,), -1)

    def batch(self, seeds: Tensor, fan_out: Sequence[int], generator: torch.Generator) -> Batch:
        """The edges into ``seeds [b]``, into their sources, and so on."""
        nodes, frontier, count, edges = [seeds], seeds, seeds.shape[0], []
        self.place[seeds] = torch.arange(count)
        for fan in fan_out:
            source, target = self._neighbours(frontier, fan, generator)
            fresh = source[self.place[source] < 0]
            self.place[fresh] = -2
            frontier = _in_order(fresh)
            self.place[frontier] = count + torch.arange(frontier.shape[0])
            edges.append(torch.stack([self.place[source], self.place[target]]))
            nodes.append(frontier)
            count += frontier.shape[0]
        found = torch.cat(nodes)
        self.place[found] = -1
        return Batch(found, torch.cat(edges, dim=1), seeds.shape[0])

    def _neighbours(
        self, nodes: Tensor, fan: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Source and destination of at most ``fan`` edges into each node."""
        begin, degree = self.first[nodes], self.first[nodes + 1] - self.first[nodes]
        owner = torch.repeat_interleave(degree)
        edge = torch.arange(owner.shape[0]) - (degree.cumsum(0) - degree)[owner] + begin[owner]
        key = torch.rand(owner.shape[0], generator=generator, dtype=torch.float64)
        shuffled = torch.argsort(owner + key)  # within each node
        rank = torch.arange(owner.shape[0]) - (degree.cumsum(0) - degree)[owner]
        chosen = shuffled[rank < fan]
        return self.source[edge[chosen]], nodes[owner[chosen]]


def _in_order(values: Tensor) -> Tensor:
    """Distinct values in the order of their first place."""
    distinct, inverse = values.unique(return_inverse=True)
    first = torch.full_like(distinct, values.shape[0])
    first.scatter_reduce_(0, inverse, torch.arange(values.shape[0]), "amin")
    ordered: Tensor = distinct[torch.argsort(first)]
    return ordered


class Network(nn.Module):
    """As many layers of PyG's as there are hops, ELU between them."""

    def __init__(self, layer: str, hops: int) -> None:
        from torch_geometric import nn as pyg

        super().__init__()
        kind = getattr(pyg, layer)
        self.convs = nn.ModuleList(kind(WIDTH, WIDTH // HEADS, HEADS) for _ in range(hops))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for place, conv in enumerate(self.convs):
            x = conv(x if place == 0 else F.elu(x), edge_index)
        return x


@dataclass(frozen=True)
class Result:
    """Seconds of a step before and after, edges of a batch, the largest difference of results."""

    workload: Workload
    layer: str
    before: Timing
    after: Timing
    edges: float
    difference: float

    @property
    def ratio(self) -> float:
        return self.before.median / self.after.median


def _step(model: nn.Module, batch: Batch, features: Tensor) -> Tensor:
    model.zero_grad()
    out: Tensor = model(features[batch.nodes], batch.edge_index)[: batch.seeds]
    F.cross_entropy(out, batch.nodes[: batch.seeds] % WIDTH).backward()
    return out.detach()


def _seconds(model: nn.Module, batches: Sequence[Batch], features: Tensor) -> float:
    """Of one step, each batch with an ``edge_index`` that no one has seen."""
    fresh = [batch._replace(edge_index=batch.edge_index.clone()) for batch in batches]
    start = time.perf_counter()
    for batch in fresh:
        _step(model, batch, features)
    return (time.perf_counter() - start) / len(batches)


def compare(workload: Workload, layer: str, rounds: int, batches: int = 8) -> Result:
    """Time a step on the same batches, one model and then the other in every round."""
    graph = GRAPHS[workload.graph].load(1.0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(graph.num_src, WIDTH, generator=generator)
    sampler = Sampler(graph.edge_index.long(), graph.num_src)
    drawn = []
    for _ in range(batches):
        seeds = torch.randperm(graph.num_src, generator=generator)[: workload.batch]
        drawn.append(sampler.batch(seeds, workload.fan_out, generator))
    torch.manual_seed(0)
    theirs = Network(layer, len(workload.fan_out))
    ours = Network(layer, len(workload.fan_out))
    ours.load_state_dict(theirs.state_dict())
    gatkernels.accelerate(ours)
    first = drawn[0]
    results = [_step(model, first, features) for model in (theirs, ours)]
    before: list[float] = []
    after: list[float] = []
    with no_collection():
        for _ in range(rounds + 1):
            before.append(_seconds(theirs, drawn, features))
            after.append(_seconds(ours, drawn, features))
    edges = sum(batch.edge_index.shape[1] for batch in drawn) / batches
    difference = float((results[0] - results[1]).abs().max())
    timings = Timing.of(before[1:]), Timing.of(after[1:])  # the first round warms up
    return Result(workload, layer, *timings, edges, difference)


def describe(result: Result) -> str:
    w = result.workload
    fan = ", ".join(map(str, w.fan_out))
    return (
        f"{w.graph:6} {result.layer:9} batch {w.batch:5,} fan-out {fan:7}"
        f" {result.edges:9,.0f} edges"
        f" {1e3 * result.before.median:8.2f} ms {1e3 * result.after.median:8.2f} ms"
        f" {result.ratio:5.2f}x (goal {w.target:g}x)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parse = argparse.ArgumentParser(prog="python -m gatkernels.bench.minibatch")
    parse.add_argument("--rounds", type=int, default=9)
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--graphs", nargs="+", help="only workloads on these graphs")
    parse.add_argument("--json", type=Path, help="also write the results there")
    options = parse.parse_args(arguments)
    try:
        import torch_geometric.nn  # noqa: F401
    except ImportError:
        print("gatkernels.bench.minibatch: needs torch-geometric", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    found = []
    for workload in WORKLOADS:
        for layer in ("GATConv", "GATv2Conv"):
            if options.graphs is None or workload.graph in options.graphs:
                found.append(compare(workload, layer, options.rounds))
                print(describe(found[-1]), flush=True)
    if options.json is not None:
        rows = [asdict(result) | {"ratio": round(result.ratio, 2)} for result in found]
        content: dict[str, Any] = {"environment": environment(), "results": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
