"""The whole graph on one rank, for exchanges that shard heads."""

from __future__ import annotations

import torch
from torch import Tensor

from gatkernels.distributed.peers import Peers
from gatkernels.distributed.shard import Draws, Shard, as_ids, far_nodes
from gatkernels.graph import Graph
from gatkernels.ops import build
from gatkernels.ops.call import Edges


class WholeGraph(Graph):
    """All nodes and edges, those of rank 0 first, which draw dropout by their ids in one process.

    Attributes:
        counts: By ``"nodes"`` and ``"edges"``, how many rows of such tensors each rank has.
        draws: What dropout draws by, of the edges in the order of per-edge tensors.
    """

    def __init__(
        self, csr: list[Tensor], csc: list[Tensor], counts: dict[str, list[int]], ids: Tensor
    ) -> None:
        nodes = sum(counts["nodes"])
        super().__init__(nodes, nodes, csr, csc)
        self.counts, self.draws = counts, Draws(ids)

    def edges_by_row(self, backend: str, dropout: float = 0.0) -> Edges:
        return self.draws.added(super().edges_by_row(backend), dropout)

    def edges_by_column(self, backend: str, dropout: float = 0.0) -> Edges:
        return self.draws.added(super().edges_by_column(backend), dropout)


def gather_whole(own: Tensor, shard: Shard, owners: Tensor, edges: int, peers: Peers) -> WholeGraph:
    """Of all ranks' shards, on every rank; collective.

    Args:
        own: ``[own]`` ids of this rank's nodes.
        shard: Its arrays.
        owners: As in :class:`gatkernels.distributed.share.Share`.
        edges: The length of its per-edge tensors.
        peers: All ranks.
    """
    op, side = "ShardedGraph", shard.by_row
    used = int(side.rowptr[-1])
    rows = torch.repeat_interleave(own, side.rowptr.diff())
    place = side.eid[:used].long()
    given = far_nodes(own, side)[side.col[:used].long()], rows, as_ids(shard.ids[place]), place
    counts = {
        name: peers.counts([size] * peers.size, op)
        for name, size in (("nodes", len(own)), ("edges", edges), ("used", used))
    }
    src, dst, ids, places = (_from_all(one, counts["used"], peers, op) for one in given)
    draw = _from_all(shard.ids[:edges].contiguous(), counts["edges"], peers, op)
    of_rank = torch.tensor(counts["edges"]).cumsum(0) - torch.tensor(counts["edges"])
    places += torch.repeat_interleave(of_rank, torch.tensor(counts["used"])).to(places.device)
    if owners.dtype == torch.int32:  # nodes by owner, as rows come from the ranks
        number = torch.empty(len(owners), dtype=torch.int64, device=owners.device)
        number[torch.argsort(owners, stable=True)] = torch.arange(len(owners), device=owners.device)
        src, dst = number[src], number[dst]
    order = torch.argsort(ids)
    edge_index, places = torch.stack([src[order], dst[order]]), places[order]
    nodes, length = sum(counts["nodes"]), sum(counts["edges"])
    sides = []
    for by_source in (False, True):
        rowptr, col, eid = build.build_csr(edge_index, nodes, nodes, by_source, False)
        padded = (rowptr.new_zeros(length, dtype=torch.int32) for _ in range(2))
        arrays = [rowptr, *padded]
        arrays[1][: len(col)], arrays[2][: len(col)] = col, places[eid.long()]
        sides.append(arrays)
    return WholeGraph(sides[0], sides[1], counts, draw)


def _from_all(values: Tensor, counts: list[int], peers: Peers, op: str) -> Tensor:
    found = values.new_empty(sum(counts))
    peers.start([values] * len(counts), [*found.split(counts)], op)()
    return found
