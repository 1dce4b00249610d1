"""Results, tables, charts, curves and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from odd_peers import Hungry

from gatkernels import cli
from gatkernels.backends import native
from gatkernels.bench import cases, charts, compare, curves, measure, memory, report, results, run
from gatkernels.bench import cli as bench_cli
from gatkernels.bench.cases import Spec
from gatkernels.bench.peers import PEERS

SMALL = "power-law:400"


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
    assert "written to" in capsys.readouterr().out
    files = [str(out / "results.json")] * 2
    assert cli.main(["bench", "--compare", *files]) == 0
    assert "same" in capsys.readouterr().out
    wrong = ["bench", "--quick", "--peers", "odd_peers:Wrong", "--seconds", "0.01"]
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
