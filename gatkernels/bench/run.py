"""Run cases: weigh, check, time. Each case and each weighing has a process of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gatkernels.bench import cases, check, measure, memory, process, traffic
from gatkernels.bench.cases import Case, Spec
from gatkernels.bench.epoch import epoch_ratio
from gatkernels.bench.limits import copy_bandwidth, limits
from gatkernels.bench.measure import foreign_seconds, interleave
from gatkernels.bench.peers import Peer, Step, address, find
from gatkernels.bench.process import ChildError, Tick
from gatkernels.bench.results import CaseResult, LimitResult, PeerResult

#: Longer steps are not timed on warm caches: it takes long, and their inputs matter little.
WARM_BELOW = 0.1


@dataclass(frozen=True)
class Settings:
    """How a run measures; `memory_limit` in bytes, None for most of what is free."""

    threads: int
    seconds: float = 1.0  # of timed runs per peer and case
    memory: bool = True
    memory_limit: int | None = None
    timeout: float = process.TIMEOUT


def run_case(
    spec: Spec, peers: Sequence[Peer], settings: Settings, tick: Tick = lambda text: None
) -> CaseResult:
    """One case in fresh processes: peers that run out of memory alone are not timed."""
    start = time.perf_counter()

    def fresh(work: Callable[..., Any], *arguments: Any) -> Any:
        return process.call(
            work,
            *arguments,
            threads=settings.threads,
            memory_limit=settings.memory_limit,
            device=spec.device,
            timeout=settings.timeout,
            tick=lambda text: tick(f"{spec.name}: {text}"),
        )

    outcomes = [PeerResult(peer.name) for peer in peers]
    for outcome, peer in zip(outcomes, peers, strict=True):
        if settings.memory:
            try:
                outcome.peak = fresh(memory.peak_memory, spec, address(peer))
            except ChildError as error:
                outcome.status, outcome.reason = error.status, error.reason
    try:
        addresses = [address(peer) for peer in peers]
        result: CaseResult = fresh(time_case, spec, addresses, outcomes, settings.seconds)
    except ChildError as error:
        result = CaseResult(
            spec.name, dataclasses.asdict(spec), error.status, error.reason, peers=outcomes
        )
    result.seconds = round(time.perf_counter() - start, 1)
    return result


def time_case(
    spec: Spec, addresses: Sequence[str], outcomes: list[PeerResult], seconds: float, tick: Tick
) -> CaseResult:
    """Check every peer against the reference, then time those that passed, in turns."""
    tick("graph")
    case = cases.build(spec)
    result = describe(case)
    result.peers = outcomes
    tick("float64 reference")
    expected = check.expect(case)
    steps: dict[str, Step] = {}
    for peer, outcome in zip(map(find, addresses), outcomes, strict=True):
        if outcome.status == "ok":
            tick(f"{peer.name} checked")
            step = prepare(peer, case, expected, outcome)
            if step is not None:
                steps[peer.name] = step
    del expected

    device = torch.device(spec.device)
    tick("limits")
    result.copy_bandwidth = copy_bandwidth(device)
    floors = limits(case)
    begun, foreign = time.perf_counter(), foreign_seconds()
    times = interleave({**steps, **floors}, device, seconds, lambda name: tick(f"{name} timed"))
    if foreign is not None:
        spent = (foreign_seconds() or foreign) - foreign
        result.foreign_cores = max(0.0, round(spent / (time.perf_counter() - begun), 2))
    for outcome in outcomes:
        outcome.timings = times.get(outcome.name, {})
    result.limits = [LimitResult(key, floor.note, times[key]) for key, floor in floors.items()]
    if steps and len(case.rotation) > 1:
        tick("timed on warm caches")
        warm(steps, outcomes, device, seconds)
    if device.type == "cuda":
        replay(steps, outcomes)
    return result


def describe(case: Case) -> CaseResult:
    """The case's own part of its result."""
    degree = torch.bincount(case.edges.edge_index[1], minlength=1)
    return CaseResult(
        case.spec.name,
        dataclasses.asdict(case.spec),
        note=case.edges.note,
        shape=case.describe(),
        scale=case.spec.graph_scale,
        num_nodes=[case.edges.num_src, case.edges.num_dst],
        num_edges=case.num_edges,
        max_in_degree=int(degree.max()),
        compulsory=traffic.compulsory(case),
        gathered=traffic.gathered(case),
    )


def prepare(peer: Peer, case: Case, expected: check.Expected, outcome: PeerResult) -> Step | None:
    """The peer's step if its results are right; else None, and `outcome` says why."""
    try:
        if reason := peer.unavailable(case.spec):
            raise NotImplementedError(reason)
        step = peer.prepare(case)
        verdict = check.first_call(step, expected)
    except Exception as error:
        failed = process.failure(error)
        outcome.status, outcome.reason = failed.status, failed.reason
        return None
    outcome.error, outcome.first_call_seconds = verdict.error, verdict.seconds
    outcome.graph_seconds = step.graph_seconds
    if not verdict.excess <= 1.0:
        outcome.status = "FAIL"
        outcome.reason = f"off by {verdict.error:.1e}, {verdict.excess:.1f} times what is allowed"
        return None
    return step


def warm(
    steps: dict[str, Step], outcomes: Sequence[PeerResult], device: torch.device, seconds: float
) -> None:
    """Time short steps on unchanging inputs, as in training on a graph that fits the caches."""
    short = {
        outcome.name: steps[outcome.name]
        for outcome in outcomes
        if outcome.timings and outcome.timings["step"].median < WARM_BELOW
    }
    for step in short.values():
        step.hold = True
    times = interleave(short, device, seconds / 3)
    for step in short.values():
        step.hold = False
    for outcome in outcomes:
        if outcome.name in times:
            outcome.warm = times[outcome.name]["step"]


def replay(steps: dict[str, Step], outcomes: Sequence[PeerResult]) -> None:
    """Time short steps inside a CUDA graph; a step that cannot be captured has no such figure."""
    for outcome in outcomes:
        step = steps.get(outcome.name)
        if step is None or outcome.timings["step"].median > measure.REPLAY_BELOW:
            continue
        try:
            outcome.replay = measure.replayed(step, len(step.rotation))
        except RuntimeError as error:
            outcome.reason = f"no graph replay: {process.failure(error).reason}"


def run_epoch(settings: Settings, tick: Tick) -> dict[str, Any]:
    """The epoch's figures in a fresh process; with only a reason where there are none."""
    try:
        found: dict[str, Any] = dataclasses.asdict(
            process.call(epoch_ratio, threads=settings.threads, tick=tick)
        )
    except ChildError as error:
        return {"timings": {}, "reason": error.reason}
    return found
