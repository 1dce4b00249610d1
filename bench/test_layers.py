"""The layer against its peers under pytest-benchmark: `pytest bench`, `pytest bench -k cora`."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch

from gatkernels.bench import check, graphs, limits, memory
from gatkernels.bench.epoch import epoch_ratio
from gatkernels.bench.measure import PHASES, Timed, Timing, sample
from gatkernels.bench.peers import PEERS
from gatkernels.bench.report import Report
from gatkernels.bench.run import CaseResult, LimitResult, PeerResult, describe, graph_build

BUDGET = 4.0  # seconds of one benchmark's rounds
MIN_ROUNDS, MAX_ROUNDS = 3, 100


@lru_cache(maxsize=1)
def case_of(name: str) -> graphs.Case:
    return graphs.CASES[name]()


@lru_cache(maxsize=1)
def expected_of(name: str) -> check.Expected:
    return check.expect(case_of(name))


@lru_cache(maxsize=1)
def step_of(case: str, peer: str) -> tuple[Any, float]:
    """A prepared step and its error; only the last one is kept, so that memory stays free."""
    step = PEERS[peer].prepare(case_of(case))
    return step, check.error(step, expected_of(case))


@lru_cache(maxsize=1)
def limits_of(case: str) -> dict[str, Any]:
    return limits.limits(case_of(case))


def result_of(report: Report, name: str) -> CaseResult:
    """The case's place in the report; skips the test where the case cannot be built."""
    try:
        case = case_of(name)
    except graphs.Unavailable as reason:
        pytest.skip(str(reason))
    for result in report.cases:
        if result.name == name:
            return result
    report.cases.append(describe(name, case))
    return report.cases[-1]


def peer_result(result: CaseResult, name: str) -> PeerResult:
    """The peer's place in the case; skips the test where the peer cannot run."""
    found = result.peer(name)
    if found is None:
        found = PeerResult(name)
        result.peers.append(found)
        if reason := PEERS[name].unavailable():
            found.status, found.reason = "skipped", reason
    if found.status == "skipped":
        pytest.skip(found.reason)
    return found


def timed(benchmark: Any, step: Timed, phase: str) -> Timing | None:
    """Benchmark one phase; None where benchmarks are disabled and it ran once."""

    def both() -> None:
        step.forward()
        step.backward()

    def setup() -> None:
        step.forward()

    seconds = sample(step)[2]
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(BUDGET / max(seconds, 1e-9))))
    target = {"forward": step.forward, "backward": step.backward, "step": both}[phase]
    benchmark.pedantic(
        target, setup=setup if phase == "backward" else None, rounds=rounds, warmup_rounds=1
    )
    return Timing.of(benchmark.stats.stats.data) if benchmark.stats else None


@pytest.mark.parametrize(("case", "peer", "phase"), list(product(graphs.CASES, PEERS, PHASES)))
def test_layer(benchmark: Any, report: Report, case: str, peer: str, phase: str) -> None:
    benchmark.group = f"{case}: {phase}"
    found = peer_result(result_of(report, case), peer)
    step, found.error = step_of(case, peer)
    found.graph_seconds = step.graph_seconds
    if found.error > check.TOLERANCE:
        found.status, found.reason = "FAIL", f"off by {found.error:.1e}"
        pytest.fail(found.reason)
    timing = timed(benchmark, step, phase)
    if timing is not None:
        found.timings[phase] = timing


@pytest.mark.parametrize(
    ("case", "limit", "phase"), list(product(graphs.CASES, limits.LIMITS, PHASES))
)
def test_limit(benchmark: Any, report: Report, case: str, limit: str, phase: str) -> None:
    benchmark.group = f"{case}: {phase}"
    result = result_of(report, case)
    floor = limits_of(case)[limit]
    timing = timed(benchmark, floor, phase)
    if timing is not None:
        found = next((known for known in result.limits if known.name == limit), None)
        if found is None:
            found = LimitResult(limit, floor.note, {})
            result.limits.append(found)
        found.timings[phase] = timing


@pytest.mark.parametrize(("case", "peer"), list(product(graphs.CASES, PEERS)))
def test_peak_memory(report: Report, case: str, peer: str) -> None:
    found = peer_result(result_of(report, case), peer)
    found.peak = memory.peak_memory(case, peer, torch.get_num_threads())
    if found.peak.bytes is None:
        pytest.skip(found.peak.reason)


def test_epoch(report: Report) -> None:
    report.epoch = epoch_ratio()
    assert not report.epoch.reason.startswith("FAIL"), report.epoch.reason


def test_graph_build(report: Report) -> None:
    report.builds = graph_build()
