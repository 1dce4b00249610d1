"""The benchmark's own parts, on tiny graphs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gatkernels.bench import __main__ as cli
from gatkernels.bench import check, graphs, limits, measure, memory, report, run
from gatkernels.bench.graphs import Case
from gatkernels.bench.peers import PEERS, Layer, Peer, address, find

LIBRARIES = ["reference", "pyg", "dgl", "gatkernels"]


class Wrong(Peer):
    """The reference with one row of its output changed."""

    name = "wrong"
    delta = 1e-2

    def layer(self, case: Case, graph: object) -> Layer:
        reference = PEERS["reference"]
        right = reference.layer(case, reference.graph(case))
        bump = torch.zeros(case.num_nodes, 1)
        bump[7] = self.delta
        return Layer(lambda: right.call() + bump, right.parameters)


class NotANumber(Wrong):
    name = "nan"
    delta = float("nan")


class WrongGradient(Peer):
    name = "wrong-gradient"

    def layer(self, case: Case, graph: object) -> Layer:
        reference = PEERS["reference"]
        right = reference.layer(case, reference.graph(case))
        lin = right.parameters[0]
        return Layer(lambda: right.call() + 0.01 * (lin - lin.detach()).sum(), right.parameters)


class Broken(Peer):
    name = "broken"

    def layer(self, case: Case, graph: object) -> Layer:
        raise RuntimeError("no such kernel")


class Absent(Peer):
    name = "absent"

    def unavailable(self) -> str:
        return "not installed"


class Bare(Wrong):
    """Right, and reachable as module:Class."""

    name = "bare"
    delta = 0.0


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATKERNELS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny_case(monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(graphs, "CASES", {"tiny": graphs.tiny})
    monkeypatch.setattr(measure, "WARM", 0.0)
    for module in (run, cli):
        monkeypatch.setattr(module, "CASES", graphs.CASES)
    return graphs.tiny()


def test_rmat_is_simple_seeded_and_skewed() -> None:
    edges = graphs.rmat(10, 8000, seed=3)
    assert edges.shape == (2, 8000)
    assert edges.min() >= 0
    assert edges.max() < 1024
    keys = edges[0] * 1024 + edges[1]
    assert (np.diff(keys) > 0).all()
    assert (edges[0] != edges[1]).all()
    assert np.array_equal(edges, graphs.rmat(10, 8000, seed=3))
    assert not np.array_equal(edges, graphs.rmat(10, 8000, seed=4))
    assert np.bincount(edges[1]).max() > 10 * 8000 / 1024


def test_rmat_refuses_what_would_not_end() -> None:
    with pytest.raises(ValueError, match="too many"):
        graphs.rmat(4, 200)


def test_cache_is_written_once_and_survives_damage() -> None:
    built = []

    def build() -> graphs.IntArray:
        built.append(1)
        return np.array([[0, 1], [1, 0]])

    first = graphs.cached("pair", build)
    second = graphs.cached("pair", build)
    assert len(built) == 1
    assert np.array_equal(first, second)
    assert second.dtype == np.int64
    folder = graphs.cache_dir() / "graphs"
    assert os.listdir(folder) == ["pair.npy"]
    (folder / "pair.npy").write_bytes(b"\x93NUMPY broken")
    assert np.array_equal(graphs.cached("pair", build), first)
    assert len(built) == 2


def test_missing_data_gives_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GATKERNELS_DATA", raising=False)
    with pytest.raises(graphs.Unavailable, match="GATKERNELS_DATA is not set"):
        graphs.cnr2000()
    monkeypatch.setenv("GATKERNELS_DATA", str(tmp_path))
    with pytest.raises(graphs.Unavailable, match=r"no file graphs/cnr-2000\.npz"):
        graphs.cnr2000()
    case = graphs.cora()
    assert "random graph" in case.note
    assert case.x.shape == (2708, 1433)


def test_real_cora() -> None:
    try:
        edges, x = graphs.planetoid("Cora")
    except graphs.Unavailable as reason:
        pytest.skip(str(reason))
    assert edges.shape == (2, 10556)
    assert x.shape == (2708, 1433)
    assert np.allclose(x.sum(1), 1.0)


def test_planetoid_reader_runs_no_foreign_code(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "bad"
    path.write_bytes(pickle.dumps(os.getcwd))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="unexpected"):
        graphs._PlanetoidUnpickler(file).load()


def test_symmetric() -> None:
    edges = graphs.symmetric(np.array([0, 2, 3, 4]), np.array([0, 1, 0, 1]))
    assert edges.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]


@pytest.mark.parametrize("name", LIBRARIES)
def test_peer_agrees_with_the_reference(name: str) -> None:
    if reason := PEERS[name].unavailable():
        pytest.skip(reason)
    case = graphs.tiny()
    assert check.error(PEERS[name].prepare(case), check.expect(case)) < check.TOLERANCE


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_expected_results_in_chunks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    case = graphs.tiny()
    whole = check.expect(case)
    monkeypatch.setattr(check, "CHUNK", chunk)
    part = check.expect(case)
    assert torch.allclose(whole.out, part.out, rtol=1e-12)
    assert torch.allclose(whole.gradients.lin, part.gradients.lin, rtol=1e-10)


def test_sampled_rows_hold_the_hub_and_an_empty_row() -> None:
    case = graphs.tiny()
    rows = check.sample_rows(case, edge_budget=50)
    degree = torch.bincount(case.edge_index[1], minlength=case.num_nodes)
    assert degree.argmax() in rows
    assert (degree[rows] == 0).any()
    assert rows.numel() < case.num_nodes
    expected = check.expect(case, edge_budget=50)
    assert check.error(PEERS["reference"].prepare(case), expected) < check.TOLERANCE


@pytest.mark.parametrize("peer", [Wrong(), NotANumber(), WrongGradient(), Broken()])
@pytest.mark.usefixtures("tiny_case")
def test_wrong_result_gets_no_time(peer: Peer) -> None:
    result = run.run_case("tiny", [PEERS["reference"], peer], rounds=1, memory=False)
    found = result.peer(peer.name)
    assert found is not None
    assert found.status == "FAIL"
    assert found.timings == {}
    assert result.ratio(peer.name, "step") is None
    text = report.markdown(report.Report(report.environment(), {}, [result]))
    row = next(line for line in text.splitlines() if f"| {peer.name} |" in line)
    assert "FAIL" in row
    reference = result.peer("reference")
    assert reference is not None
    assert set(reference.timings) == set(measure.PHASES)


@pytest.mark.usefixtures("tiny_case")
def test_absent_peer_is_skipped_with_its_reason() -> None:
    result = run.run_case("tiny", [Absent()], rounds=1, memory=False)
    assert result.peers[0].status == "skipped"
    assert "not installed" in report.markdown(report.Report(report.environment(), {}, [result]))


def test_own_peer_is_found_by_address() -> None:
    peer = find(f"{__name__}:Bare")
    assert peer.name == "bare"
    assert address(peer) == f"{__name__}:Bare"
    assert address(PEERS["pyg"]) == "pyg"
    with pytest.raises(KeyError, match="no peer 'nobody'"):
        find("nobody")


class Sleeper:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def forward(self) -> None:
        self.log.append(self.name)

    def backward(self) -> None:
        pass


def test_rounds_rotate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WARM", 0.0)
    log: list[str] = []
    times = measure.interleave({name: Sleeper(log, name) for name in "abc"}, rounds=3)
    assert "".join(log) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert times["a"]["step"].rounds == 3


def test_quartiles() -> None:
    timing = measure.Timing.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (timing.median, timing.q1, timing.q3, timing.rounds) == (3.0, 2.0, 4.0, 5)
    assert measure.Timing.of([2.0]).median == 2.0


def test_gather_sum_is_the_sum() -> None:
    case = graphs.tiny()
    adjacency = torch.zeros(case.num_nodes, case.num_nodes)
    adjacency.index_put_(
        (case.edge_index[1], case.edge_index[0]), torch.ones(case.num_edges), accumulate=True
    )
    names = []
    for name, gather in limits.candidates(case.edge_index, case.num_nodes):
        assert torch.allclose(gather(case.grad_out), adjacency @ case.grad_out, atol=1e-3), name
        names.append(name)
    assert len(names) >= 4
    floor = limits.Gather(case)
    assert torch.allclose(floor.backward(), adjacency.t() @ case.grad_out, atol=1e-3)


def test_projection_backward_is_the_weight_gradient() -> None:
    case = graphs.tiny()
    weight = case.weights.lin.clone().requires_grad_()
    (want,) = torch.autograd.grad(case.x @ weight.t(), weight, case.grad_out)
    assert torch.allclose(limits.Projection(case).backward(), want, atol=1e-4)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="peak memory is read from /proc")
def test_peak_memory_in_a_fresh_process() -> None:
    peak = memory.peak_memory("cora", "reference", 1)
    if peak.bytes is None and "clear_refs" in peak.reason:
        pytest.skip(peak.reason)
    assert peak.bytes is not None, peak.reason
    # No tighter: memory freed while warming up is used again without a trace in the peak.
    assert 0 < peak.bytes < 2**28


def test_peak_memory_reports_why_there_is_none() -> None:
    assert "no peer 'nobody'" in memory.peak_memory("cora", "nobody", 1).reason


def test_peak_is_what_is_held_at_once() -> None:
    if not memory.STATUS.exists() or not memory.forget_peak():
        pytest.skip("the peak cannot be reset here")
    before = memory.resident()
    block: Tensor | None = torch.ones(2**24)
    del block
    assert memory.highest() - before >= 0.9 * 2**26


def test_targets_are_met_missed_or_not_measured() -> None:
    def peer(name: str, seconds: float, peak: int | None) -> run.PeerResult:
        timings = {phase: measure.Timing.of([seconds]) for phase in measure.PHASES}
        weight = None if peak is None else memory.Peak(peak)
        return run.PeerResult(name, timings=timings, peak=weight)

    case = run.CaseResult("products")
    case.peers = [peer("gatkernels", 1.0, 10), peer("dgl", 11.0, None), peer("pyg", 20.0, 200)]
    states = {
        target.text: target.state
        for target in report.targets(report.Report(report.environment(), {}, [case]))
    }
    assert states == {
        "products: step >= 10x faster than dgl": "met (11)",
        "products: step >= 25x faster than pyg": "MISSED (20)",
        "products: pyg takes >= 10x our memory": "met (20)",
    }
    case.peers.pop()
    found = report.targets(report.Report(report.environment(), {}, [case]))
    assert found[1].state == "not measured"


@pytest.mark.usefixtures("tiny_case")
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out" / "results.json"
    threads = str(torch.get_num_threads())
    arguments = ["--graphs", "tiny", "--peers", "reference", f"{__name__}:Bare", "--rounds", "2"]
    arguments += ["--no-memory", "--no-epoch", "--threads", threads, "--json", str(path)]
    assert cli.main(arguments) == 0
    stored = json.loads(path.read_text())
    assert stored["settings"]["rounds"] == 2
    assert stored["environment"]["versions"]["torch"] == torch.__version__
    timings = stored["cases"][0]["peers"][1]["timings"]
    assert timings["step"]["median"] >= timings["step"]["q1"] > 0
    assert "| tiny | bare |" in path.with_suffix(".md").read_text()
    assert "written to" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_case")
def test_command_line_fails_on_a_wrong_peer(tmp_path: Path) -> None:
    arguments = ["--graphs", "tiny", "--peers", f"{__name__}:Wrong", "--rounds", "1"]
    arguments += ["--no-memory", "--no-epoch", "--json", str(tmp_path / "r.json")]
    assert cli.main(arguments) == 1


def test_command_line_rejects_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--peers", "nobody"], "no peer 'nobody'"),
        (["--peers", "no.such.module:Class"], "No module named"),
        (["--graphs", "nothing"], "invalid choice"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            cli.main(arguments)
        assert message in capsys.readouterr().err


def test_epoch_of_both_models() -> None:
    from gatkernels.bench.epoch import epoch_ratio

    result = epoch_ratio(rounds=1, block=1)
    assert result.timings["gatkernels"].median > 0
    if "pyg" in result.timings:
        assert result.logit_difference is not None
        assert result.logit_difference < 1e-4
        assert result.ratio is not None
    else:
        assert "torch_geometric" in result.reason


def test_importing_the_cases_imports_no_peer() -> None:
    import subprocess

    code = (
        "import sys, gatkernels.bench.run, gatkernels.bench.report; "
        "print([m for m in ('torch_geometric', 'dgl', 'rich', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
