"""Sampled batches: what the sampler draws, both models of every workload, the command's errors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gatkernels import cli
from gatkernels.bench import minibatch
from gatkernels.bench.graphs import Edges
from gatkernels.bench.minibatch import Workload
from gatkernels.bench.sampling import Relation, Sampler

CITES: Relation = ("paper", "cites", "paper")
WRITES: Relation = ("author", "writes", "paper")


def test_a_batch_is_part_of_the_graph() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = {"paper": 60, "author": 40}
    whole = {
        CITES: torch.randint(60, (2, 500), generator=generator),
        WRITES: torch.stack([torch.randint(n, (300,), generator=generator) for n in (40, 60)]),
    }
    sampler = Sampler(whole, counts)
    for _ in range(3):
        seeds = torch.randperm(60, generator=generator)[:5]
        batch = sampler.batch("paper", seeds, (4, 3), generator)
        assert torch.equal(batch.nodes["paper"][:5], seeds)
        for ids in batch.nodes.values():
            assert ids.unique().numel() == ids.numel()
        for relation, edges in batch.edges.items():
            source, _, target = relation
            ids = torch.stack([batch.nodes[source][edges[0]], batch.nodes[target][edges[1]]])
            in_graph = {tuple(edge) for edge in whole[relation].T.tolist()}
            assert {tuple(edge) for edge in ids.T.tolist()} <= in_graph
            degree = torch.bincount(whole[relation][1], minlength=counts[target])
            into_seeds = torch.bincount(edges[1], minlength=5)[:5]
            assert torch.equal(into_seeds, degree[seeds].clamp(max=4))  # each hop's fan-out
            assert bool((torch.bincount(edges[1]) <= 4).all())
            assert bool((edges[1, : int(into_seeds.sum())] < 5).all())  # the first hop comes first


def test_no_edge_is_drawn_twice() -> None:
    edges = torch.stack([torch.arange(30), torch.zeros(30, dtype=torch.int64)])
    sampler = Sampler({("a", "to", "a"): edges}, {"a": 30})
    generator = torch.Generator().manual_seed(1)
    batch = sampler.batch("a", torch.tensor([0]), (30,), generator)
    assert batch.edges["a", "to", "a"].shape[1] == 30
    assert batch.nodes["a"].sort().values.tolist() == list(range(30))


@pytest.mark.parametrize("layer", ["GATConv", "GATv2Conv", "RGAT"])
def test_both_models_compute_the_same(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    pytest.importorskip("torch_geometric")
    monkeypatch.setattr(
        minibatch, "PAPERS", {"paper": 300, "author": 200, "institute": 20, "field": 50}
    )
    monkeypatch.setattr(minibatch, "CITES", dict.fromkeys(minibatch.CITES, 900))
    if layer != "RGAT":
        _stand_in_for_cora(monkeypatch)
    name = "papers" if layer == "RGAT" else "cora"
    workload = Workload(name, layer, 4, (3, 2), None, batches=2, rounds=1)
    result = minibatch.compare(workload)
    assert result.ratio > 0
    assert result.edges > 4
    assert f"{result.ratio:.2f}x" in str(result)


def _stand_in_for_cora(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = Edges(torch.randint(200, (2, 900)), 200, 200, "drawn")
    monkeypatch.setitem(minibatch.GRAPHS, "cora", SimpleNamespace(load=lambda scale: edges))


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_geometric")
    _stand_in_for_cora(monkeypatch)
    tiny = (Workload("cora", "GATConv", 4, (3,), 1.5, batches=1, rounds=1),)
    monkeypatch.setattr(minibatch, "WORKLOADS", tiny)
    assert cli.main(["bench", "--minibatch", "--out", str(tmp_path)]) == 0
    assert "goal 1.5x" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "minibatch.json").read_text())["results"]
    assert row["workload"]["graph"] == "cora"
    assert row["ratio"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quick"], "--quick does not go with it"),
        (["--shapes", "8x8"], "--shapes does not go with it"),
        (["--no-memory"], "--no-memory does not go with it"),
        (["--graphs", "nowhere"], "no workload on 'nowhere'"),
        (["--graphs", "papers", "--layers", "gat"], "no workload has these"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_geometric")
    assert cli.main(["bench", "--minibatch", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_graph_that_is_not_there_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("GATKERNELS_DATA", raising=False)
    command = ["bench", "--minibatch", "--graphs", "cora", "--layers", "gat", "--out"]
    assert cli.main([*command, str(tmp_path)]) == 2
    told = capsys.readouterr().out
    assert "GATConv on cora: left out, GATKERNELS_DATA is not set" in told
    assert "nothing was measured" in told
