"""Owners: balanced ranges, and METIS on every kind of edges."""

import sys

import pytest
import torch

from gatkernels.distributed import partition
from gatkernels.extras import MissingExtraError


def ranges(*degrees, parts):
    return partition.bounds_by_edges(torch.tensor(degrees), parts).tolist()


def test_ranges_have_as_many_edges_each():
    assert ranges(1, 1, 1, 1, parts=2) == [0, 2, 4]
    assert ranges(9, 1, 1, 1, 1, 1, parts=2) == [0, 1, 6]
    assert ranges(1, 1, 1, 1, 1, 9, parts=2) == [0, 5, 6]
    assert ranges(100, 1, 1, parts=3) == [0, 0, 1, 3]
    assert ranges(0, 0, 0, 0, parts=2) == [0, 2, 4]
    assert ranges(3, parts=3) == [0, 0, 0, 1]
    assert partition.bounds_by_edges(torch.empty(0, dtype=torch.int64), 3).tolist() == [0] * 4
    assert partition.bounds_by_edges(torch.tensor([5, 5]), 1).tolist() == [0, 2]


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_ranges_are_within_one_node_of_even(parts):
    degrees = torch.randint(0, 50, (1000,))
    degrees[77] = 3000
    before = degrees.clone()
    bounds = partition.bounds_by_edges(degrees, parts)
    assert degrees.equal(before)
    assert (bounds.diff() >= 0).all()
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), (degrees + 1).cumsum(0)])
    target = torch.arange(parts + 1) * ends[-1] / parts
    at_cut = (ends[bounds] - target).abs()
    assert (at_cut <= 1 + (degrees.max() + 1) / 2).all()
    for shift in (-1, 1):  # no cut would lie better a node further
        moved = (bounds + shift).clamp(0, 1000)
        assert (at_cut <= (ends[moved] - target).abs() + 2).all()


def blocks(count, size):
    """Dense blocks of consecutive nodes, one link from each to the next."""
    nodes = torch.arange(size)
    inside = torch.cartesian_prod(nodes, nodes).T
    edges = [inside + place * size for place in range(count)]
    between = torch.arange(count - 1) * size
    return torch.cat([*edges, torch.stack([between, between + size])], 1)


def cut(edges, owners):
    return int((owners[edges[0]] != owners[edges[1]]).sum())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_metis_cuts_between_blocks(dtype):
    pytest.importorskip("pymetis")
    edges = blocks(4, 30)
    label = torch.randperm(120)
    edges = label[edges]  # self loops, and both directions of most links
    owners = partition.owners_by_metis(edges.to(dtype), 120, 4)
    assert owners.dtype == torch.int32
    assert torch.bincount(owners, minlength=4).tolist() == [30] * 4
    assert cut(edges, owners) == 3
    one_way = edges[:, (edges[0] <= edges[1]) | (label.argsort()[edges[0]] % 30 == 0)]
    parallel = torch.cat([one_way, one_way, one_way], 1)
    assert cut(edges, partition.owners_by_metis(parallel.to(dtype), 120, 4)) == 3


def test_metis_of_little():
    pytest.importorskip("pymetis")
    none = torch.empty(2, 0, dtype=torch.int64)
    loops = torch.arange(6).expand(2, 6)
    assert partition.owners_by_metis(none, 0, 3).tolist() == []
    assert partition.owners_by_metis(none, 2, 3).tolist() == [0, 1]
    assert partition.owners_by_metis(none, 6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert partition.owners_by_metis(loops, 6, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert partition.owners_by_metis(blocks(2, 3), 6, 1).tolist() == [0] * 6
    isolated = partition.owners_by_metis(blocks(2, 30), 80, 2)
    assert (isolated[:60].unique_consecutive().numel()) == 2


def test_metis_without_pymetis_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(MissingExtraError, match=r"pip install gatkernels\[distributed\]"):
        partition.owners_by_metis(blocks(2, 3), 6, 2)


def test_chance_is_even():
    owners = partition.random_owners(10_000, 4, 3)
    assert owners.dtype == torch.int32
    assert (torch.bincount(owners, minlength=4) - 2500).abs().max() < 250
