"""Times, limits and bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from odd_peers import Right, threads_of_kernels, timed

from gatkernels.bench import cases, limits, measure, process, run, traffic
from gatkernels.bench.cases import Spec

CPU = torch.device("cpu")


class Sleeper:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def forward(self) -> None:
        self.log.append(self.name)

    def backward(self) -> None:
        pass


def test_turns_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TURNS", 3)
    monkeypatch.setattr(measure, "SAMPLES_PER_TURN", 1)
    log: list[str] = []
    times = measure.interleave({name: Sleeper(log, name) for name in "abc"}, CPU, 10.0)
    assert "".join(log) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert times["a"]["step"].rounds == 3
    log.clear()
    times = measure.interleave({name: Sleeper(log, name) for name in "ab"}, CPU, 0.0)
    assert "".join(log) == "aaabbb"
    assert times["a"]["step"].rounds == 2


def test_slow_steps_are_timed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "TURNS", 5)
    assert measure.plan(3.0, seconds=2.0) == (0, 2)
    assert measure.plan(0.25, seconds=3.0) == (5, 2)
    assert measure.plan(1e-4, seconds=3.0) == (5, measure.SAMPLES_PER_TURN)


def test_only_short_steps_are_timed_on_warm_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    (short,) = timed(Spec("tiny"), Right()).peers
    assert short.warm is not None
    monkeypatch.setattr(run, "WARM_BELOW", 0.0)
    (long,) = timed(Spec("tiny"), Right()).peers
    assert long.timings
    assert long.warm is None


def test_quartiles() -> None:
    timing = measure.Timing.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (timing.median, timing.q1, timing.q3, timing.rounds) == (3.0, 2.0, 4.0, 5)
    assert timing.spread == pytest.approx(2 / 3)
    assert measure.Timing.of([2.0]).median == 2.0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="read from /proc/stat")
def test_own_work_is_not_foreign() -> None:
    before, start = measure.foreign_seconds(), time.process_time()
    wall = time.perf_counter()
    while time.process_time() - start < 0.3:
        pass
    after = measure.foreign_seconds()
    wall = time.perf_counter() - wall
    assert before is not None
    assert after is not None
    assert -0.1 < after - before < wall * (os.cpu_count() or 1) - 0.2


class FakeEvent:
    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        FakeEvent.clock += 2.0
        self.at = FakeEvent.clock

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.at - self.at


class FakeGraph:
    captured = 0

    def replay(self) -> None:
        FakeGraph.captured += 1


class FakeStream:
    def wait_stream(self, other: object) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_cuda_times_come_from_events_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, on stand-ins: 2 ms pass between two marks."""
    slept: list[int] = []
    stand_ins = {
        "Event": FakeEvent,
        "CUDAGraph": FakeGraph,
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "stream": lambda stream: stream,
        "graph": lambda graph: FakeStream(),
        "synchronize": lambda *_: None,
        "_sleep": slept.append,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in, raising=False)
    log: list[str] = []
    assert measure.cuda_sample(Sleeper(log, "a")) == (0.002, 0.002, 0.004)
    assert not slept
    ahead = measure.sampler(torch.device("cuda"), ahead=True)
    assert ahead(Sleeper([], "b")) == (0.002, 0.002, 0.004)
    assert slept == [measure.AHEAD]
    timing = measure.replayed(Sleeper(log, "b"), runs=4, rounds=3)
    assert "".join(log) == "a" + "bbb" + "bbbb"
    assert timing.median == pytest.approx(0.002 / 4)
    assert FakeGraph.captured == 4


@pytest.mark.parametrize("graph", ["tiny", "tiny:70"])
def test_gather_sum_is_the_sum(graph: str) -> None:
    case = cases.build(Spec(graph, "1x2"))
    counts = case.edges.num_src, case.edges.num_dst
    rows = case.random(counts[0], 2, 11)
    src, dst = case.edge_index
    want = torch.zeros(counts[1], 2).index_add(0, dst, rows[src])
    names = []
    for name, gather in limits.candidates(case.edge_index, counts, torch.float32):
        assert torch.allclose(gather(rows), want, atol=1e-3), name
        names.append(name)
    assert len(names) >= 4
    floor = limits.Gather(case)
    floor.forward()
    want = torch.zeros(counts[0], 2).index_add(0, src, floor.rows[1][dst])
    assert torch.allclose(floor.backward(), want, atol=1e-3)


@pytest.mark.parametrize("layer", cases.LAYERS)
def test_projection_backward_is_the_weight_gradient(layer: str) -> None:
    case = cases.build(Spec("tiny", layer=layer))
    floor = limits.Projection(case)
    outs, gradients = floor.forward(), floor.backward()
    assert len(outs) == len(gradients) == (2 if layer == "gatv2" else 1)
    for out, gradient, (x, grad), weight in zip(
        outs, gradients, floor.sides, floor.weights, strict=True
    ):
        weight = weight.clone().requires_grad_()
        (want,) = torch.autograd.grad(x @ weight.t(), weight, grad)
        assert torch.allclose(out, x @ weight.detach().t(), atol=1e-5)
        assert torch.allclose(gradient, want, atol=1e-4)


def test_traffic_counts_every_row() -> None:
    case = cases.build(Spec("tiny"))
    row, edges, nodes = 8 * 8 * 4, 400, 64
    projected = nodes * (12 + 64) * 4
    gathered = traffic.gathered(case)
    assert gathered["forward"] == projected + edges * (row + 32 + 4) + nodes * (row + 12 * 8)
    assert gathered["backward"] == projected + edges * (row + 128 + 8) + 3 * nodes * row
    assert gathered["step"] == gathered["forward"] + gathered["backward"]
    compulsory = traffic.compulsory(case)
    assert 2 * nodes * row < compulsory["forward"] < gathered["forward"]
    second = traffic.gathered(cases.build(Spec("tiny", layer="gatv2")))
    assert second["backward"] > 2 * gathered["backward"]
    dot = cases.build(Spec("tiny", layer="dot"))
    gathered, projected = traffic.gathered(dot), nodes * (12 + 4 * 64) * 4
    assert gathered["forward"] == projected + edges * (2 * row + 4) + 2 * nodes * row
    assert gathered["backward"] == projected + edges * (4 * row + 96 + 8) + 8 * nodes * row
    assert traffic.compulsory(dot)["forward"] < gathered["forward"]


def test_kernels_have_all_threads_in_a_child() -> None:
    """Though it is forked from a process whose libraries have threads of their own."""
    assert process.call(threads_of_kernels, threads=2) == 2


def test_copy_bandwidth_is_that_of_memory() -> None:
    assert 1e8 < limits.copy_bandwidth(CPU) < 1e13


def test_copies_on_a_gpu_are_warm_and_timed_by_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stand-ins: 2 ms pass between the two marks, around twenty copies; the host's clock goes on
    whenever it is looked at."""
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent, raising=False)
    monkeypatch.setattr(time, "perf_counter", iter(range(100)).__next__)
    monkeypatch.setattr(limits, "COPY_WARM", 3)
    copied: list[float] = []

    class Target:
        def copy_(self, source: torch.Tensor) -> None:
            copied.append(FakeEvent.clock)

    start = FakeEvent.clock
    assert limits.copy_seconds(torch.ones(8), Target()) == pytest.approx(1e-4)
    assert copied == [start] * 2 + [start + 2.0] * 20
