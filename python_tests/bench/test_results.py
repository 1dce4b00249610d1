"""Results, tables, charts, curves and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_peers import Hungry

from gatkernels import cli
from gatkernels.backends import native
from gatkernels.bench import cases, charts, compare, curves, measure, memory, report, results, run
from gatkernels.bench import cli as bench_cli
from gatkernels.bench.cases import Spec
from gatkernels.bench.peers import PEERS, Layer, Peer, load

SMALL = "power-law:400"
README = Path(__file__).parents[2] / "bench" / "README.md"
OWN_LAYER = """
import torch
from torch import nn
from gatkernels import Graph, gat_attention

class FastGAT(nn.Module):
    def __init__(self, inputs, channels, heads):
        super().__init__()
        self.shape = heads, channels
        self.projection = nn.Parameter(torch.empty(heads * channels, inputs))
        self.a_src = nn.Parameter(torch.empty(heads, channels))
        self.a_dst = nn.Parameter(torch.empty(heads, channels))
        self.bias = nn.Parameter(torch.empty(heads * channels))

    def forward(self, x, edges):
        h = (x @ self.projection.T).unflatten(1, self.shape)
        graph = Graph.from_edge_index(edges, x.shape[0])
        scores = (h * self.a_src).sum(-1), (h * self.a_dst).sum(-1)
        return gat_attention(graph, h, *scores).flatten(1) + self.bias
"""


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
    assert torch.__version__.startswith(found["versions"]["torch"])  # or with "+cu130"
    assert found["threads"] == torch.get_num_threads()
    assert {"device", "cores", "load", "date", "commit", "dirty"} <= set(found)


def test_table_says_what_was_measured() -> None:
    text = report.markdown(a_report(case_result(0.5, dgl=2.0)))
    times, traffic = (line for line in text.splitlines() if "| dgl |" in line)
    assert [cell.strip() for cell in times.split("|")[3:11]] == [
        "2,000", "2,000", "2,000", "0", "-", "4.0x", "-", "1.0",
    ]  # fmt: skip
    assert traffic.split("|")[3].strip() == "0.5"
    assert "| pyg | OOM |" in text
    assert "- pyg OOM: too big (cora gat 8x8)" in text


def test_tables_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a case has a long name, and a peer a long reason for having no time."""
    pytest.importorskip("rich")
    found = case_result(12.345, 0.1, **{"gatkernels-triton": 23.4, "pyg-compiled": 345.6})
    found.name, found.scale = "communities-shuffled gatv2 8x16 bfloat16", 1 / 32
    found.peers.append(results.PeerResult("mine", "error", "TypeError: " + "so " * 60 + "long"))
    report.show_tables(report.tables(a_report(found)))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    assert not any("so so" in line for line in lines)
    for name in ("gatkernels-triton", "pyg-compiled", "345,600"):
        assert any(name in line for line in lines)
    (note,) = [line for line in report.missing(a_report(found)) if line.startswith("mine error")]
    assert note.endswith("long (communities-shuffled /32 gatv2 8x16 bfloat16)")


@pytest.mark.parametrize(
    ("smallest", "largest"),
    [(1.0, 1.0), (0.93, 1.21), (0.5, 1.4), (1.0, 70.0), (0.01, 900.0), (1.0, 1e6)],
)
def test_ticks_of_ratios(smallest: float, largest: float) -> None:
    ticks = charts.ratio_ticks(smallest, largest)
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 10
    assert ticks[0] <= min(smallest, 1.0)
    assert ticks[-1] >= largest
    assert 1.0 in ticks


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


@pytest.mark.usefixtures("in_this_process")
def test_command_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "QUICK", [Spec("tiny"), Spec("nowhere")])
    out = tmp_path / "out"
    threads = str(torch.get_num_threads())
    arguments = ["bench", "--quick", "--peers", "reference", "odd_peers:Right", "--threads"]
    arguments += [threads, "--seconds", "0.01", "--no-memory", "--out", str(out)]
    assert cli.main(arguments) == 0
    stored = json.loads((out / "results.json").read_text())
    assert stored["settings"]["seconds"] == 0.01
    assert [case["status"] for case in stored["cases"]] == ["ok", "skipped"]
    timings = stored["cases"][0]["peers"][1]["timings"]
    assert timings["step"]["median"] >= timings["step"]["q1"] > 0
    assert "| tiny gat 8x8 | right |" in (out / "results.md").read_text()
    text = capsys.readouterr()
    assert "written to" in text.out
    assert text.err.splitlines()[-1] == "[2/2] done"
    files = [str(out / "results.json")] * 2
    assert cli.main(["bench", "--compare", *files]) == 0
    assert "same" in capsys.readouterr().out
    wrong = ["bench", "--quick", "--peers", "odd_peers:Wrong", "--seconds", "0.01"]
    assert cli.main([*wrong, "--no-memory", "--threads", threads, "--out", str(out)]) == 1


@pytest.mark.usefixtures("in_this_process")
def test_a_peer_that_copies_its_weights_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer of `bench/README.md` as it stands, around a layer that knows nothing of PyG's."""
    recipe = re.search(r"```python\n(# mine\.py.*?)```", README.read_text(), re.DOTALL)
    assert recipe is not None
    (tmp_path / "mine.py").write_text(recipe[1])
    (tmp_path / "my_layers.py").write_text(OWN_LAYER)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["bench", "--quick", "--peers", "reference", "mine:Mine", "--seconds", "0.01"]
    arguments += ["--no-memory", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(cases, "QUICK", [Spec("tiny")])
    assert cli.main(arguments) == 0
    (found,) = results.load(tmp_path / "out" / "results.json").cases
    assert [peer.status for peer in found.peers] == ["ok", "ok"]

    monkeypatch.setattr(cases, "QUICK", [Spec("tiny", layer="gatv2")])  # it has three weights
    assert cli.main(arguments) == 1
    (found,) = results.load(tmp_path / "out" / "results.json").cases
    assert [peer.status for peer in found.peers] == ["ok", "error"]


def test_parameters_in_another_order_are_named() -> None:
    class Mixed(Peer):
        name = "mixed"

        def layer(self, case: cases.Case, graph: Any) -> Layer:
            right = PEERS["reference"].layer(case, PEERS["reference"].graph(case))
            return Layer(right.call, right.parameters[::-1])

    with pytest.raises(ValueError, match=r"in the order of case\.weights, \{'lin': \[64, 12\]"):
        Mixed().prepare(cases.build(Spec("tiny")))
    with pytest.raises(TypeError, match="the peer 'bare' has no method 'layer'"):
        type("Bare", (Peer,), {"name": "bare"})().prepare(cases.build(Spec("tiny")))
    with pytest.raises(ValueError, match=r"shape \[3\] does not fit .* shape \[2, 2\]"):
        load(torch.nn.Parameter(torch.zeros(2, 2)), torch.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "nobody"], "no peer 'nobody'"),
        (["--peers", "odd_peers:os"], "not callable"),
        (["--peers", "pathlib:Path"], "must be a subclass of gatkernels.bench.peers.Peer"),
        (["--peers", "no.such.module:Class"], "No module named"),
        (["--graphs", "nothing"], "no graph 'nothing'"),
        (["--shapes", "8by8"], "heads x channels"),
        (["--seconds", "0"], "--seconds must be positive, got 0"),
        (["--threads", "-1"], "--threads must be positive, got -1"),
        (["--scale", "2"], "--scale must be between 0 and 1, got 2"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--device", "meta"], "--device meta cannot be used"),
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
    assert "reference" in names(Spec("physics")) & names(Spec("arxiv", "8x16", "gatv2"))
    assert "reference" not in names(Spec("tolokers"))
    assert "reference" not in names(Spec("reddit"))
    assert {"pyg", "dgl"} <= names(Spec("reddit"))
    assert ("gatkernels-cpu" in names(Spec("reddit"))) == (native.cpu_missing is None)
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
