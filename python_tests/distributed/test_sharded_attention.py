"""Attention over shards: the bits of one process, whatever the ranks and the partition."""

from __future__ import annotations

import itertools
from typing import Any

import cases
import pytest
import torch
import worlds
from cases import Case
from tolerance import BACKEND

from gatkernels.distributed import ShardedGraph

CASES = [
    Case(name, dropout=dropout, edges=more, attention=more, self_loops=loops)
    for name, dropout, more, loops in itertools.product(
        cases.INPUTS, (0.0, 0.5), (False, True), (False, True)
    )
]
CASES += [
    Case(name, dtype, dropout=0.5, attention=True)
    for name in cases.INPUTS
    for dtype in (torch.float64, torch.bfloat16)
]
#: By heads, and of sums over ranks, on the scale of a hub's thousands of edges.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_ranks_make_the_bits_of_one_process(ranks: int) -> None:
    ways = {
        f"{exchange}, {name}": {"partition": owners, "exchange": exchange}
        for exchange in ("halo", "heads")
        for name, owners in (("range", "range"), ("owners", cases.owners(ranks)))
    }
    found = worlds.run(ranks, cases.on_shards, CASES, ways, BACKEND)
    for case in CASES:
        expected = cases.in_one_process(case, BACKEND)
        for way in ways:
            whole = cases.together(case, [one[way, case] for one in found])
            assert whole.keys() == expected.keys()
            for name, value in expected.items():
                message = f"{name} of {case} by {way} on {ranks} ranks"
                if cases.kind_of(case, name) == "weights" or way.startswith("heads"):
                    close = CLOSE[case.dtype]
                    pair = whole[name].double(), value.double()
                    torch.testing.assert_close(*pair, rtol=close, atol=close, msg=message)
                else:
                    assert torch.equal(whole[name], value), message


def test_heads_make_the_same_bits_again() -> None:
    some = [Case("gat", dropout=0.5, edges=True), Case("dot", edges=True, attention=True)]
    ways = {name: {"exchange": "heads"} for name in ("once", "again")}
    for rank in worlds.run(3, cases.on_shards, some, ways, BACKEND):
        for case in some:
            first, second = rank["once", case][0], rank["again", case][0]
            assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_metis_owns_as_well_as_ranges(ranks: int) -> None:
    pytest.importorskip("pymetis", reason="partition='metis' needs pymetis")
    case = Case("gatv2", dropout=0.5, edges=True)
    ways = {"metis": {"partition": "metis", "exchange": "halo"}}
    found = worlds.run(ranks, cases.on_shards, [case], ways, BACKEND)
    whole = cases.together(case, [one["metis", case] for one in found])
    expected = cases.in_one_process(case, BACKEND)
    assert all(torch.equal(whole[n], t) for n, t in expected.items() if n != "grad of att")


def chosen(rank: int) -> Any:
    """What "auto" takes where a rank's halo is more than two thirds of the graph."""
    share = cases.share_of(rank, torch.distributed.get_world_size())
    graph = ShardedGraph.from_edge_index(share, cases.NODES)
    return graph.rho, [graph.exchange_of(name) for name in ("gat", "gatv2", "dot")], repr(graph)


def test_auto_takes_what_sends_less_and_says_why() -> None:
    ((rho, gives, text),) = {
        (r, tuple(g), t.split("exchange: ")[1]) for r, g, t in worlds.run(4, chosen)
    }
    assert 2.0 < rho < 3.0
    assert gives == ("heads", "halo", "heads")
    assert text == (
        "auto: heads for gat (rho limit 2), dot (rho limit 2); halo for gatv2 (rho limit 3))"
    )


def in_groups(rank: int) -> tuple[int, int]:
    """Edges of a graph of the first two ranks, and of a graph of all."""
    first = torch.distributed.new_group([0, 1])
    share = torch.arange(6).reshape(2, 3)
    few = ShardedGraph.from_edge_index(share, 6, group=first).total_edges if rank < 2 else 6
    return few, ShardedGraph.from_edge_index(share, 6).total_edges


def test_ranks_that_are_in_different_numbers_of_groups_find_each_other() -> None:
    assert worlds.run(3, in_groups) == [(6, 9)] * 3
