"""One machine's shard: its sizes, what it sends, what it computes, the plan and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gatkernels import Graph, cli, gat_attention
from gatkernels.bench import sharded
from gatkernels.bench.measure import Timing

NODES, EDGES, RHO = 700, 9000, 1.0


def test_a_shard_has_the_sizes_that_were_asked_for() -> None:
    for rho in sharded.RHOS:
        graph = sharded.build(NODES, EDGES, rho)
        assert (graph.num_dst, graph.num_edges) == (NODES, EDGES)
        for route in (graph.shard.sources, graph.shard.destinations):
            assert route.sent == route.received
            assert route.sent[1:] == [round(rho * NODES / sharded.NEIGHBOURS)] * sharded.NEIGHBOURS
            assert route.sent[0] == 0
    with pytest.raises(ValueError, match="100 edges are too few for rho 2"):
        sharded.build(NODES, 100, 2.0)


def test_the_shard_computes_attention_and_sends_what_the_formula_says() -> None:
    graph = sharded.build(NODES, EDGES, RHO)
    heads, channels = 2, 5
    x = torch.randn(NODES, heads, channels, requires_grad=True)
    score = torch.randn(NODES, heads, requires_grad=True)
    out = gat_attention(graph, x, score, score)
    torch.autograd.grad(out.sum(), (x, score))
    halo = len(graph.shard.by_row.halo)
    row, scores = heads * channels * 4, heads * 4
    assert graph.traffic["forward"] == halo * (row + scores)
    assert graph.traffic["backward"] == halo * (row + 4 * scores)
    share = sharded.draw_share(NODES, EDGES, RHO)
    copies = torch.cat([torch.arange(NODES), graph.shard.sources.places])
    place = torch.empty(share.num_nodes, dtype=torch.int64)
    place[torch.cat([share.nodes, graph.shard.by_row.halo])] = torch.arange(len(copies))
    edges = torch.stack([place[share.in_edges[0]], share.in_edges[1]])
    whole = Graph.from_edge_index(edges, (len(copies), NODES))
    assert torch.equal(out, gat_attention(whole, x[copies], score[copies], score))


@pytest.mark.parametrize("layer", ["gat", "gatv2", "dot"])
def test_measuring(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "NODES", 64 * NODES)
    monkeypatch.setattr(sharded, "EDGES", 64 * EDGES)
    found = sharded.measure(layer, "2x4", RHO, 0.5)
    assert (found.rows, found.edges, found.halo) == (NODES // 2, EDGES // 2, 350)
    assert found.seconds == 2 * (found.forward.median + found.backward.median) > 0
    assert found.sent > 0


def test_the_plan_adds_bytes_to_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Timing.of([0.5])
    one = sharded.Result("gat", "8x16", 1.0, 0.5, 10, 20, 10, second, second, 10**9, None)
    assert one.seconds == 2.0
    # 64 machines have a shard each: 2 s, and 2 GB at 8 GB/s.
    assert one.by_halo(64, 64) == pytest.approx(2.25)
    assert one.by_halo(32, 64) == pytest.approx(4.5)
    assert one.by_halo(64, 1e9) == pytest.approx(2.0)
    # By heads a machine computes one of 8 heads of all shards, be there 8 machines or more.
    assert [one.by_heads(8, 1e9), one.by_heads(64, 1e9)] == pytest.approx([16.0, 16.0])
    monkeypatch.setattr(sharded, "NODES", 8_000)
    sent = 1_000 * 4 * (4 * 128 + 4 * 8) * 7 / 8
    assert one.by_heads(8, 8e-9) - 16.0 == pytest.approx(sent)
    wide = replace(one, layer="gatv2")
    assert wide.by_heads(8, 8e-9) - 16.0 == pytest.approx(1_000 * 4 * 6 * 128 * 7 / 8)


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sharded, "NODES", 64 * NODES)
    monkeypatch.setattr(sharded, "EDGES", 64 * EDGES)
    args = ["bench", "--sharded", "--shapes", "2x3", "--scale", "0.5", "--out", str(tmp_path)]
    assert cli.main(args) == 0
    text = capsys.readouterr().out
    assert "measured on 0.5 of it and scaled up" in text
    assert "A plan on paper, not measured" in text
    content = json.loads((tmp_path / "sharded.json").read_text())
    assert [one["rho"] for one in content["results"]] == list(sharded.RHOS)
    assert len(content["plan"]) == 3 * 4 * 2
    assert content["environment"]["cores"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quick"], "--quick does not go with it"),
        (["--minibatch"], "--minibatch does not go with it"),
        (["--graphs", "cora"], "--graphs does not go with it"),
        (["--shapes", "8x8", "4x4"], "takes one of --shapes, got 8x8 4x4"),
        (["--shapes", "8"], "a shape is heads x channels"),
        (["--scale", "2"], "--scale must be between 0 and 1"),
    ],
)
def test_options_that_do_not_fit(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--sharded", *options]) == 2
    assert message in capsys.readouterr().err
