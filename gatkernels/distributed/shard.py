"""The arrays of a rank's shard: its edges renumbered for the kernels, and what it sends to whom.

Own nodes come first, in the order of the rank's rows; behind them come the *halo*, nodes of other
ranks at the far ends of its edges, by owner and then by id. What others need of this rank follows
from its own edges: a source is needed where one of its edges goes, and a destination where one
comes from. So all ranks know their part of every exchange without asking.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gatkernels.distributed.exchange import Route
from gatkernels.distributed.share import Share, owner_of
from gatkernels.ops import build
from gatkernels.ops.call import Edges


class Side(NamedTuple):
    """The edges of own rows, by destination or by source, and the nodes at their other ends."""

    rowptr: Tensor  # [own + 1] int64
    col: Tensor  # [E] int32, own nodes and then the halo
    eid: Tensor  # [E] int32, place in the rank's per-edge tensors
    halo: Tensor  # [halo] int64, ids


class Shard(NamedTuple):
    """A rank's arrays.

    Per-edge tensors of a backward hold the edges into own nodes, ascending by id, self loops behind
    them (as far as users see them), and then the edges out of own nodes to those of other ranks, by
    owner and id.
    """

    by_row: Side
    by_column: Side
    ids: Tensor  # [edges] int32, ids of the edges in per-edge tensors, unsigned
    sources: Route  # rows of sources, to where their edges go
    destinations: Route  # rows of destinations, to where their edges come from
    edges: Route  # rows of edges, from the destination's rank to the source's


def build_shard(share: Share, rank: int, ranks: int, self_loops: bool) -> Shard:
    """The arrays of ``share``, whose ids have been checked."""
    own, loops = share.nodes, share.nodes if self_loops else share.nodes[:0]
    (src, dst), (out_src, out_dst) = share.in_edges, share.out_edges
    from_rank, to_rank = owner_of(share.owners, src), owner_of(share.owners, out_dst)
    rows, columns = _local(own, dst), _local(own, out_src)

    sources = _far_ends(own, src, from_rank, rank, share.owners)
    edges, counts = _stack(sources.local, rows), sources.counts(own)
    pointer, col, place = build.build_csr(edges, *counts, False, self_loops)
    by_row = Side(pointer, col, place, sources.ids)

    targets = _far_ends(own, out_dst, to_rank, rank, share.owners)
    counts = len(own), len(own) + len(targets.ids)
    pointer, row, place = build.build_csr(_stack(columns, targets.local), *counts, True, self_loops)
    cut, received = _by_rank(to_rank, rank, ranks)
    places = torch.empty(len(out_src) + len(loops), dtype=torch.int64, device=own.device)
    here = to_rank == rank
    known = torch.searchsorted(share.in_ids, share.out_ids[here])
    places[: len(out_src)][here] = known
    behind = len(src) + len(loops)
    places[cut] = behind + torch.arange(len(cut), device=own.device)
    places[len(out_src) :] = len(src) + torch.arange(len(loops), device=own.device)
    by_column = Side(pointer, row, places[place.long()].int(), targets.ids)

    ids = torch.cat([share.in_ids, share.num_edges + loops, share.out_ids[cut]])
    crossing, sent = _by_rank(from_rank, rank, ranks)
    return Shard(
        by_row,
        by_column,
        _as_int32(ids),
        Route(*_needed(columns, to_rank, rank, ranks, len(own)), _counts(sources.owners, ranks)),
        Route(*_needed(rows, from_rank, rank, ranks, len(own)), _counts(targets.owners, ranks)),
        Route(crossing, sent, received),
    )


class _FarEnds(NamedTuple):
    local: Tensor  # [n] int64, of each edge
    ids: Tensor  # [halo] int64, by owner and id
    owners: Tensor  # [halo] int64

    def counts(self, own: Tensor) -> tuple[int, int]:
        return len(own) + len(self.ids), len(own)


def _far_ends(own: Tensor, nodes: Tensor, owners: Tensor, rank: int, table: Tensor) -> _FarEnds:
    """The nodes ``[n]`` in a rank's numbers."""
    far = owners != rank
    ids, place = torch.unique(nodes[far], return_inverse=True)
    by_owner = owner_of(table, ids)
    order = torch.argsort(by_owner, stable=True)
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=order.device)
    local = torch.empty_like(nodes)
    local[far] = len(own) + number[place]
    local[~far] = _local(own, nodes[~far])
    return _FarEnds(local, ids[order], by_owner[order])


def _local(own: Tensor, nodes: Tensor) -> Tensor:
    return torch.searchsorted(own, nodes)


def _stack(src: Tensor, dst: Tensor) -> Tensor:
    return torch.stack([src, dst]).int()


def _needed(
    local: Tensor, owners: Tensor, rank: int, ranks: int, own: int
) -> tuple[Tensor, list[int]]:
    """Own nodes at the near ends of edges, once for each other rank at a far end."""
    far = owners != rank
    keys = torch.unique(owners[far] * max(own, 1) + local[far])
    to = torch.div(keys, max(own, 1), rounding_mode="floor")
    return keys - to * max(own, 1), _counts(to, ranks)


def _by_rank(owners: Tensor, rank: int, ranks: int) -> tuple[Tensor, list[int]]:
    """Places of what other ranks own, rank by rank, and how many of each."""
    places = (owners != rank).nonzero().squeeze(1)
    of = owners[places]
    return places[torch.argsort(of, stable=True)], _counts(of, ranks)


def _counts(owners: Tensor, ranks: int) -> list[int]:
    counts: list[int] = torch.bincount(owners, minlength=ranks).tolist()
    return counts


def _as_int32(ids: Tensor) -> Tensor:
    """Of 32 bits, as signed numbers."""
    return torch.where(ids >= 2**31, ids - 2**32, ids).int()


def as_ids(bits: Tensor) -> Tensor:
    """The ids, int64, of which these are the 32 bits."""
    return bits.long() & 0xFFFFFFFF


def far_nodes(own: Tensor, side: Side) -> Tensor:
    """The ids of the nodes that ``side.col`` numbers."""
    return torch.cat([own, side.halo])


class Draws:
    """What dropout draws by, edge by edge as kernels come by them: made once for CSR and CSC."""

    def __init__(self, ids: Tensor) -> None:
        self._ids = ids
        self._made: dict[int, Tensor] = {}

    def added(self, edges: Edges, dropout: float) -> Edges:
        """``edges`` of one graph, whose arrays stay, with their ``draw`` where there is dropout."""
        if dropout == 0.0:
            return edges
        place = edges.eid.data_ptr()
        if place not in self._made:
            self._made[place] = self._ids[edges.eid.long()]
        return edges._replace(draw=self._made[place])
