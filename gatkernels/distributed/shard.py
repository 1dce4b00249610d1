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
    loops = share.nodes if self_loops else share.nodes[:0]
    by_row, cut_in = _side(share, False, rank, ranks, self_loops)
    by_column, cut_out = _side(share, True, rank, ranks, self_loops)
    places = _places(share, cut_out.places, len(loops))
    ids = torch.cat([share.in_ids, share.num_edges + loops, share.out_ids[cut_out.places]])
    own = len(share.nodes)
    return Shard(
        by_row,
        by_column._replace(eid=places.index_select(0, by_column.eid)),
        _as_int32(ids),
        Route(*cut_out.needed(ranks, own), cut_in.halo),
        Route(*cut_in.needed(ranks, own), cut_out.halo),
        Route(cut_in.places, cut_in.sent(ranks), cut_out.sent(ranks)),
    )


class _Cut(NamedTuple):
    """Of the edges of one side those that go to other ranks' nodes, by their owner and id."""

    places: Tensor  # [cut] int64, in the share's edges of that side
    near: Tensor  # [cut] int64, own rows
    owners: Tensor  # [cut] int64
    halo: list[int]  # nodes at their far ends, of each rank

    def sent(self, ranks: int) -> list[int]:
        return _counts(self.owners, ranks)

    def needed(self, ranks: int, own: int) -> tuple[Tensor, list[int]]:
        """Own nodes at the near ends, once for each other rank at a far end."""
        keys = torch.unique(self.owners * max(own, 1) + self.near)
        to = torch.div(keys, max(own, 1), rounding_mode="floor")
        return keys - to * max(own, 1), _counts(to, ranks)


def _side(
    share: Share, by_source: bool, rank: int, ranks: int, self_loops: bool
) -> tuple[Side, _Cut]:
    """The edges into own nodes, or those out of them; ``eid`` are their places in the share."""
    own, edges = share.nodes, share.out_edges if by_source else share.in_edges
    near, far = (0, 1) if by_source else (1, 0)
    owners = owner_of(share.owners, edges[far])
    places = (owners != rank).nonzero().squeeze(1)
    owners = owners[places]
    order = torch.argsort(owners, stable=True)
    places, owners = places[order], owners[order]
    ids, node = torch.unique(edges[far][places], return_inverse=True)
    owner = owner_of(share.owners, ids)
    order = torch.argsort(owner, stable=True)
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order), device=order.device)
    local = torch.empty(edges.shape, dtype=torch.int32, device=own.device)
    for numbers, nodes in zip(local, edges, strict=True):  # right where nodes are own
        torch.searchsorted(own, nodes, out_int32=True, out=numbers)
    local[far][places] = (len(own) + number[node]).int()
    sides = len(own), len(own) + len(ids)
    pointer, col, eid = build.build_csr(
        local, *(sides if by_source else sides[::-1]), by_source, self_loops
    )
    cut = _Cut(places, local[near][places].long(), owners, _counts(owner, ranks))
    return Side(pointer, col, eid, ids[order]), cut


def _places(share: Share, cut: Tensor, loops: int) -> Tensor:
    """``[out + loops]`` int32, where per-edge tensors hold the edges out of own nodes."""
    count, own = len(share.in_ids), len(share.out_ids)
    places = torch.empty(own + loops, dtype=torch.int32, device=cut.device)
    torch.searchsorted(share.in_ids, share.out_ids, out_int32=True, out=places[:own])
    places[own:] = torch.arange(count, count + loops, device=cut.device)
    behind = count + loops
    places[cut] = torch.arange(behind, behind + len(cut), device=cut.device).int()
    return places


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
