"""What goes wrong on one rank is an error on all of them, in time and with the rank's number."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import cases
import pytest
import torch
import torch.distributed as dist
import worlds

from gatkernels import gat_attention, gatv2_attention
from gatkernels.distributed import ShardedGraph, Share

TIMEOUT = 6.0


def graph_of(rank: int, **how: Any) -> ShardedGraph:
    ranks = dist.get_world_size()
    edges = cases.share_of(rank, ranks)
    return ShardedGraph.from_edge_index(edges, cases.NODES, timeout=TIMEOUT, **how)


def attend(graph: ShardedGraph, **how: Any) -> torch.Tensor:
    own = graph.num_src
    x = torch.ones(
        own,
        2,
        how.pop("channels", 4),
        dtype=how.pop("dtype", torch.float32),
        requires_grad=how.pop("training", True),
    )
    score = x.detach()[..., 0]
    out: torch.Tensor = gat_attention(graph, x, score, score, **how)
    return out


def disagree(rank: int, how: dict[str, Any]) -> None:
    attend(graph_of(rank), **how if rank == 1 else {})


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"dropout": 0.5}, "dropout=0.5"),
        ({"negative_slope": 0.1}, "negative_slope=0.1"),
        ({"dtype": torch.float64}, "torch.float64"),
        ({"channels": 5}, r"\(2, 5\)"),
        ({"training": False}, "x torch.float32"),
    ],
    ids=["dropout", "slope", "dtype", "channels", "training"],
)
def test_a_rank_that_disagrees_is_named_on_all(how: dict[str, Any], text: str) -> None:
    found = worlds.ends(3, disagree, how)
    for one in found:
        assert one is not None
        assert one.error is not None
        assert one.error.startswith("RankError: gat_attention: the ranks disagree; rank 1: ")
        assert re.search(text, one.error)


def other_operator(rank: int) -> None:
    graph = graph_of(rank)
    if rank != 2:
        attend(graph)
    else:
        x = torch.ones(graph.num_src, 2, 4)
        gatv2_attention(graph, x, x, torch.ones(2, 4))


def test_ranks_that_call_different_operators_are_told() -> None:
    found = worlds.ends(3, other_operator)
    assert all("the ranks disagree; rank 2: x_src" in (one.error or "") for one in found)


def lose(rank: int, when: str, how: str) -> None:
    """Rank 1 dies, or raises, or stays away, at some point of a training step."""

    def go() -> None:
        if rank != 1:
            return
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raises":
            raise KeyError("a bug")
        time.sleep(4 * TIMEOUT)

    graph = graph_of(rank)
    if when == "forward":
        go()
    out = attend(graph)
    if when == "backward":
        go()
    out.sum().backward()
    dist.barrier()


@pytest.mark.parametrize("how", ["dies", "raises", "stays"])
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_lost_rank_is_named_in_time(when: str, how: str) -> None:
    start = time.monotonic()
    found = worlds.ends(3, lose, when, how)
    for rank in (0, 2):
        assert found[rank] is not None
        assert found[rank].error.startswith("RankError: ")
        assert "rank 1 is gone, or did not come within 6 s" in found[rank].error
        if how != "stays":
            assert found[rank].seconds < 30.0
    assert time.monotonic() - start < 100.0


def build(rank: int, wrong: str) -> None:
    edges, nodes, how = cases.share_of(rank, dist.get_world_size()), cases.NODES, {}
    if rank == 1:
        if wrong == "id":
            edges = edges.clone()
            edges[1, 5] = nodes
        elif wrong == "negative":
            edges = edges.clone()
            edges[0, 7] = -4
        elif wrong == "dtype":
            edges = edges.float()
        elif wrong == "shape":
            edges = edges[:1]
        elif wrong == "nodes":
            nodes += 1
        elif wrong == "exchange":
            how = {"exchange": "heads"}
        elif wrong == "unknown":
            how = {"exchange": "all"}
        elif wrong == "owners":
            how = {"partition": torch.full((nodes,), 3)}
        elif wrong == "partition":
            how = {"partition": "rows"}
    ShardedGraph.from_edge_index(edges, nodes, timeout=TIMEOUT, **how)


OP = "ShardedGraph.from_edge_index"
BAD = {
    "id": f"ValueError: rank 1: {OP}: 'edges[1]' holds node id 90 at position 5",
    "negative": f"ValueError: rank 1: {OP}: 'edges[0]' holds node id -4 at position 7",
    "dtype": f"TypeError: rank 1: {OP}: 'edges' must have dtype",
    "shape": f"ValueError: rank 1: {OP}: 'edges' must have shape [2, num_edges]",
    "nodes": f"RankError: {OP}: the ranks disagree; rank 1: num_nodes=91",
    "exchange": "RankError: ShardedGraph.from_share: the ranks disagree; rank 1: ",
    "unknown": "ValueError: rank 1: ShardedGraph.from_share: 'exchange' must be one of",
    "owners": f"ValueError: rank 1: {OP}: 'partition' must hold ranks in [0, 3)",
    "partition": f"ValueError: rank 1: {OP}: 'partition' must be 'range' or 'metis'",
}


@pytest.mark.parametrize("wrong", BAD)
def test_bad_input_of_one_rank_is_an_error_on_all(wrong: str) -> None:
    found = worlds.ends(3, build, wrong)
    for one in found:
        assert one is not None
        assert (one.error or "").startswith(BAD[wrong])


def spoil(rank: int, wrong: str) -> None:
    """A share is not a rank's, or not what the other rank holds."""
    graph = graph_of(rank)
    edges, ids, count = graph.edge_index, graph.edge_ids, graph.total_edges
    owners, nodes = graph.owners, graph.nodes
    own = torch.isin(edges[0], nodes)
    out_edges, out_ids = edges[:, own], ids[own]  # without those to other ranks' nodes
    if wrong != "cut":  # no edge but those within a rank
        edges, ids = edges[:, own], ids[own]
    if rank == 1:
        if wrong == "nodes":
            nodes = nodes + 1
        elif wrong == "foreign":
            edges = edges.clone()
            edges[1, 3] = 0
        elif wrong == "ids":
            ids = ids.flip(0)
        elif wrong == "range":
            out_edges = out_edges + cases.NODES
        elif wrong == "shape":
            ids = ids[1:]
        elif wrong == "owners":
            owners = owners[:-1]
    share = Share(nodes, cases.NODES, count, owners, edges, ids, out_edges, out_ids)
    ShardedGraph.from_share(share, timeout=TIMEOUT)


FROM = "ShardedGraph.from_share"
SPOILT = {
    "cut": f"RankError: .*{FROM}: the edges between rank [01] and ranks .* are not the same",
    "few": rf"RankError: {FROM}: the shares hold \d+ edges, but 'num_edges' is \d+",
    "nodes": f"ValueError: rank 1: {FROM}: 'nodes' are not those that rank 1 owns",
    "foreign": f"ValueError: rank 1: {FROM}: 'in_edges' holds edges that are not rank 1's",
    "ids": rf"ValueError: rank 1: {FROM}: 'in_ids' must rise within \[0, \d+\)",
    "range": rf"ValueError: rank 1: {FROM}: 'out_edges' must hold ids in \[0, 90\), got ",
    "shape": rf"ValueError: rank 1: {FROM}: 'in_edges' must be \[2, ",
    "owners": f"ValueError: rank 1: {FROM}: 'owners' must be 3 bounds from 0 to 90",
}


@pytest.mark.parametrize("wrong", SPOILT)
def test_shares_that_do_not_fit_are_told(wrong: str) -> None:
    for one in worlds.ends(2, spoil, wrong):
        assert one is not None
        assert re.match(SPOILT[wrong], one.error or ""), one


def alone(rank: int) -> list[str]:
    """In one process: what a graph cannot do."""
    graph = graph_of(rank)
    messages = []
    for call in (
        lambda: attend(graph).sum().backward(create_graph=True),
        lambda: attend(graph, backend="reference"),
        lambda: graph.to("meta"),
        lambda: graph.reverse(),
        lambda: graph.rows_of(torch.tensor([0, cases.NODES])),
        lambda: torch.func.jvp(
            lambda x: gat_attention(graph, x, x[..., 0]), *[(torch.ones(cases.NODES, 2, 4),)] * 2
        ),
        lambda: gat_attention(graph, torch.ones(cases.NODES - 1, 2, 4), torch.ones(cases.NODES, 2)),
    ):
        try:
            call()
        except Exception as error:
            messages.append(f"{type(error).__name__}: {error}")
        else:
            messages.append("nothing")
    return messages


def test_a_graph_says_what_it_cannot_do() -> None:
    [messages] = worlds.run(1, alone)
    for message, text in zip(
        messages,
        (
            "cannot be differentiated again",
            "backend 'reference' cannot run",
            "cannot be moved",
            "cannot be reversed",
            "holds 90 at position 1",
            "cannot go through a ShardedGraph",
            "'x' must have shape",
        ),
        strict=True,
    ):
        assert text in message


def test_without_processes_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="is not initialised"):
        ShardedGraph.from_edge_index(torch.zeros(2, 3, dtype=torch.long), 4)
