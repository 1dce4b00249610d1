"""Run cases: check, time, weigh."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from gatkernels.bench import check
from gatkernels.bench.graphs import CASES, Case, Unavailable
from gatkernels.bench.limits import limits
from gatkernels.bench.measure import Timed, Timing, foreign_seconds, interleave, no_collection
from gatkernels.bench.memory import Peak, peak_memory
from gatkernels.bench.peers import OURS, Peer, address

Tick = Callable[[str], None]


@dataclass
class PeerResult:
    """What one peer did on one case; `status` is ok, FAIL or skipped."""

    name: str
    status: str = "ok"
    reason: str = ""
    error: float | None = None
    graph_seconds: float | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    peak: Peak | None = None


@dataclass
class LimitResult:
    name: str
    note: str
    timings: dict[str, Timing]


@dataclass
class CaseResult:
    name: str
    status: str = "ok"
    reason: str = ""
    note: str = ""
    shape: str = ""
    num_nodes: int = 0
    num_edges: int = 0
    max_in_degree: int = 0
    foreign_cores: float | None = None  # cores that other processes kept busy while timing
    peers: list[PeerResult] = field(default_factory=list)
    limits: list[LimitResult] = field(default_factory=list)

    def peer(self, name: str) -> PeerResult | None:
        return next((peer for peer in self.peers if peer.name == name), None)

    def ratio(self, name: str, phase: str) -> float | None:
        """How many times longer a peer takes than ours."""
        ours, other = self.peer(OURS), self.peer(name)
        if ours is None or other is None or not ours.timings or not other.timings:
            return None
        return other.timings[phase].median / ours.timings[phase].median

    def memory_ratio(self, name: str) -> float | None:
        """How many times more memory a peer takes than ours."""
        ours, other = self.peer(OURS), self.peer(name)
        peaks = [side.peak.bytes if side and side.peak else None for side in (ours, other)]
        if not peaks[0] or not peaks[1]:
            return None
        return peaks[1] / peaks[0]


def describe(name: str, case: Case) -> CaseResult:
    degree = torch.bincount(case.edge_index[1], minlength=1)
    return CaseResult(
        name,
        note=case.note,
        shape=case.shape,
        num_nodes=case.num_nodes,
        num_edges=case.num_edges,
        max_in_degree=int(degree.max()),
    )


def run_case(
    name: str,
    peers: Sequence[Peer],
    *,
    rounds: int | None = None,
    memory: bool = True,
    tick: Tick = lambda text: None,
) -> CaseResult:
    """Check every peer against the reference, then time those that passed in turns."""
    tick(f"{name}: graph")
    try:
        case = CASES[name]()
    except Unavailable as missing:
        return CaseResult(name, status="skipped", reason=str(missing))
    result = describe(name, case)
    tick(f"{name}: float64 reference")
    expected = check.expect(case)
    steps: dict[str, Timed] = {}
    for peer in peers:
        tick(f"{name}: {peer.name} checked")
        outcome = PeerResult(peer.name)
        result.peers.append(outcome)
        if reason := peer.unavailable():
            outcome.status, outcome.reason = "skipped", reason
            continue
        try:
            step = peer.prepare(case)
            outcome.error = check.error(step, expected)
        except Exception as error:
            outcome.status, outcome.reason = "FAIL", f"{type(error).__name__}: {error}"
            continue
        outcome.graph_seconds = step.graph_seconds
        if outcome.error > check.TOLERANCE:
            outcome.status = "FAIL"
            outcome.reason = f"off by {outcome.error:.1e}, allowed {check.TOLERANCE:.0e}"
            continue
        steps[peer.name] = step
    del expected

    tick(f"{name}: limits")
    floors = limits(case)
    start, foreign = time.perf_counter(), foreign_seconds()
    times = interleave({**steps, **floors}, rounds, lambda who: tick(f"{name}: {who} timed"))
    if foreign is not None:
        spent = (foreign_seconds() or foreign) - foreign
        result.foreign_cores = max(0.0, round(spent / (time.perf_counter() - start), 2))
    for outcome in result.peers:
        outcome.timings = times.get(outcome.name, {})
    result.limits = [LimitResult(key, floor.note, times[key]) for key, floor in floors.items()]
    steps.clear()
    if memory:
        for peer, outcome in zip(peers, result.peers, strict=True):
            if outcome.status == "ok":
                tick(f"{name}: {peer.name} weighed")
                outcome.peak = peak_memory(name, address(peer), torch.get_num_threads())
    return result


@dataclass(frozen=True)
class BuildResult:
    """Time of `Graph.from_edge_index`."""

    name: str
    num_edges: int
    order: str
    timing: Timing


def graph_build(
    names: Sequence[str] = ("arxiv", "products"), rounds: int = 9, tick: Tick = lambda text: None
) -> list[BuildResult]:
    """Time building a Graph, from edges sorted by source and from shuffled ones."""
    from gatkernels import Graph

    results = []
    for name in names:
        tick(f"{name}: graph build")
        case = CASES[name]()
        generator = torch.Generator().manual_seed(0)
        shuffled = case.edge_index[:, torch.randperm(case.num_edges, generator=generator)]
        for order, edges in (("by source", case.edge_index), ("shuffled", shuffled.contiguous())):
            seconds = []
            for _ in range(rounds + 1):
                with no_collection():
                    start = time.perf_counter()
                    graph = Graph.from_edge_index(edges, case.num_nodes)
                    seconds.append(time.perf_counter() - start)
                    del graph
            results.append(BuildResult(name, case.num_edges, order, Timing.of(seconds[1:])))
    return results
