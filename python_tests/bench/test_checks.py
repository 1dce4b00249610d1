"""A result is checked before it is timed; what cannot run says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_peers import (
    Absent,
    Broken,
    Crashing,
    Hungry,
    Misshapen,
    NotANumber,
    Right,
    Wrong,
    WrongGradient,
    timed,
)
from torch import Tensor

from gatkernels import backends
from gatkernels.backends import compiled, native
from gatkernels.bench import (
    adapters,
    cases,
    check,
    graphs,
    measure,
    memory,
    process,
    profiled,
    report,
    results,
    run,
    smoke,
)
from gatkernels.bench.cases import Spec
from gatkernels.bench.peers import PEERS, Ours, Peer, address, find

LIBRARIES = [name for name, peer in PEERS.items() if not (peer.compiles or peer.cuda_only)]
SMALL = "power-law:400"


@pytest.mark.parametrize(
    "spec",
    [Spec(SMALL), Spec(SMALL, "1x3", "gatv2"), Spec("tiny:70"), Spec("tiny:70", layer="dot")],
)
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


def test_a_gradient_that_is_zero_but_for_rounding_is_right() -> None:
    """One source per row: the softmax is 1 whatever the scores, and nothing flows to them."""
    case = cases.build(Spec("tiny"))
    ring = torch.arange(64)
    case = replace(case, edges=replace(case.edges, edge_index=torch.stack([ring, ring.roll(1)])))
    expected = check.expect(case)
    assert float(expected.gradients[1].abs().max()) < 1e-12
    for name in LIBRARIES:
        if PEERS[name].unavailable(case.spec) is None:
            assert check.first_call(PEERS[name].prepare(case), expected).excess < 1.0


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
    if reason := native.cpu_missing:
        pytest.skip(reason)

    class Kernels(compiled.Compiled):
        def gat_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
            out, *rest = super().gat_forward(*arguments)
            out[3] *= 1.01
            return (out, *rest)

    backend = backends.Backend(lambda case: None, Kernels)
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.setitem(backends._BACKENDS, "wrong", backend)
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
    peer = find("odd_peers:Right")
    assert peer.name == "right"
    assert address(peer) == "odd_peers:Right"
    assert address(PEERS["pyg"]) == "pyg"
    with pytest.raises(KeyError, match="no peer 'nobody'"):
        find("nobody")


def test_gpu_peers_say_why_they_are_skipped() -> None:
    assert adapters.DgNN().unavailable(Spec("cora")) == "runs on CUDA only"
    assert "GATv2" in str(adapters.TurboGNN().unavailable(Spec("cora", device="cuda")))
    for peer, layer in ((adapters.DgNN(), "gat"), (adapters.TurboGNN(), "gatv2")):
        reason = peer.unavailable(Spec("cora", layer=layer, device="cuda"))
        assert reason is None or "cannot import" in reason


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


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 130), ("SIGKILL", -9)])
def test_a_run_that_is_ended_leaves_no_process(
    number: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "gatkernels.bench", "--graphs", "hub", "--scale", "0.001"]
    command += ["--peers", "odd_peers:Sleeping", "--threads", "1", "--no-memory"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as started:
        try:
            assert started.stderr is not None
            assert any("sleeping checked" in line for line in started.stderr)
            started.send_signal(getattr(signal, number))
            started.communicate(timeout=60)  # until nobody holds the pipe any more
            assert started.returncode == status
            if number == "SIGTERM":
                assert not list(tmp_path.glob("pymp-*"))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


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


def test_smoke_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each case by itself: a wrong result, a crash, a backend that is not there."""

    def call(check: Any, spec: Spec, backend: str, **_: Any) -> float:
        if spec.dtype == "float64":
            raise process.ChildError("error", "the process ended with status -11")
        return 2.5 if spec.layer == "gatv2" else 0.5

    monkeypatch.setattr(process, "call", call)
    found = {name: (text, well) for name, text, well in smoke.outcomes("cpu", ["reference"], 1, 2)}
    assert len(found) == 12
    assert found["reference gat float32"] == ("0.50 of what is allowed", True)
    assert found["reference gatv2 bfloat16"] == ("2.50 of what is allowed", False)
    crashed = "FAIL: error, the process ended with status -11"
    assert found["reference gat float64"] == (crashed, False)
    absent = {name: text for name, text, _ in smoke.outcomes("meta", ["cpu"], 1, 1)}
    assert absent["cpu gat float32"].startswith("FAIL: runs on CPU tensors")


def test_smoke_and_a_profiled_step_run(capsys: pytest.CaptureFixture[str]) -> None:
    if reason := native.cpu_missing:
        pytest.skip(reason)
    spec = Spec("arxiv", "4x16", "gatv2", "bfloat16", "cpu", 0.002)
    assert 0.0 <= smoke.check(spec, "cpu", lambda text: None) <= 1.0
    profiled.main(["gat", "--device", "cpu", "--backend", "cpu", "--scale", "0.0002"])
    assert capsys.readouterr().out.startswith("3 steps of reddit gat 4x64")
