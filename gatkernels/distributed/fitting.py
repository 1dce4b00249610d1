"""Whether shares are what they should be, and fit together."""

from __future__ import annotations

import torch
from torch import Tensor

from gatkernels.distributed.peers import Peers, RankError
from gatkernels.distributed.shard import Shard
from gatkernels.distributed.share import Share, nodes_of, owner_of


def check_share(op: str, share: Share, peers: Peers, self_loops: bool) -> None:
    """Raises ValueError where a share cannot be this rank's."""
    loops = share.num_nodes if self_loops else 0
    if share.num_edges + loops > 2**32:
        raise ValueError(f"{op}: at most 2^32 edges, got {share.num_edges} and {loops} self loops")
    if share.owners.dtype == torch.int64:
        bounds = share.owners
        if (
            len(bounds) != peers.size + 1
            or int(bounds[0]) != 0
            or int(bounds[-1]) != share.num_nodes
        ):
            raise ValueError(
                f"{op}: 'owners' must be {peers.size + 1} bounds from 0 to {share.num_nodes}, "
                f"as there are {peers.size} ranks, got {len(bounds)}"
            )
    elif share.owners.shape != (share.num_nodes,):
        raise ValueError(
            f"{op}: 'owners' must be [{share.num_nodes}], got {tuple(share.owners.shape)}"
        )
    if not torch.equal(share.nodes, nodes_of(share.owners, peers.rank)):
        raise ValueError(f"{op}: 'nodes' are not those that rank {peers.rank} owns")
    sides = (("in", share.in_edges, share.in_ids, 1), ("out", share.out_edges, share.out_ids, 0))
    for name, edges, ids, side in sides:
        if edges.shape != (2, len(ids)):
            raise ValueError(
                f"{op}: '{name}_edges' must be [2, {len(ids)}], got {tuple(edges.shape)}"
            )
        _check_ids(op, f"{name}_ids", ids, share.num_edges)
        if not len(ids):
            continue
        low, high = (int(one) for one in torch.aminmax(edges))
        if low < 0 or high >= share.num_nodes:
            raise ValueError(
                f"{op}: '{name}_edges' must hold ids in [0, {share.num_nodes}), got {low} to {high}"
            )
        if bool((owner_of(share.owners, edges[side]) != peers.rank).any()):
            raise ValueError(f"{op}: '{name}_edges' holds edges that are not rank {peers.rank}'s")


def _check_ids(op: str, name: str, ids: Tensor, count: int) -> None:
    if len(ids) and (bool((ids.diff() <= 0).any()) or int(ids[0]) < 0 or int(ids[-1]) >= count):
        raise ValueError(f"{op}: '{name}' must rise within [0, {count})")


def check_routes(op: str, share: Share, shard: Shard, peers: Peers) -> None:
    """Raises on all ranks where two of them do not hold the same of the edges between them."""
    behind = len(shard.ids) - shard.edges.rows  # where edges out to other ranks begin
    sides = (
        (shard.sources, share.nodes, shard.by_row.halo),
        (shard.destinations, share.nodes, shard.by_column.halo),
        (shard.edges, shard.ids, shard.ids[behind:]),
    )
    sent = [torch.zeros(2 * len(sides), dtype=torch.int64) for _ in range(peers.size)]
    wanted = [torch.zeros_like(one) for one in sent]
    for k, (route, ids, far) in enumerate(sides):
        _sign(sent, k, ids[route.places], route.sent)
        _sign(wanted, k, far, route.received)
    found = [torch.zeros_like(one) for one in sent]
    peers.start(sent, found, op)()
    wrong = [rank for rank in range(peers.size) if not torch.equal(found[rank], wanted[rank])]
    error = None
    if wrong:
        error = RankError(
            f"{op}: the edges between rank {peers.rank} and ranks {wrong} are not the same on both "
            "sides: each must be in the share of its source's rank and its destination's"
        )
    peers.together(error, op)
    edges = int(peers.total(torch.tensor([len(share.in_ids)]), op))
    if edges != share.num_edges:
        raise RankError(
            f"{op}: the shares hold {edges} edges, but 'num_edges' is {share.num_edges}"
        )


def _sign(to: list[Tensor], k: int, ids: Tensor, counts: list[int]) -> None:
    """How many ids go to each rank, and a check sum of them in their order."""
    for one, part in zip(to, ids.long().split(counts), strict=True):
        place = torch.arange(1, len(part) + 1, device=part.device)
        one[2 * k], one[2 * k + 1] = len(part), int((part * place).sum())
