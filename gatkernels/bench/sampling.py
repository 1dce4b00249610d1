"""Neighbour sampling in the layout of PyG's ``NeighborLoader``, for one type of nodes or many.

Seeds come first, then the nodes of each hop; edges by hop and destination. PyG's own sampler needs
packages that are not on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: (source type, relation, destination type), as PyG names an edge type.
Relation = tuple[str, str, str]


class Batch(NamedTuple):
    """A sampled subgraph: ids of its nodes by type, and edges as places among them."""

    nodes: dict[str, Tensor]  # [n] ids, the seeds first
    edges: dict[Relation, Tensor]  # [2, e]
    seeds: int

    def fresh(self) -> Batch:
        """The same with tensors of edges that no one has seen."""
        return self._replace(edges={r: edges.clone() for r, edges in self.edges.items()})


class _Neighbours:
    """The edges of one relation by destination."""

    def __init__(self, edge_index: Tensor, num_dst: int) -> None:
        order = torch.argsort(edge_index[1], stable=True)
        self.source = edge_index[0][order]
        degree = torch.bincount(edge_index[1], minlength=num_dst)
        self.first = torch.cat([degree.new_zeros(1), degree.cumsum(0)])

    def draw(self, nodes: Tensor, fan: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sources, and places in ``nodes``, of at most ``fan`` edges into each, none twice."""
        begin, degree = self.first[nodes], self.first[nodes + 1] - self.first[nodes]
        owner = torch.repeat_interleave(degree)
        rank = torch.arange(owner.shape[0]) - (degree.cumsum(0) - degree)[owner]
        key = torch.rand(owner.shape[0], generator=generator, dtype=torch.float64)
        shuffled = torch.argsort(owner + key)  # within each node
        chosen = shuffled[rank < fan]
        return self.source[(rank + begin[owner])[chosen]], owner[chosen]


class Sampler:
    """Draws neighbours without replacement.

    Args:
        edges: ``[2, E]`` of each relation, sources first.
        counts: Number of nodes of each type.
    """

    def __init__(self, edges: Mapping[Relation, Tensor], counts: Mapping[str, int]) -> None:
        self.neighbours = {r: _Neighbours(index, counts[r[2]]) for r, index in edges.items()}
        self.place = {kind: torch.full((count,), -1) for kind, count in counts.items()}

    def batch(
        self, kind: str, seeds: Tensor, fan_out: Sequence[int], generator: torch.Generator
    ) -> Batch:
        """The edges into ``seeds [b]`` of type ``kind``, into their sources, and so on."""
        nodes: dict[str, list[Tensor]] = {name: [] for name in self.place}
        edges: dict[Relation, list[Tensor]] = {r: [] for r in self.neighbours}
        frontier = dict.fromkeys(self.place, seeds[:0]) | {kind: seeds}
        self._add(nodes, frontier)
        for fan in fan_out:
            found: dict[str, list[Tensor]] = {name: [] for name in self.place}
            drawn = {}
            for relation, neighbours in self.neighbours.items():
                source, _, target = relation
                ids, owner = neighbours.draw(frontier[target], fan, generator)
                drawn[relation] = ids, self.place[target][frontier[target]][owner]
                found[source].append(ids[self.place[source][ids] < 0])
            frontier = {name: _in_order(torch.cat(ids)) for name, ids in found.items() if ids}
            frontier = {name: frontier.get(name, seeds[:0]) for name in self.place}
            self._add(nodes, frontier)
            for relation, (ids, places) in drawn.items():
                edges[relation].append(torch.stack([self.place[relation[0]][ids], places]))
        ids_of = {name: torch.cat(parts) for name, parts in nodes.items()}
        for name, ids in ids_of.items():
            self.place[name][ids] = -1
        return Batch(ids_of, {r: torch.cat(e, dim=1) for r, e in edges.items()}, seeds.shape[0])

    def _add(self, nodes: dict[str, list[Tensor]], fresh: Mapping[str, Tensor]) -> None:
        for name, ids in fresh.items():
            count = sum(part.shape[0] for part in nodes[name])
            self.place[name][ids] = count + torch.arange(ids.shape[0])
            nodes[name].append(ids)


def _in_order(values: Tensor) -> Tensor:
    """Distinct values in the order of their first place."""
    distinct, inverse = values.unique(return_inverse=True)
    first = torch.full_like(distinct, values.shape[0])
    first.scatter_reduce_(0, inverse, torch.arange(values.shape[0]), "amin")
    ordered: Tensor = distinct[torch.argsort(first)]
    return ordered
