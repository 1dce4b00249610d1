"""`gatkernels bench --minibatch`: training steps on sampled batches, PyG before and after
``accelerate``.

Every step gets an ``edge_index`` no one has seen, so that building the graph is timed with it. Both
models see the same batches, in turn. The last workload is that of MLPerf's graph benchmark (RGAT,
Busbridge et al., 2019) on a generated graph of its schema.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gatkernels
from gatkernels.bench import apart
from gatkernels.bench.generate import power_law
from gatkernels.bench.graphs import GRAPHS, Unavailable
from gatkernels.bench.measure import Timing, in_turns
from gatkernels.bench.sampling import Batch, Relation, Sampler
from gatkernels.testing import assert_same_model

WIDTH, HEADS = 64, 8  # features, of the input and of every layer
BATCHES, ROUNDS = 8, 9


@dataclass(frozen=True)
class Workload:
    """``batch`` seeds, ``fan_out`` neighbours in each hop; how much faster a step is to be."""

    graph: str
    layer: str
    batch: int
    fan_out: tuple[int, ...]
    target: float | None
    batches: int = BATCHES
    rounds: int = ROUNDS


WORKLOADS = (
    *(Workload("cora", layer, 32, (5, 5), 1.5) for layer in ("GATConv", "GATv2Conv")),
    *(Workload("cora", layer, 128, (10, 10), 2.0) for layer in ("GATConv", "GATv2Conv")),
    *(Workload("arxiv", layer, 1024, (15, 10), 4.0) for layer in ("GATConv", "GATv2Conv")),
    Workload("papers", "RGAT", 8, (15, 10, 5), None, batches=2, rounds=3),
)

#: Nodes and edges of the generated academic graph; every relation is also there the other way.
PAPERS = {"paper": 150_000, "author": 180_000, "institute": 3_000, "field": 20_000}
CITES: dict[Relation, int] = {
    ("paper", "cites", "paper"): 1_800_000,
    ("author", "writes", "paper"): 450_000,
    ("author", "affiliated", "institute"): 180_000,
    ("paper", "topic", "field"): 900_000,
}
RGAT_WIDTH, RGAT_HEADS, INPUT = 512, 4, 128


class Network(nn.Module):
    """As many layers of PyG's as there are hops, ELU between them; one type of nodes."""

    def __init__(self, layer: str, hops: int) -> None:
        from torch_geometric import nn as pyg

        super().__init__()
        kind = getattr(pyg, layer)
        self.convs = nn.ModuleList(kind(WIDTH, WIDTH // HEADS, HEADS) for _ in range(hops))

    def forward(self, x: dict[str, Tensor], edges: dict[Relation, Tensor]) -> Tensor:
        (hidden,), (edge_index,) = x.values(), edges.values()
        for place, conv in enumerate(self.convs):
            hidden = conv(hidden if place == 0 else F.elu(hidden), edge_index)
        return hidden


class RGAT(nn.Module):
    """PyG's HeteroConv of a GATConv for each relation, one for each hop."""

    def __init__(self, relations: Sequence[Relation], hops: int) -> None:
        from torch_geometric.nn import GATConv, HeteroConv

        super().__init__()
        channels = RGAT_WIDTH // RGAT_HEADS
        self.convs = nn.ModuleList()
        for hop in range(hops):
            width = INPUT if hop == 0 else RGAT_WIDTH
            kinds = {
                r: GATConv((width, width), channels, RGAT_HEADS, add_self_loops=False)
                for r in relations
            }
            self.convs.append(HeteroConv(kinds, aggr="sum"))
        self.head = nn.Linear(RGAT_WIDTH, WIDTH)

    def forward(self, x: dict[str, Tensor], edges: dict[Relation, Tensor]) -> Tensor:
        for conv in self.convs:
            x = {kind: F.leaky_relu(rows) for kind, rows in conv(x, edges).items()}
        classes: Tensor = self.head(x["paper"])
        return classes


@dataclass(frozen=True)
class Result:
    """Seconds of a step before and after, edges of a batch, the largest difference of results."""

    workload: Workload
    before: Timing
    after: Timing
    edges: float
    difference: float

    @property
    def ratio(self) -> float:
        return self.before.median / self.after.median

    def __str__(self) -> str:
        w = self.workload
        fan = ", ".join(map(str, w.fan_out))
        goal = "" if w.target is None else f" (goal {w.target:g}x)"
        return (
            f"{w.graph:6} {w.layer:9} batch {w.batch:5,} fan-out {fan:9} {self.edges:9,.0f} edges"
            f" {1e3 * self.before.median:9.2f} ms {1e3 * self.after.median:9.2f} ms"
            f" {self.ratio:5.2f}x{goal}"
        )


def papers() -> tuple[dict[Relation, Tensor], dict[str, int]]:
    """The academic graph, its degrees by a power law."""
    edges: dict[Relation, Tensor] = {}
    for place, (relation, count) in enumerate(CITES.items()):
        source, name, target = relation
        nodes = max(PAPERS[source], PAPERS[target])
        ends = torch.from_numpy(power_law(nodes, count, 4000, seed=place))
        index = torch.stack([ends[0] % PAPERS[source], ends[1] % PAPERS[target]])
        edges[relation] = index
        edges[target, f"rev_{name}", source] = index.flip(0)
    return edges, PAPERS


def _data(workload: Workload, generator: torch.Generator) -> tuple[Sampler, str, dict[str, Tensor]]:
    """A sampler, the type of its seeds, and the features of all nodes."""
    if workload.graph == "papers":
        edges, counts = papers()
        seeds, width = "paper", INPUT
    else:
        graph = GRAPHS[workload.graph].load(1.0)
        edges, counts = {("node", "to", "node"): graph.edge_index.long()}, {"node": graph.num_src}
        seeds, width = "node", WIDTH
    features = {k: torch.randn(n, width, generator=generator) for k, n in counts.items()}
    return Sampler(edges, counts), seeds, features


def _step(model: nn.Module, batch: Batch, features: dict[str, Tensor], kind: str) -> Tensor:
    model.zero_grad()
    x = {name: rows[batch.nodes[name]] for name, rows in features.items()}
    out: Tensor = model(x, batch.edges)[: batch.seeds]
    F.cross_entropy(out, batch.nodes[kind][: batch.seeds] % WIDTH).backward()
    return out.detach()


def compare(workload: Workload, rounds: int | None = None) -> Result:
    """Time a step on the same batches, one model and then the other in every round.

    Raises:
        AssertionError: If their first outputs differ.
    """
    generator = torch.Generator().manual_seed(0)
    sampler, kind, features = _data(workload, generator)
    drawn = []
    for _ in range(workload.batches):
        seeds = torch.randperm(features[kind].shape[0], generator=generator)[: workload.batch]
        drawn.append(sampler.batch(kind, seeds, workload.fan_out, generator))
    hops = len(workload.fan_out)

    def network() -> nn.Module:
        torch.manual_seed(0)
        if workload.layer == "RGAT":
            return RGAT(tuple(drawn[0].edges), hops)
        return Network(workload.layer, hops)

    theirs, ours = network(), network()
    gatkernels.accelerate(ours)
    first, second = (_step(model, drawn[0], features, kind) for model in (theirs, ours))
    difference = assert_same_model(f"{workload.layer} on {workload.graph}", second, first)

    def steps(model: nn.Module) -> Callable[[], None]:
        fresh = [batch.fresh() for batch in drawn]

        def run() -> None:
            for batch in fresh:
                _step(model, batch, features, kind)

        return run

    turns = {"before": partial(steps, theirs), "after": partial(steps, ours)}
    timings = in_turns(turns, rounds or workload.rounds)
    before, after = (timings[name].over(len(drawn)) for name in turns)
    edges = sum(e.shape[1] for batch in drawn for e in batch.edges.values()) / len(drawn)
    return Result(workload, before, after, edges, difference)


@dataclass(frozen=True)
class Job:
    workloads: list[Workload]
    threads: int
    out: Path


def prepare(args: argparse.Namespace) -> Job:
    """What the options ask for. Raises: ValueError naming the option."""
    apart.refuse(args, "--minibatch", "workloads", ("shapes", "scale"))
    try:
        import torch_geometric.nn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--minibatch needs torch-geometric: pip install torch-geometric"
        ) from error
    known = {workload.graph for workload in WORKLOADS}
    for graph in args.graphs or []:
        if graph not in known:
            names = ", ".join(sorted(known))
            raise ValueError(f"--graphs: no workload on '{graph}'; those with: {names}")
    chosen = [
        w
        for w in WORKLOADS
        if (not args.graphs or w.graph in args.graphs)
        and (not args.layers or w.layer.lower() in {f"{layer}conv" for layer in args.layers})
    ]
    if not chosen:
        raise ValueError("--minibatch: no workload has these --graphs and --layers")
    return Job(chosen, args.threads or 1, args.out)


def execute(job: Job, tell: Callable[[int, str], None]) -> int:
    """Run and print; every result is saved as it comes."""
    torch.set_num_threads(job.threads)
    path = job.out / "minibatch.json"
    found: list[Result] = []
    for done, workload in enumerate(job.workloads):
        tell(done, f"{workload.layer} on {workload.graph}, batch {workload.batch:,}")
        try:
            found.append(compare(workload))
        except Unavailable as reason:
            print(f"{workload.layer} on {workload.graph}: left out, {reason}", flush=True)
            continue
        print(found[-1], flush=True)
        rows = [asdict(result) | {"ratio": round(result.ratio, 2)} for result in found]
        apart.save(path, job.threads, rows)
    print(f"written to {path}" if found else "nothing was measured")
    return 0 if found else 2
