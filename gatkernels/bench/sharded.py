"""`gatkernels bench --sharded`: one machine's shard of a graph of papers100M's size, and a plan.

The shard is one of 64: 1.7 million rows and 25 million edges into them, with as many halo rows for
each own row as ``rho`` says, of seven neighbours. It runs alone: what it would send is copied to
where it would receive as much. The plan adds the time of these bytes on a network to what was
measured; nothing overlaps, and ``rho`` is taken to stay whatever the number of machines.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gatkernels
from gatkernels.bench import apart, cases
from gatkernels.bench.generate import Ranks
from gatkernels.bench.measure import Timing, no_collection
from gatkernels.bench.memory import forget_peak, highest, resident, trim
from gatkernels.bench.report import Table, show_tables
from gatkernels.distributed import ShardedGraph
from gatkernels.distributed.shard import build_shard
from gatkernels.distributed.share import Share

NODES, EDGES, SHARDS = 111_059_956, 1_615_685_872, 64  # of papers100M, and the part that is built
RHOS = (0.5, 1.0, 2.0)
NEIGHBOURS = 7  # ranks that a shard exchanges rows with
TOP = 300  # edges of the largest hub, over the average
MACHINES, NETWORKS = (8, 16, 32, 64), (25, 200)  # Gb/s, each way
SHAPE, SCALE, ROUNDS = "8x16", 0.25, 5
#: Rows of H x C that go from rank to rank by heads, forward and backward, besides scores.
ROWS_BY_HEADS = {"gat": 4, "gatv2": 6, "dot": 8}


class LocalCopies:
    """In the place of other ranks: what is for one of them comes back as if from it."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size

    def start(
        self, sends: Sequence[Tensor], receives: Sequence[Tensor], op: str
    ) -> Callable[[], None]:
        for sent, received in zip(sends, receives, strict=True):
            received.copy_(sent)
        return lambda: None

    def gather(self, value: Any, op: str) -> list[Any]:
        return [value] * self.size

    def agree(self, text: str, op: str, number: int = 0) -> int:
        return number


def draw_share(nodes: int, edges: int, rho: float, seed: int = 0) -> Share:
    """A rank's share, drawn at random: skewed degrees within, ``rho * nodes`` halo rows each way.

    With every neighbour as many nodes are linked here as there, so that as much is sent to it as
    comes from it.
    """
    generator = torch.Generator().manual_seed(seed)
    linked = round(rho * nodes / NEIGHBOURS)  # nodes, with one neighbour
    # As many random links as leave that many nodes linked.
    links = max(linked, round(-nodes * math.log1p(-linked / nodes)))
    inside = edges - NEIGHBOURS * links
    if inside < 0:
        raise ValueError(f"draw_share: {edges} edges are too few for rho {rho}")
    here, there = [], []
    for rank in range(1, NEIGHBOURS + 1):
        ends = [torch.randperm(nodes, generator=generator)[:linked] for _ in range(2)]
        again = torch.randint(max(linked, 1), (2, links - linked), generator=generator)
        own, far = (torch.cat([end, end[place]]) for end, place in zip(ends, again, strict=True))
        here.append(own)
        there.append(far + rank * nodes)
    own, far = torch.cat(here), torch.cat(there)
    within = _skewed(nodes, inside, seed)
    first = torch.arange(edges)
    behind = torch.cat([first[:inside], first[inside:] + len(own)])
    return Share(
        nodes=torch.arange(nodes),
        num_nodes=nodes * (NEIGHBOURS + 1),
        num_edges=edges + len(own),
        owners=torch.arange(NEIGHBOURS + 2) * nodes,
        in_edges=torch.cat([within, torch.stack([far, own])], 1),
        in_ids=first,
        out_edges=torch.cat([within, torch.stack([own, far])], 1),
        out_ids=behind,
    )


def _skewed(nodes: int, edges: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    ranks, label = Ranks(nodes, min(TOP, nodes)), rng.permutation(nodes)
    drawn = torch.empty(2, edges, dtype=torch.int64)
    for row in drawn:
        row[:] = torch.from_numpy(label[ranks.draw(rng, edges)])
    return drawn


def build(nodes: int, edges: int, rho: float) -> ShardedGraph:
    share = draw_share(nodes, edges, rho)
    shard = build_shard(share, 0, NEIGHBOURS + 1, False)
    peers: Any = LocalCopies(NEIGHBOURS + 1)
    return ShardedGraph(share, shard, peers, "halo", False)


@dataclass(frozen=True)
class Result:
    """One step of attention on a shard: seconds, bytes sent in it, and bytes of memory at its peak
    (graph, rows and gradients; None where the system does not tell)."""

    layer: str
    shape: str
    rho: float
    scale: float
    rows: int
    edges: int
    halo: int
    forward: Timing
    backward: Timing
    sent: int
    peak: int | None

    @property
    def seconds(self) -> float:
        """Of a whole shard."""
        return (self.forward.median + self.backward.median) / self.scale

    def by_halo(self, machines: int, gigabits: float) -> float:
        """Seconds of a step on so many machines: less to compute, and less to send."""
        part = SHARDS / machines
        return part * (self.seconds + self.sent / self.scale / (gigabits * 1e9 / 8))

    def by_heads(self, machines: int, gigabits: float) -> float:
        """The same where each machine has all edges and some heads, time as the number of heads."""
        heads, channels = cases.parse_shape(self.shape, 1)
        each = math.ceil(heads / machines)
        compute = self.seconds * SHARDS * each / heads
        scores = 4 * heads if self.layer == "gat" else 0
        row = 4 * (ROWS_BY_HEADS[self.layer] * heads * channels + scores)
        sent = NODES / machines * row * (machines - 1) / machines
        return compute + sent / (gigabits * 1e9 / 8)


def measure(layer: str, shape: str, rho: float, scale: float) -> Result:
    """Build the shard, and time forward and backward in turn; the first round warms up."""
    before = resident() if Path("/proc/self/status").exists() else None
    nodes, edges = round(NODES / SHARDS * scale), round(EDGES / SHARDS * scale)
    graph = build(nodes, edges, rho)
    heads, channels = cases.parse_shape(shape, 1)
    inputs = [torch.randn(nodes, heads, channels, requires_grad=True)]
    if layer == "gat":
        inputs += [torch.randn(nodes, heads, requires_grad=True) for _ in range(2)]
    else:
        more: list[tuple[int, ...]] = [(nodes, heads, channels)] * (2 if layer == "dot" else 1)
        more += [(heads, channels)] * (layer == "gatv2")
        inputs += [torch.randn(*size, requires_grad=True) for size in more]
    attention: Any = getattr(gatkernels, f"{layer}_attention")
    grad = torch.randn(nodes, heads, channels)
    trim()
    told = before is not None and forget_peak()
    timings: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 1):
        graph.traffic.clear()
        with no_collection():
            out = _timed(partial(attention, graph, *inputs), timings[0])
            _timed(partial(torch.autograd.grad, out, inputs, grad), timings[1])
            del out
    return Result(
        layer=layer,
        shape=shape,
        rho=rho,
        scale=scale,
        rows=nodes,
        edges=edges,
        halo=len(graph.shard.by_row.halo),
        forward=Timing.of(timings[0][1:]),
        backward=Timing.of(timings[1][1:]),
        sent=sum(graph.traffic.values()),
        peak=highest() - before if told and before is not None else None,
    )


def _timed(run: Callable[[], Any], seconds: list[float]) -> Any:
    start = time.perf_counter()
    found = run()
    seconds.append(time.perf_counter() - start)
    return found


def measured_table(results: Sequence[Result]) -> Table:
    columns = (
        "layer", "rho", "rows", "edges in", "halo rows", "sent MiB", "forward s", "backward s",
        "step s", "peak GiB",
    )  # fmt: skip
    rows = []
    for one in results:
        peak = "" if one.peak is None else f"{one.peak / one.scale / 2**30:.2f}"
        whole = (one.forward.median / one.scale, one.backward.median / one.scale, one.seconds)
        counts = (one.rows, one.edges, one.halo)
        rows.append(
            [f"{one.layer} {one.shape}", f"{one.rho:g}"]
            + [f"{count / one.scale:,.0f}" for count in counts]
            + [f"{one.sent / one.scale / 2**20:,.0f}"]
            + [f"{seconds:.2f}" for seconds in whole]
            + [peak]
        )
    scale = results[0].scale
    part = "" if scale == 1 else f", measured on {scale:g} of it and scaled up"
    return Table(f"One of {SHARDS} shards of papers100M's size, float32{part}", columns, rows)


def plan_table(results: Sequence[Result]) -> Table:
    columns = ["layer", "rho", "machines"]
    columns += [f"{way} {speed} Gb/s, s" for speed in NETWORKS for way in ("halo", "heads")]
    columns += [f"better at {speed}" for speed in NETWORKS]
    rows = []
    for one in results:
        for machines in MACHINES:
            pairs = [(one.by_halo(machines, s), one.by_heads(machines, s)) for s in NETWORKS]
            rows.append(
                [f"{one.layer} {one.shape}", f"{one.rho:g}", str(machines)]
                + [f"{seconds:.2f}" for pair in pairs for seconds in pair]
                + ["halo" if halo <= heads else "heads" for halo, heads in pairs]
            )
    return Table("A plan on paper, not measured: seconds of a step of one layer", columns, rows)


NOTE = (
    "The plan: what a shard computes, and the bytes of its exchanges at the speed of the network; "
    f"nothing overlaps, rho stays, machines are as this one. By heads every machine has all edges "
    f"({EDGES * 16 / 2**30:.0f} GiB of graph) and computes with at least one head."
)


@dataclass(frozen=True)
class Job:
    layers: list[str]
    shape: str
    scale: float
    threads: int
    out: Path


def prepare(args: argparse.Namespace) -> Job:
    """What the options ask for. Raises: ValueError naming the option."""
    apart.refuse(args, "--sharded", "a graph", ("minibatch", "graphs"))
    shapes = args.shapes or [SHAPE]
    if len(shapes) > 1:
        raise ValueError(f"--sharded takes one of --shapes, got {' '.join(shapes)}")
    cases.parse_shape(shapes[0], 1)
    threads = args.threads or torch.get_num_threads()
    return Job(args.layers or ["gat"], shapes[0], args.scale or SCALE, threads, args.out)


def execute(job: Job, tell: Callable[[int, str], None]) -> int:
    """Run and print; every result is saved as it comes."""
    torch.set_num_threads(job.threads)
    path = job.out / "sharded.json"
    found: list[Result] = []
    for layer in job.layers:
        for rho in RHOS:
            tell(len(found), f"{layer} {job.shape}, rho {rho:g}")
            found.append(measure(layer, job.shape, rho, job.scale))
            apart.save(path, job.threads, [asdict(one) for one in found], plan=_plan(found))
    show_tables([measured_table(found), plan_table(found)])
    print(f"{NOTE}\nwritten to {path}")
    return 0


def _plan(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {
            "layer": one.layer,
            "rho": one.rho,
            "machines": machines,
            "gigabits": speed,
            "halo_seconds": one.by_halo(machines, speed),
            "heads_seconds": one.by_heads(machines, speed),
        }
        for one in results
        for machines in MACHINES
        for speed in NETWORKS
    ]
