"""The benchmark's own parts, on tiny graphs."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gatkernels import _dispatch, _native, cli
from gatkernels.bench import (
    adapters,
    cases,
    charts,
    check,
    compare,
    curves,
    generate,
    graphs,
    limits,
    measure,
    memory,
    process,
    report,
    results,
    run,
    traffic,
)
from gatkernels.bench import cli as bench_cli
from gatkernels.bench.cases import Case, Spec
from gatkernels.bench.peers import PEERS, Layer, Ours, Peer, address, find

CPU = torch.device("cpu")
LIBRARIES = [name for name, peer in PEERS.items() if not (peer.compiles or peer.cuda_only)]
SMALL = "power-law:400"
TWINS = [name for name, spec in graphs.GRAPHS.items() if spec.generated]
REAL = [name for name in graphs.GRAPHS if name not in TWINS]


class Wrong(Peer):
    """The reference with one row of its output changed."""

    name = "wrong"
    delta = 1e-2

    def layer(self, case: Case, graph: Any) -> Layer:
        reference = PEERS["reference"]
        right = reference.layer(case, reference.graph(case))
        bump = torch.zeros(case.edges.num_dst, 1)
        bump[7] = self.delta
        return Layer(lambda x: right.call(x) + bump, right.parameters)


class NotANumber(Wrong):
    name = "nan"
    delta = float("nan")


class WrongGradient(Peer):
    name = "wrong-gradient"

    def layer(self, case: Case, graph: Any) -> Layer:
        reference = PEERS["reference"]
        right = reference.layer(case, reference.graph(case))
        lin = right.parameters[0]
        return Layer(lambda x: right.call(x) + 0.01 * (lin - lin.detach()).sum(), right.parameters)


class Misshapen(Wrong):
    name = "misshapen"

    def layer(self, case: Case, graph: Any) -> Layer:
        right = super().layer(case, graph)
        return Layer(lambda x: right.call(x)[1:], right.parameters)


class Right(Wrong):
    name = "right"
    delta = 0.0


class Broken(Peer):
    name = "broken"

    def layer(self, case: Case, graph: Any) -> Layer:
        raise RuntimeError("no such kernel")


class Hungry(Right):
    """Asks for more memory than there is, on all but the smallest graphs."""

    name = "hungry"

    def layer(self, case: Case, graph: Any) -> Layer:
        right = super().layer(case, graph)

        def call(x: cases.Inputs) -> Tensor:
            torch.empty(2**44, dtype=torch.uint8)
            return right.call(x)

        return Layer(call, right.parameters)


class Absent(Peer):
    name = "absent"

    def unavailable(self, spec: Spec) -> str:
        return "not installed"


class Crashing(Right):
    name = "crashing"

    def layer(self, case: Case, graph: Any) -> Layer:
        os._exit(3)


@pytest.fixture(autouse=True)
def quick_and_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No warm-up, few samples, and a cache of the test's own."""
    monkeypatch.setenv("GATKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "WARM", 0.0)
    monkeypatch.setattr(measure, "TURNS", 2)
    monkeypatch.setattr(measure, "CACHE_BYTES", 2**15)
    monkeypatch.setattr(os, "sysconf", no_cache_size)
    monkeypatch.setattr(run, "copy_bandwidth", lambda device: 1e10)


SYSCONF = os.sysconf


def no_cache_size(name: str) -> int:
    return 0 if name == "SC_LEVEL3_CACHE_SIZE" else SYSCONF(name)


def here(work: Callable[..., Any], *arguments: Any, tick: process.Tick, **_: Any) -> Any:
    """`process.call` without the process."""
    try:
        return work(*arguments, tick)
    except Exception as error:
        raise process.failure(error) from error


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "call", here)


def timed(spec: Spec, *peers: Peer) -> results.CaseResult:
    """A case checked and timed in this process, nothing weighed."""
    outcomes = [results.PeerResult(peer.name) for peer in peers]
    addresses = [address(peer) for peer in peers]
    return run.time_case(spec, addresses, outcomes, 0.01, lambda text: None)


# Graphs


def test_power_law_is_simple_symmetric_seeded_and_skewed() -> None:
    edges = generate.power_law(1000, 8000, 300)
    assert edges.shape == (2, 8000)
    keys = edges[0] * 1000 + edges[1]
    assert (np.diff(keys) > 0).all()
    assert (edges[0] != edges[1]).all()
    assert np.array_equal(np.sort(edges[1] * 1000 + edges[0]), keys)
    assert np.array_equal(edges, generate.power_law(1000, 8000, 300))
    assert not np.array_equal(edges, generate.power_law(1000, 8000, 300, seed=1))
    degree = np.bincount(edges[1], minlength=1000)
    assert 150 < degree.max() < 400
    assert np.median(degree) < 8


def test_generated_graphs_hold_what_they_say() -> None:
    assert generate.uniform(500, 4000).shape == (2, 4000)
    hub = generate.one_hub(50)
    assert np.bincount(hub[1])[0] == 49
    loops = generate.with_loops(generate.power_law(100, 600, 40), 100)
    assert (loops[0] == loops[1]).sum() == 100
    batch = generate.batch(3, 50, 200, 20)
    assert batch.shape == (2, 600)
    assert (batch[0] // 50 == batch[1] // 50).all()
    near = generate.communities(2048, 20_000, 200, size=128)
    inside = (near[0] // 128 == near[1] // 128).mean()
    assert 0.8 < inside < 0.97
    mixed = generate.shuffled(near, 2048)
    assert sorted(np.bincount(mixed[1], minlength=2048)) == sorted(
        np.bincount(near[1], minlength=2048)
    )
    assert (mixed[0] // 128 == mixed[1] // 128).mean() < 0.2


def test_power_law_refuses_what_would_not_end() -> None:
    with pytest.raises(ValueError, match="too many"):
        generate.power_law(16, 200, 8)
    with pytest.raises(graphs.Unavailable, match=r"no reddit at scale 0\.0005"):
        graphs.GRAPHS["reddit"].load(0.0005)


@pytest.mark.parametrize("name", sorted({*TWINS} - {"reddit", "proteins"}))  # too dense, cut down
def test_twin_scales(name: str) -> None:
    spec = graphs.GRAPHS[name]
    scale = 40_000 / spec.num_edges
    edges = spec.load(scale)
    assert edges.num_src == edges.num_dst
    assert int(edges.edge_index.max()) < edges.num_src
    if name != "ppi":
        assert edges.edge_index.shape[1] == pytest.approx(spec.num_edges * scale, rel=0.01)


def test_cache_is_written_once_and_survives_damage() -> None:
    built = []

    def build() -> generate.IntArray:
        built.append(1)
        return np.array([[0, 0, 2], [1, 2, 0]])

    first = graphs.cached("pair", build)
    second = graphs.cached("pair", build)
    assert len(built) == 1
    assert np.array_equal(first, second)
    assert second.dtype == np.int64
    folder = graphs.cache_dir() / "graphs"
    (stored,) = folder.iterdir()
    assert f"v{graphs.CACHE_VERSION}" in stored.name
    stored.write_bytes(b"PK\x03\x04 broken")
    assert np.array_equal(graphs.cached("pair", build), first)
    assert len(built) == 2


def test_missing_data_gives_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GATKERNELS_DATA", raising=False)
    with pytest.raises(graphs.Unavailable, match="GATKERNELS_DATA is not set"):
        cases.build(Spec("cnr-2000"))
    monkeypatch.setenv("GATKERNELS_DATA", str(tmp_path))
    with pytest.raises(graphs.Unavailable, match=r"no file graphs/cnr-2000\.npz"):
        cases.build(Spec("cnr-2000"))


@pytest.mark.parametrize(
    "name", [name for name, spec in graphs.GRAPHS.items() if not spec.generated]
)
def test_real_graph_has_the_edges_it_says(name: str) -> None:
    if name == "cnr-2000":
        pytest.skip("5 M edges take longer to read than a test may")
    try:
        edges = graphs.GRAPHS[name].load(1.0)
    except graphs.Unavailable as reason:
        pytest.skip(str(reason))
    assert edges.edge_index.shape == (2, graphs.GRAPHS[name].num_edges)
    assert int(edges.edge_index[0].max()) < edges.num_src
    assert int(edges.edge_index[1].max()) < edges.num_dst


def test_adjacency_reader_runs_no_foreign_code(tmp_path: Path) -> None:
    path = tmp_path / "bad"
    path.write_bytes(pickle.dumps(os.getcwd))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="unexpected"):
        graphs._AdjacencyUnpickler(file).load()


# Cases


def test_choose_combines_what_is_named() -> None:
    assert [spec.name for spec in cases.choose(cases.QUICK)] == [spec.name for spec in cases.QUICK]
    chosen = cases.choose(cases.QUICK, ["cora", "arxiv"], ["8x8", "1xC"], layers=["gatv2"])
    assert [spec.name for spec in chosen] == [
        "cora gatv2 8x8",
        "cora gatv2 1xC",
        "arxiv gatv2 8x8",
        "arxiv gatv2 1xC",
    ]
    names = [spec.name for spec in cases.FULL]
    assert len(set(names)) == len(names)
    assert {spec.graph for spec in cases.FULL} == set(graphs.GRAPHS)
    assert {spec.shape for spec in cases.FULL} == set(cases.SHAPES)
    assert {spec.dtype for spec in cases.FULL} == set(cases.DTYPES)


def test_scale_is_automatic_on_a_cpu() -> None:
    assert Spec("reddit").graph_scale == 1 / 16
    assert Spec("ppi", "4x256").graph_scale == 1 / 4
    assert Spec("arxiv").graph_scale == 1.0
    assert Spec("reddit", scale=0.5).graph_scale == 0.5
    assert Spec("reddit", device="cuda").graph_scale == 1.0


@pytest.mark.parametrize("shape", ["8", "0x8", "8xD", "x"])
def test_shape_is_heads_by_channels(shape: str) -> None:
    with pytest.raises(ValueError, match="heads x channels"):
        cases.parse_shape(shape, 7)
    assert cases.parse_shape("1xC", 7) == (1, 7)


def test_inputs_rotate_until_caches_are_cold() -> None:
    case = cases.build(Spec("tiny"))
    rotation = case.rotation
    assert len(rotation) == measure.copies_for_cold_caches(64 * (12 + 64) * 4, CPU) > 1
    assert not torch.equal(rotation[0][0], rotation[1][0])
    step = PEERS["reference"].prepare(case)
    assert not torch.equal(step.forward(), step.forward())
    step.hold = True
    assert torch.equal(step.forward(), step.forward())
    assert measure.copies_for_cold_caches(2**40, CPU) == 1


# Checks


@pytest.mark.parametrize("spec", [Spec(SMALL), Spec(SMALL, "1x3", "gatv2"), Spec("tiny:70")])
@pytest.mark.parametrize("name", LIBRARIES)
def test_peer_agrees_with_the_reference(name: str, spec: Spec) -> None:
    if reason := PEERS[name].unavailable(spec):
        pytest.skip(reason)
    case = cases.build(spec)
    try:
        step = PEERS[name].prepare(case)
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    verdict = check.first_call(step, check.expect(case))
    assert verdict.excess < 1.0
    assert verdict.seconds > 0.0


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize("layer", cases.LAYERS)
def test_our_layers_pass_in_other_dtypes(layer: str, dtype: str) -> None:
    spec = Spec(SMALL, "8x8", layer, dtype)
    case = cases.build(spec)
    expected = check.expect(case)
    for peer in PEERS.values():
        if isinstance(peer, Ours) and peer.unavailable(spec) is None:
            assert check.first_call(peer.prepare(case), expected).excess < 1.0


@pytest.mark.parametrize("layer", cases.LAYERS)
def test_expected_results_in_chunks(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    case = cases.build(Spec("tiny", layer=layer))
    whole = check.expect(case)
    monkeypatch.setattr(check, "CHUNK", 7 * case.width)
    part = check.expect(case)
    assert torch.allclose(whole.out, part.out, rtol=1e-12)
    for one, other in zip(whole.gradients, part.gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-10)


def test_sampled_rows_hold_the_hub_and_an_empty_row() -> None:
    case = cases.build(Spec("tiny"))
    rows = check.sample_rows(case, 50)
    degree = torch.bincount(case.edge_index[1], minlength=64)
    assert degree.argmax() in rows
    assert (degree[rows] == 0).any()
    assert rows.numel() < 64
    step = PEERS["reference"].prepare(case)
    assert check.first_call(step, check.expect(case, 50)).excess < 1.0


@pytest.mark.parametrize("peer", [Wrong(), NotANumber(), WrongGradient(), Misshapen()])
def test_wrong_result_gets_no_time(peer: Peer) -> None:
    result = timed(Spec("tiny"), PEERS["reference"], peer)
    found = result.peer(peer.name)
    assert found is not None
    assert found.status == "FAIL"
    assert found.timings == {}
    assert result.ratio(peer.name, base="reference") is None
    text = report.markdown(results.Report(results.environment(), {}, [result]))
    row = next(line for line in text.splitlines() if f"| {peer.name} |" in line)
    assert "FAIL" in row
    reference = result.peer("reference")
    assert reference is not None
    assert set(reference.timings) == set(measure.PHASES)


def test_wrong_backend_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend whose kernels spoil one row is caught like any other peer."""
    if reason := _native.cpu_missing:
        pytest.skip(reason)

    class Kernels:
        gat_backward = staticmethod(_native.gat_backward)

        @staticmethod
        def gat_forward(*arguments: Any) -> tuple[Tensor, ...]:
            out, *rest = _native.gat_forward(*arguments)
            out[3] *= 1.01
            return (out, *rest)

    backend = _dispatch.Backend(lambda case: None, lambda: Kernels)
    monkeypatch.setattr(_dispatch, "_loaded", {})
    monkeypatch.setitem(_dispatch._BACKENDS, "wrong", backend)
    monkeypatch.setitem(PEERS, "gatkernels-wrong", Ours("wrong"))
    result = timed(Spec(SMALL), find("gatkernels-wrong"), PEERS["reference"])
    assert [peer.status for peer in result.peers] == ["FAIL", "ok"]
    assert result.peers[0].timings == {}
    assert "times what is allowed" in result.peers[0].reason


@pytest.mark.usefixtures("in_this_process")
def test_absent_and_broken_peers_give_their_reason() -> None:
    result = run.run_case(Spec("tiny"), [Absent(), Broken()], run.Settings(1, 0.01))
    assert [peer.status for peer in result.peers] == ["skipped", "error"]
    text = report.markdown(results.Report(results.environment(), {}, [result]))
    assert "skipped: not installed" in text
    assert "no such kernel" in text


@pytest.mark.usefixtures("in_this_process")
def test_out_of_memory_is_a_result() -> None:
    result = run.run_case(Spec(SMALL), [Hungry(), Right()], run.Settings(1, 0.01))
    assert [peer.status for peer in result.peers] == ["OOM", "ok"]
    text = report.markdown(results.Report(results.environment(), {}, [result]))
    assert "| hungry | OOM |" in text


def test_absent_graph_loses_its_case_alone() -> None:
    with pytest.raises(graphs.Unavailable, match="no graph 'nowhere'"):
        timed(Spec("nowhere"), Right())


def test_own_peer_is_found_by_address() -> None:
    peer = find(f"{__name__}:Right")
    assert peer.name == "right"
    assert address(peer) == f"{__name__}:Right"
    assert address(PEERS["pyg"]) == "pyg"
    with pytest.raises(KeyError, match="no peer 'nobody'"):
        find("nobody")


def test_gpu_peers_say_why_they_are_skipped() -> None:
    assert adapters.DgNN().unavailable(Spec("cora")) == "runs on CUDA only"
    assert "GATv2" in str(adapters.TurboGNN().unavailable(Spec("cora", device="cuda")))
    for peer, layer in ((adapters.DgNN(), "gat"), (adapters.TurboGNN(), "gatv2")):
        reason = peer.unavailable(Spec("cora", layer=layer, device="cuda"))
        assert reason is None or "cannot import" in reason


# Measuring


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
    stand_ins = {
        "Event": FakeEvent,
        "CUDAGraph": FakeGraph,
        "Stream": FakeStream,
        "current_stream": FakeStream,
        "stream": lambda stream: stream,
        "graph": lambda graph: FakeStream(),
        "synchronize": lambda: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in, raising=False)
    log: list[str] = []
    assert measure.cuda_sample(Sleeper(log, "a")) == (0.002, 0.002, 0.004)
    timing = measure.replayed(Sleeper(log, "b"), runs=4, rounds=3)
    assert "".join(log) == "a" + "bbb" + "bbbb"
    assert timing.median == pytest.approx(0.002 / 4)
    assert FakeGraph.captured == 4


# Limits


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


def test_copy_bandwidth_is_that_of_memory() -> None:
    assert 1e8 < limits.copy_bandwidth(CPU) < 1e13


# Memory and processes


@pytest.mark.skipif(not memory.STATUS.exists(), reason="peak memory is read from /proc")
def test_fresh_processes_weigh_limit_and_survive_crashes() -> None:
    """One test for all, because the server that forks the processes takes seconds to start."""
    peak = process.call(memory.peak_memory, Spec(SMALL), "reference", threads=1)
    if peak.bytes is None and "clear_refs" in peak.reason:
        pytest.skip(peak.reason)
    assert 0 < peak.bytes < 2**28

    settings = run.Settings(1, 0.01, memory=True)
    peers = [Right(), Crashing(), Hungry(), Absent()]
    result = run.run_case(Spec("tiny"), peers, settings)
    statuses = {peer.name: peer.status for peer in result.peers}
    assert statuses == {"right": "ok", "crashing": "error", "hungry": "OOM", "absent": "skipped"}
    assert "status 3" in result.peers[1].reason
    assert result.peers[0].timings["step"].median > 0
    assert result.status == "ok"

    # Without weighing, a crash costs the case, and the run goes on.
    lost = run.run_case(Spec("tiny"), [Crashing()], run.Settings(1, 0.01, memory=False))
    assert (lost.status, lost.peers) == ("error", [results.PeerResult("crashing")])

    with pytest.raises(process.ChildError, match="no result in 0 s") as slow:
        process.call(sleep, threads=1, timeout=0.2)
    assert slow.value.status == "error"
    with pytest.raises(process.ChildError) as full:
        process.call(take, 2**31, threads=1, memory_limit=2**28)
    assert full.value.status == "OOM"


def sleep(tick: process.Tick) -> None:
    time.sleep(60)


def take(size: int, tick: process.Tick) -> int:
    return torch.ones(size, dtype=torch.uint8).numel()


def test_failures_are_sorted() -> None:
    out = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    assert process.failure(out).status == "OOM"
    assert process.failure(MemoryError()).status == "OOM"
    assert process.failure(torch.OutOfMemoryError("CUDA out of memory")).status == "OOM"
    assert process.failure(NotImplementedError("no")).status == "skipped"
    assert process.failure(ValueError("x\ny")).reason == "ValueError: x y"


def test_peak_is_what_is_held_at_once() -> None:
    if not memory.STATUS.exists() or not memory.forget_peak():
        pytest.skip("the peak cannot be reset here")
    before = memory.resident()
    block: Tensor | None = torch.ones(2**24)
    del block
    assert memory.highest() - before >= 0.9 * 2**26


# Reports


def case_result(step: float, spread: float = 0.0, **peers: float) -> results.CaseResult:
    def timings(seconds: float) -> dict[str, measure.Timing]:
        timing = measure.Timing(seconds, seconds * (1 - spread), seconds * (1 + spread), 5)
        return dict.fromkeys(measure.PHASES, timing)

    result = results.CaseResult("cora gat 8x8", {}, num_nodes=[9, 9], num_edges=20)
    result.compulsory = result.gathered = dict.fromkeys(measure.PHASES, 10**9)
    result.peers = [
        results.PeerResult(name, timings=timings(seconds), peak=memory.Peak(2**20))
        for name, seconds in {"gatkernels-cpu": step, **peers}.items()
    ]
    result.peers.append(results.PeerResult("pyg", "OOM", "too big"))
    result.limits = [results.LimitResult("gather-sum", "dgl", timings(step / 2))]
    return result


def a_report(*found: results.CaseResult) -> results.Report:
    lines = [
        results.Curve(figure, name, [1e4, 1e5], [1e-3 * scale, 1e-2 * scale], ["", ""])
        for figure in charts.AXES
        for name, scale in (("gatkernels-cpu", 1.0), ("pyg", 20.0), ("(gather-sum)", 0.5))
    ]
    lines[1].x.append(1e6)
    lines[1].y.append(None)
    lines[1].notes.append("OOM")
    epoch = {"timings": {"gatkernels": {"median": 1.0, "q1": 1.0, "q3": 1.0, "rounds": 3}}}
    epoch["reason"] = "cannot import torch_geometric.nn"  # type: ignore[assignment]
    return results.Report(results.environment(), {}, list(found), lines, epoch)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    written = a_report(case_result(1.0, 0.1, dgl=2.0))
    results.save(written, tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    for text in ("{}", "[]", "no json", '{"format": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: not a result"):
            results.load(tmp_path / "bad.json")


def test_environment_says_what_decides_a_result() -> None:
    found = results.environment()
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"device", "cores", "load", "date", "commit", "dirty"} <= set(found)


def test_table_says_what_was_measured() -> None:
    text = report.markdown(a_report(case_result(0.5, dgl=2.0)))
    row = next(line for line in text.splitlines() if "| dgl |" in line)
    assert [cell.strip() for cell in row.split("|")[3:12]] == [
        "2,000", "2,000", "2,000", "0", "-", "4.0x", "-", "1.0", "0.5",
    ]  # fmt: skip
    assert "| pyg | OOM |" in text


def test_compare_knows_noise() -> None:
    before = a_report(case_result(1.0, 0.02, dgl=2.0))
    after = a_report(case_result(0.5, 0.02, dgl=2.05))
    after.cases[0].peers[-1].status = "ok"
    rows = {row[1]: row for row in compare.compare(before, after).rows if row[-1] != "changed"}
    assert rows["gatkernels-cpu"][-2:] == ["0.50x", "faster"]
    assert rows["dgl"][-1] == "same"
    assert rows["(gather-sum)"][-1] == "faster"
    assert ["cora gat 8x8", "pyg", "OOM", "ok", "", "changed"] in compare.compare(
        before, after
    ).rows
    noisy = compare.compare(a_report(case_result(1.0, 0.3)), a_report(case_result(1.2, 0.3)))
    assert noisy.rows[0][-1] == "within noise"
    slower = compare.compare(a_report(case_result(1.0)), a_report(case_result(1.2)))
    assert slower.rows[0][-1] == "slower"
    after.environment["threads"] = 99
    assert any(line.startswith("threads:") for line in compare.differences(before, after))


def test_charts_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = charts.draw(a_report(case_result(1.0, dgl=2.0)), tmp_path)
    assert [path.name for path in paths] == [
        "layers.png", "edges.png", "memory.png", "width.png", "threads.png",
    ]  # fmt: skip
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert charts.draw(results.Report({}, {}), tmp_path) == []


@pytest.mark.usefixtures("in_this_process")
def test_curves_drop_who_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "EDGES", (400, 800))
    monkeypatch.setattr(curves, "FIXED", SMALL)
    settings = run.Settings(torch.get_num_threads(), 0.01)
    points = curves.points(settings, cores=4)
    assert [point.x for point in points if point.figure == "edges"] == [400, 800]
    assert [point.x for point in points if point.figure == "threads"] == [1, 2, 4]
    lines = curves.Curves([PEERS["reference"], Hungry()])
    for point in points[:2]:
        lines.run(point, lambda text: None)
    found = {(line.figure, line.peer): line for line in lines}
    assert found["edges", "reference"].x == [400, 800]
    assert found["edges", "hungry"].notes == ["OOM"]
    assert found["memory", "reference"].figure == "memory"
    assert found["edges", "(gather-sum)"].y[1] is not None
    monkeypatch.setattr(curves, "PATIENCE", 0.0)
    lines = curves.Curves([PEERS["reference"]])
    for point in points[:2]:
        lines.run(point, lambda text: None)
    assert next(iter(lines)).x == [400]


# The command


@pytest.mark.usefixtures("in_this_process")
def test_command_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "QUICK", [Spec("tiny"), Spec("nowhere")])
    out = tmp_path / "out"
    threads = str(torch.get_num_threads())
    arguments = ["bench", "--quick", "--peers", "reference", f"{__name__}:Right", "--threads"]
    arguments += [threads, "--seconds", "0.01", "--no-memory", "--out", str(out)]
    assert cli.main(arguments) == 0
    stored = json.loads((out / "results.json").read_text())
    assert stored["settings"]["seconds"] == 0.01
    assert [case["status"] for case in stored["cases"]] == ["ok", "skipped"]
    timings = stored["cases"][0]["peers"][1]["timings"]
    assert timings["step"]["median"] >= timings["step"]["q1"] > 0
    assert "| tiny gat 8x8 | right |" in (out / "results.md").read_text()
    assert "written to" in capsys.readouterr().out
    files = [str(out / "results.json")] * 2
    assert cli.main(["bench", "--compare", *files]) == 0
    assert "same" in capsys.readouterr().out
    wrong = ["bench", "--quick", "--peers", f"{__name__}:Wrong", "--seconds", "0.01"]
    assert cli.main([*wrong, "--no-memory", "--threads", threads, "--out", str(out)]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "nobody"], "no peer 'nobody'"),
        (["--peers", "no.such.module:Class"], "No module named"),
        (["--graphs", "nothing"], "no graph 'nothing'"),
        (["--shapes", "8by8"], "heads x channels"),
        (["--seconds", "0"], "--seconds must be positive, got 0"),
        (["--threads", "-1"], "--threads must be positive, got -1"),
        (["--scale", "2"], "--scale must be between 0 and 1, got 2"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--compare", "a.json", "b.json"], "a.json"),
    ],
)
def test_command_rejects_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_default_peers_suit_the_case() -> None:
    def names(spec: Spec, quick: bool = False) -> set[str]:
        return {peer.name for peer in bench_cli.peers_for(spec, quick)}

    assert "pyg-compiled" in names(Spec("cora"))
    assert "pyg-compiled" not in names(Spec("cora"), quick=True)
    assert "pyg-compiled" not in names(Spec("tolokers"))
    assert "reference" in names(Spec("tolokers")) & names(Spec("arxiv", "8x16", "gatv2"))
    assert "reference" not in names(Spec("reddit"))
    assert {"pyg", "dgl"} <= names(Spec("reddit"))
    assert ("gatkernels-cpu" in names(Spec("reddit"))) == (_native.cpu_missing is None)
    assert "dgnn" not in names(Spec("cora"))
    assert "dgnn" in names(Spec("cora", device="cuda"))
    assert "gatkernels-cpu" not in names(Spec("cora", device="cuda"))


def test_epoch_of_both_models() -> None:
    pytest.importorskip("torch_geometric")
    from gatkernels.bench.epoch import epoch_ratio

    result = epoch_ratio(lambda text: None, rounds=1, block=1)
    assert result.timings["gatkernels"].median > 0
    assert result.logit_difference is not None
    assert result.logit_difference < 1e-4
    assert result.ratio is not None


def test_importing_the_cases_imports_no_peer() -> None:
    code = (
        "import sys, gatkernels.bench.cli; "
        "print([m for m in ('torch_geometric', 'dgl', 'rich', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
