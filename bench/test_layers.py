"""The layers against their peers under pytest-benchmark: `pytest bench`, `pytest bench -k cora`."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import pytest
import torch

from gatkernels.bench import adapters as _adapters  # noqa: F401 (registers the peers)
from gatkernels.bench import cases, check, graphs, limits, memory, process, run
from gatkernels.bench.cases import QUICK, Case, Spec
from gatkernels.bench.measure import PHASES, Timed, Timing, cpu_sample
from gatkernels.bench.peers import PEERS, Step
from gatkernels.bench.results import CaseResult, LimitResult, PeerResult, Report

BUDGET = 2.0  # seconds of one benchmark's rounds
MIN_ROUNDS, MAX_ROUNDS = 3, 100
SPECS = {spec.name: spec for spec in QUICK}
RUNNABLE = [name for name, peer in PEERS.items() if not (peer.compiles or peer.cuda_only)]
LIMITS = ("projection", "gather-sum")


@lru_cache(maxsize=1)
def case_of(spec: Spec) -> Case:
    return cases.build(spec)


@lru_cache(maxsize=1)
def expected_of(spec: Spec) -> check.Expected:
    return check.expect(case_of(spec))


@lru_cache(maxsize=1)
def step_of(spec: Spec, peer: str) -> tuple[Step | None, PeerResult]:
    """A checked step; only the last one is kept, so that memory stays free."""
    outcome = PeerResult(peer)
    return run.prepare(PEERS[peer], case_of(spec), expected_of(spec), outcome), outcome


@lru_cache(maxsize=1)
def limits_of(spec: Spec) -> dict[str, Any]:
    return limits.limits(case_of(spec))


def result_of(report: Report, spec: Spec) -> CaseResult:
    """The case's place in the report; skips the test where the case cannot be built."""
    try:
        case = case_of(spec)
    except graphs.Unavailable as reason:
        pytest.skip(str(reason))
    found = report.case(spec.name)
    if found is None:
        found = run.describe(case)
        report.cases.append(found)
    return found


def timed(benchmark: Any, step: Timed, phase: str) -> Timing | None:
    """Benchmark one phase; None where benchmarks are disabled and it ran once."""

    def both() -> None:
        step.forward()
        step.backward()

    def setup() -> None:
        step.forward()

    seconds = cpu_sample(step)[2]
    rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(BUDGET / max(seconds, 1e-9))))
    target = {"forward": step.forward, "backward": step.backward, "step": both}[phase]
    benchmark.pedantic(
        target, setup=setup if phase == "backward" else None, rounds=rounds, warmup_rounds=1
    )
    return Timing.of(benchmark.stats.stats.data) if benchmark.stats else None


@pytest.mark.parametrize(("case", "peer", "phase"), list(product(SPECS, RUNNABLE, PHASES)))
def test_layer(benchmark: Any, report: Report, case: str, peer: str, phase: str) -> None:
    benchmark.group = f"{case}: {phase}"
    result = result_of(report, SPECS[case])
    step, outcome = step_of(SPECS[case], peer)
    found = result.peer(peer)
    if found is None:
        found = outcome
        result.peers.append(found)
    if step is None:
        end = pytest.fail if outcome.status == "FAIL" else pytest.skip
        end(f"{outcome.status}: {outcome.reason}")
    timing = timed(benchmark, step, phase)
    if timing is not None:
        found.timings[phase] = timing


@pytest.mark.parametrize(("case", "limit", "phase"), list(product(SPECS, LIMITS, PHASES)))
def test_limit(benchmark: Any, report: Report, case: str, limit: str, phase: str) -> None:
    benchmark.group = f"{case}: {phase}"
    result = result_of(report, SPECS[case])
    floor = limits_of(SPECS[case])[limit]
    timing = timed(benchmark, floor, phase)
    if timing is not None:
        found = next((known for known in result.limits if known.name == limit), None)
        if found is None:
            found = LimitResult(limit, floor.note, {})
            result.limits.append(found)
        found.timings[phase] = timing


@pytest.mark.parametrize(("case", "peer"), list(product(SPECS, RUNNABLE)))
def test_peak_memory(report: Report, case: str, peer: str) -> None:
    found = result_of(report, SPECS[case]).peer(peer) or PeerResult(peer)
    try:
        found.peak = process.call(
            memory.peak_memory, SPECS[case], peer, threads=torch.get_num_threads()
        )
    except process.ChildError as error:
        pytest.skip(f"{error.status}: {error.reason}")
