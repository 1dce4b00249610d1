"""The stated targets: floors, ratios, what is open and why, and the command."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_measuring import Sleeper

from gatkernels import Graph, backends, cli
from gatkernels.backends import native
from gatkernels.bench import (
    check,
    drawn,
    measure,
    operators,
    process,
    report,
    results,
    run,
    targets,
    targets_run,
    traffic,
)
from gatkernels.bench.cases import LAYERS, Spec
from gatkernels.bench.results import Measured, Report
from gatkernels.bench.targets_run import Group

RESULTS = Path(__file__).parents[2] / "bench" / "results"
OURS = "cpu" if native.cpu_missing is None else "reference"
SMALL = Spec("arxiv", "4x2", scale=0.002)


@pytest.mark.parametrize(
    ("graph", "forward", "backward"), [("reddit", 28.31, 29.38), ("products", 31.11, 33.28)]
)
def test_gather_floor_of_an_h200(graph: str, forward: float, backward: float) -> None:
    """At 4.3 TB/s, 4x64 in float32: a row of 1 KiB, and 36 or 72 bytes beside it, per edge."""
    size = drawn.SIZES[graph]
    moved = traffic.attention("gat", (size.nodes, size.nodes), size.edges, 4, 1024)
    assert moved["forward"] == size.edges * 1060 + size.nodes * 1072
    assert moved["backward"] == size.edges * 1096 + size.nodes * 3072
    assert moved["forward"] / 4.3e9 == pytest.approx(forward, abs=0.01)
    assert moved["backward"] / 4.3e9 == pytest.approx(backward, abs=0.01)
    second = traffic.attention("gatv2", (size.nodes, size.nodes), size.edges, 4, 1024)
    assert second["forward"] == size.edges * 1028 + size.nodes * 2048
    assert second["backward"] == size.edges * 3112 + size.nodes * 6144


@pytest.mark.parametrize("name", sorted(drawn.SIZES))
def test_drawn_graphs_have_their_size_and_skew(name: str) -> None:
    scale = 20_000 / drawn.SIZES[name].edges
    edges = drawn.draw(name, scale)
    count = 10_556 if name == "cora" else 20_000
    assert edges.edge_index.shape[1] == pytest.approx(count, abs=1)
    assert edges.num_src == edges.num_dst > int(edges.edge_index.max())
    assert torch.equal(edges.edge_index, drawn.draw(name, scale).edge_index)
    degree = torch.bincount(edges.edge_index[1], minlength=edges.num_dst)
    if name == "hub":
        assert 10_000 <= int(degree[0]) < 10_100
    elif name == "even":
        assert int(degree.max()) < 60
    else:
        assert int(degree.max()) > 3 * degree.double().mean()
        keys = edges.edge_index[0] * edges.num_src + edges.edge_index[1]
        assert bool((keys.diff() > 0).all())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_operators_pass_on_all_rows_and_on_some(
    layer: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(SMALL, layer=layer, dtype=dtype)
    edges = drawn.draw(spec.graph, spec.scale)
    graph = Graph.from_edge_index(edges.edge_index, edges.num_dst)
    step = operators.Operator(spec, edges, graph, OURS)
    assert operators.excess(step) < 1.0
    monkeypatch.setattr(check, "BUDGET", 8 * 300)
    assert operators.excess(step) < 1.0
    assert len(step.rotation.items) > 1
    assert not torch.equal(step.forward(), step.forward())


@pytest.mark.parametrize("spoilt", ["gat_forward", "gat_sources"])
def test_wrong_operator_gets_no_time(spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := native.cpu_missing:
        pytest.skip(reason)
    right = backends.kernels("cpu")

    def wrong(*arguments: Any) -> Any:
        results = getattr(right, spoilt)(*arguments)
        results[0][3] += 1.0
        return results

    names = ("gat_forward", "gat_destinations", "gat_sources")
    kernels = {name: getattr(right, name) for name in names}
    module = SimpleNamespace(**{**kernels, spoilt: wrong})
    monkeypatch.setattr(backends, "_loaded", {})
    backend = backends.Backend(lambda case: None, lambda: module)
    monkeypatch.setitem(backends._BACKENDS, "wrong", backend)
    told: list[Any] = []
    operators.time_floors("wrong", [SMALL], 0.01, told.append)
    operators.time_hub("wrong", [Spec("hub", "4x8", scale=0.0005)], 0.01, told.append)
    found = [one for one in told if isinstance(one, Measured)]
    assert [(one.status, one.figures) for one in found] == [("FAIL", {})] * 2
    assert "times what is allowed" in found[0].reason


def a_run(device: str, *found: Measured, **settings: Any) -> Report:
    environment = {**results.environment(), "device": device}
    return Report(environment, {"device": "cuda", **settings}, targets=list(found))


def operator(name: str, graph: str, dtype: str, seconds: float) -> Measured:
    figures = dict.fromkeys(measure.PHASES, seconds) | {"floor forward": 1.0, "floor backward": 2.0}
    return Measured("operator", name, graph, "4x64", "gat", dtype, figures=figures)


def test_ratios_and_what_is_open() -> None:
    layer = ("reddit", "4x64", "gat", "float32")
    found = a_run(
        "NVIDIA H200",
        operator("cuda", "reddit", "float32", 1.2),
        operator("triton", "reddit", "float32", 3.0),
        operator("triton", "reddit", "bfloat16", 1.5),
        Measured("operator", "cuda", "products", "4x64", "gat", "float32", "FAIL", "off by 3"),
        Measured("layer", "triton", *layer, figures={"step": 1.0, "peak": 2.0**20}),
        Measured("layer", "pyg", *layer, "OOM", "CUDA out of memory"),
        Measured("layer compiled", "triton", *layer, figures={"step": 1.0}),
        Measured("layer compiled", "pyg-compiled", *layer, figures={"step": 2.0}),
        Measured("small", "cuda", "cora", "8x8", "gat", "float32", figures={"replay": 2e-5},
                 missing={"host": "no such clock"}),
    )  # fmt: skip
    rows = {(row.target.name, row.case): row for row in targets.rows(found)}

    def shown(target: str, case: str) -> tuple[float | None, str, str]:
        row = rows[target, case]
        return row.value, row.reason, report.met(found, [row])

    assert shown("cuda-floor", "reddit gat 4x64 forward") == (1.2, "", "yes")
    assert shown("cuda-floor", "reddit gat 4x64 backward") == (0.6, "", "yes")
    assert shown("triton-floor", "reddit gat 4x64 forward") == (3.0, "", "no")
    assert shown("triton-bfloat16", "reddit gat 4x64 bfloat16") == (2.0, "", "yes")
    assert shown("cuda-triton", "reddit gat 4x64") == (2.5, "", "yes")
    assert shown("cuda-small", "cora gat 8x8") == (2e-5, "", "yes")
    assert shown("cuda-small-host", "cora gat 8x8") == (None, "no such clock", "")
    assert shown("triton-pyg-compiled", "reddit gat 4x64") == (2.0, "", "no")
    assert shown("triton-pyg", "reddit gat 4x64") == (None, "pyg: OOM", "")
    assert shown("triton-memory", "reddit gat 4x64") == (None, "pyg: OOM", "")
    missing = "cuda was not measured in this run"
    assert shown("cuda-hub", "hub gat 4x64") == (None, missing, "")
    failed = rows["cuda-floor", "products gat 4x64 forward"]
    assert (failed.status, failed.value) == ("FAIL", None)
    assert report.met(found, [failed]) == "no"

    text = report.markdown(found)
    assert "| cuda-small | cora gat 8x8 (cuda) | 20.0 us | ≤ 60 us | yes |  |" in text
    assert "| triton-pyg | reddit gat 4x64 (triton) | open | ≥ 10x |  | pyg: OOM |" in text
    assert "2 of 36 FAIL; 32 of 36 open" in text
    elsewhere = replace(found, environment={**found.environment, "device": "another GPU"})
    assert all(report.met(elsewhere, [row]) == "" for row in targets.rows(elsewhere))
    assert "no bound is met or missed" in report.markdown(elsewhere)
    some = replace(found, settings={"graphs": ["cora"]})
    assert {row.spec.graph for row in targets.rows(some)} == {"cora"}
    some = replace(found, settings={"kinds": ["small", "layer"], "backends": ["triton"]})
    chosen = {(row.target.kind, row.target.backend) for row in targets.rows(some)}
    assert chosen == {("small", "triton"), ("layer", "triton")}


def test_bounds_hold_on_hopper_and_cards_are_told_apart() -> None:
    for name, card in (("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("A100", None)):
        assert targets.card(a_run(name)) == card
        assert targets.applies(a_run(name)) == (card is not None)


def test_a_slow_copy_marks_its_group_alone() -> None:
    found = a_run(
        "NVIDIA H100",
        operator("cuda", "reddit", "float32", 1.2),
        operator("cuda", "products", "float32", 1.2),
    )
    for one, rate in zip(found.targets or [], (3.0e12, 2.88e12), strict=True):
        one.figures["bandwidth"] = rate
    assert targets.suspects(found) == {("cuda", "products", "4x64"): pytest.approx(0.04)}
    marked = {row.case: row.reason for row in targets.rows(found) if row.value is not None}
    assert marked["reddit gat 4x64 forward"] == ""
    assert marked["products gat 4x64 forward"] == "copies were 4% slower than the run's fastest"
    text = report.markdown(found)
    assert "cuda reddit 4x64 3,000.0, cuda products 4x64 2,880.0 (off)." in text
    assert "1,200 over 1,000 ms; copies were 4% slower" in text


def test_plan_begins_with_the_floors_of_cuda() -> None:
    groups = targets_run.plan("cuda", targets.GRAPHS)
    order = list(dict.fromkeys((group.kind, group.names[0]) for group in groups))
    assert order[:7] == [
        ("operator", "cuda"), ("hub", "cuda"), ("small", "cuda"), ("layer", "cuda"),
        ("layer compiled", "cuda"), ("operator", "triton"), ("small", "triton"),
    ]  # fmt: skip
    first = [(group.specs[0].graph, group.specs[0].shape) for group in groups[:4]]
    assert first == [(graph, "4x64") for graph in ("reddit", "products", "arxiv", "proteins")]
    alone = targets_run.plan("cuda", ["arxiv"], ["triton"])
    assert {name for group in alone for name in group.names} == {
        "triton", "pyg", "pyg-compiled", "dgnn", "turbo-gnn"
    }  # fmt: skip
    planned = {
        (group.kind, name, spec) for group in groups for name in group.names for spec in group.specs
    }
    for target in targets.TARGETS:
        for spec in target.specs:
            assert (target.kind, target.backend, spec) in planned
            assert not target.other or (target.kind, target.other, spec) in planned
    assert all(group.names[0] == "cpu" for group in targets_run.plan("cpu", ["reddit", "hub"]))
    assert targets_run.place(Spec("reddit", "4x64"), "cpu", 0.0).scale == 1 / 128
    assert targets_run.place(Spec("reddit", "4x64"), "cuda", 0.0).scale == 1.0
    assert targets_run.place(Spec("cora"), "cpu", 0.5).scale == 1.0


def test_layers_beside_peers() -> None:
    def compared(*names: str) -> dict[str, Measured]:
        spec = replace(SMALL, device="cpu")
        group = Group("layer", names, (spec,))
        outcomes = [results.PeerResult(targets_run.address(name)) for name in names]
        found = targets_run.compare_layers(group, outcomes, True, 0.01, lambda text: None)
        return {one.name: one for one in found}

    peers = [f"odd_peers:{name}" for name in ("Right", "Wrong", "Absent")]
    found = compared(OURS, *peers)
    assert {name: one.status for name, one in found.items()} == dict(
        zip([OURS, *peers], ["ok", "ok", "FAIL", "skipped"], strict=True)
    )
    assert found[OURS].figures["step"] > 0.0
    assert found[peers[1]].figures == {}
    alone = compared(OURS, peers[2])
    assert {one.status for one in alone.values()} == {"skipped"}
    assert "not installed" in alone[OURS].reason


@pytest.mark.usefixtures("in_this_process")
def test_a_lost_group_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = run.Settings(1, 0.01)
    group = Group("operator", ("triton",), (SMALL, replace(SMALL, layer="gatv2")))
    found: list[Measured] = []
    if not backends.INTERPRETED:
        targets_run.run_group(group, settings, lambda text: None, found.append)
        assert [one.status for one in found] == ["skipped", "skipped"]
        assert "triton" in found[0].reason or "CUDA" in found[0].reason

    def crash(*_: Any, tick: Any, **__: Any) -> None:
        tick("first case")
        tick(Measured("operator", "reference", "arxiv", "4x2", "gat", "float32"))
        raise process.ChildError("OOM", "the system stopped the process")

    monkeypatch.setattr(process, "call", crash)
    found.clear()
    told: list[str] = []
    names = replace(group, names=("reference",))
    targets_run.run_group(names, settings, told.append, found.append)
    assert told == ["reference: operator arxiv: first case"]
    assert [(one.layer, one.status) for one in found] == [("gat", "ok"), ("gatv2", "OOM")]

    def late(*_: Any, **__: Any) -> None:
        raise process.LateError("error", "no result in 3 s")

    monkeypatch.setattr(process, "call", late)
    for cut, status in ((False, "error"), (True, "open")):
        found.clear()
        targets_run.run_group(names, settings, told.append, found.append, cut)
        assert {one.status for one in found} == {status}


@pytest.mark.usefixtures("in_this_process")
def test_a_deadline_ends_a_run_and_lists_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each result is saved as it comes; the last group gets the seconds that are left."""
    groups = [Group("operator", ("cpu",), (replace(SMALL, graph=name),)) for name in "abc"]
    limits: list[float] = []
    saved: list[int] = []

    def run_group(group: Group, settings: Any, tick: Any, keep: Any, cut: bool) -> None:
        assert cut
        limits.append(settings.timeout)
        keep(targets_run.lost(group, process.ChildError("ok", ""))[0])
        monkeypatch.setattr(targets_run.time, "perf_counter", lambda: start + limits[0])

    start = targets_run.time.perf_counter()
    monkeypatch.setattr(targets_run.time, "perf_counter", lambda: start)
    monkeypatch.setattr(targets_run, "run_group", run_group)
    job = targets_run.Job(groups, run.Settings(1, timeout=240.0), "cpu", {}, tmp_path, 100.0)
    found = targets_run.execute(job, lambda *_: None, lambda r: saved.append(len(r.targets or [])))
    assert saved == [1, 2, 3, 3]
    assert [(one.graph, one.status) for one in found.targets or []] == [
        ("a", "ok"), ("b", "open"), ("c", "open"),
    ]  # fmt: skip
    assert found.targets is not None
    assert found.targets[1].reason == "not reached in 100 s"
    assert "Not reached before the deadline: cpu operator b 4x2" in report.markdown(found)


def test_a_compiled_peer_has_a_deadline_of_its_own() -> None:
    settings = run.Settings(1, timeout=240.0)
    specs = (replace(SMALL, device="cuda"),)
    for kind, left, timeout in (
        ("layer", None, 240.0), ("layer compiled", None, 90.0), ("layer compiled", 20.0, 20.0),
        ("operator", 100.0, 100.0),
    ):  # fmt: skip
        group = Group(kind, ("cuda", "pyg-compiled"), specs)
        assert targets_run.limited(settings, group, left).timeout == timeout


@pytest.mark.usefixtures("in_this_process")
def test_command_measures_targets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := native.cpu_missing:
        pytest.skip(reason)
    monkeypatch.setattr(operators, "copy_bandwidth", lambda device: 1e10)
    operators_only = [target for target in targets.TARGETS if not target.kind.startswith("layer")]
    monkeypatch.setattr(targets, "TARGETS", tuple(operators_only))
    arguments = ["bench", "--targets", "--graphs", "proteins", "cora", "hub", "--scale", "0.0002"]
    arguments += ["--seconds", "0.01", "--threads", str(torch.get_num_threads())]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "written to" in capsys.readouterr().out
    found = results.load(tmp_path / "results.json")
    rows = {(row.target.name, row.case): row for row in targets.rows(found)}
    assert rows["cuda-floor", "proteins gatv2 4x64 bfloat16 backward"].value is not None
    assert rows["cuda-hub", "hub gat 4x64"].value is not None
    assert rows["triton-small", "cora gat 8x8"].backend == "cpu"
    assert rows["triton-small", "cora gat 8x8"].value is not None
    assert "GPU's" in rows["cuda-small", "cora gat 8x8"].reason
    assert {one.graph for one in found.targets or []} == {"proteins", "cora", "hub"}
    assert "proteins gat 8x8 forward (cpu)" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--graphs", "physics"], "--graphs: no target is stated on 'physics'"),
        (["--graphs", "nothing"], "--graphs: no graph 'nothing'"),
        (["--quick"], "--quick does not go with it"),
        (["--peers", "pyg"], "--peers does not go with it"),
        (["--curves"], "--curves does not go with it"),
        (["--compare", "a.json", "b.json"], "--compare does not go with it"),
        (["--seconds", "0"], "--seconds must be positive, got 0"),
        (["--deadline", "0"], "--deadline must be positive, got 0"),
        (["--kinds", "layers"], "--kinds: no kind 'layers'; known: operator, small, hub, layer"),
        (["--backends", "cuda"], "--backends: no target of 'cuda' there; those with: cpu"),
        (["--device", "nowhere"], "--device nowhere"),
    ],
)
def test_options_that_do_not_go_with_targets(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--targets", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("*/results.json")), ids=lambda p: p.parent.name
)
def test_results_from_before_the_targets_are_read(path: Path) -> None:
    found = results.load(path)
    if "targets" not in json.loads(path.read_text()):
        assert found.targets is None
        assert all("argets" not in table.title for table in report.tables(found))


def test_time_of_the_host_and_limit_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, on stand-ins."""
    log: list[str] = []
    fractions: list[tuple[float, int | None]] = []
    stand_ins = {
        "synchronize": lambda: log.append("|"),
        "get_device_properties": lambda device: SimpleNamespace(total_memory=100),
        "set_per_process_memory_fraction": lambda share, index: fractions.append((share, index)),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    assert measure.issued(Sleeper(log, "a"), runs=2, rounds=1).median >= 0.0
    assert "".join(log) == "|aa|aa|"
    process.limit_memory(25, "cuda")
    process.limit_memory(None, "cuda:1")
    assert fractions == [(0.25, None)]


def test_readme_has_a_column_for_each_card() -> None:
    """Its newest result, where there is one; "open" for what was not measured."""
    path = RESULTS.parent / "readme.py"
    spec = importlib.util.spec_from_file_location("readme", path)
    assert spec is not None
    assert spec.loader is not None
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    layer = ("cora", "8x8", "gat", "float32")

    def small(device: str, date: str, seconds: float) -> Report:
        found = a_run(device, Measured("small", "cuda", *layer, figures={"replay": seconds}))
        return replace(found, environment={**found.environment, "date": date})

    _, nothing = readme._targets({"cpu": a_run("some CPU")})
    assert nothing.count("| open | open |") == len(targets.TARGETS)
    text, table = readme._targets({
        "h200": small("NVIDIA H200", "2030-01-02", 3e-5),
        "older": small("NVIDIA H200", "2030-01-01", 9e-5),
    })  # fmt: skip
    assert "Every case is in `bench/results/h200`." in text
    row = "| cuda | GAT layer of Cora's size in a CUDA graph | ≤ 60 us | open |"
    assert f"{row} 30.0 us (cora gat 8x8), met |" in table
    assert "| GAT layer of Cora's size, time of the host | ≤ 300 us | open | open |" in table
