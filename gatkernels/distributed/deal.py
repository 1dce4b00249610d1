"""From any ranks' edges to every rank's share: checked, given an owner, and sent there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatkernels.distributed import partition
from gatkernels.distributed.peers import Peers
from gatkernels.distributed.share import Share, nodes_of, owner_of
from gatkernels.ops import checks

PARTITIONS = ("range", "metis")


def deal(op: str, edges: Tensor, num_nodes: int, how: str | Tensor, peers: Peers) -> Share:
    """The share of this rank; ``how``: a name of PARTITIONS, or owners ``[num_nodes]``.

    Raises on all ranks what is wrong on one of them.
    """
    error: Exception | None = None
    try:
        check(op, edges, num_nodes, how, peers.size)
    except (TypeError, ValueError) as found:
        error = found
    peers.together(error, op)
    given = "owners" if isinstance(how, Tensor) else how
    peers.agree(f"num_nodes={num_nodes}, partition={given!r}", op)
    edges = edges.detach().long()
    counts = peers.counts([edges.shape[1]] * peers.size, op)
    first = sum(counts[: peers.rank])
    ids = first + torch.arange(edges.shape[1], device=edges.device)
    owners = _owners(op, edges, num_nodes, how, peers)
    in_edges, in_ids = _to_owners(op, edges, ids, owner_of(owners, edges[1]), peers)
    out_edges, out_ids = _to_owners(op, edges, ids, owner_of(owners, edges[0]), peers)
    return Share(
        nodes=nodes_of(owners, peers.rank),
        num_nodes=num_nodes,
        num_edges=sum(counts),
        owners=owners,
        in_edges=in_edges,
        in_ids=in_ids,
        out_edges=out_edges,
        out_ids=out_ids,
    )


def check(op: str, edges: Any, num_nodes: Any, how: Any, ranks: int) -> None:
    checks.edge_index(op, edges, "edges")
    checks.node_count(op, "num_nodes", num_nodes)
    if edges.numel():
        low, high = torch.aminmax(edges)
        if int(low) < 0 or int(high) >= num_nodes:
            wrong = (edges < 0) | (edges >= num_nodes)
            side, place = wrong.nonzero()[0].tolist()
            bad = int(edges[side, place])
            raise checks.node_id_out_of_range(op, f"edges[{side}]", bad, place, num_nodes)
    if isinstance(how, Tensor):
        checks.index_vector(op, "partition", how)
        checks.shape(op, "partition", how, num_nodes=num_nodes)
        checks.same_device(op, "partition", how, edges.device, "'edges'")
        if how.numel() and not 0 <= int(how.min()) <= int(how.max()) < ranks:
            raise ValueError(
                f"{op}: 'partition' must hold ranks in [0, {ranks}), "
                f"got {int(how.min())} to {int(how.max())}"
            )
    elif how not in PARTITIONS:
        raise ValueError(
            f"{op}: 'partition' must be {' or '.join(map(repr, PARTITIONS))}, or the owners "
            f"[num_nodes], got {how!r}"
        )


def _owners(op: str, edges: Tensor, num_nodes: int, how: str | Tensor, peers: Peers) -> Tensor:
    if isinstance(how, Tensor):
        owners = how.int()
        weights = torch.arange(1, num_nodes + 1, device=how.device) * 0x9E3779B97F4A7C1
        peers.agree(f"owners with the check sum {int((weights * owners).sum())}", op)
        return owners
    if how == "range":
        degrees = torch.bincount(edges.flatten(), minlength=num_nodes)
        return partition.bounds_by_edges(peers.total(degrees, op), peers.size)
    all_edges = _gathered(op, edges, peers)
    found, error = torch.empty(num_nodes, dtype=torch.int32), None
    if peers.rank == 0:
        try:
            found = partition.owners_by_metis(all_edges.cpu(), num_nodes, peers.size)
        except Exception as wrong:  # whatever METIS says; the others wait
            error = RuntimeError(f"{op}: METIS: {wrong}")
    peers.together(error, op)
    sends = [found if peers.rank == 0 else found[:0]] * peers.size
    receives = [found if rank == 0 else found[:0] for rank in range(peers.size)]
    peers.start(sends, receives, op)()
    return found.to(edges.device)


def _gathered(op: str, edges: Tensor, peers: Peers) -> Tensor:
    """All edges on rank 0, nothing elsewhere."""
    sends = [edges.shape[1] if rank == 0 else 0 for rank in range(peers.size)]
    counts = peers.counts(sends, op)
    found = edges.new_empty(2, sum(counts))
    for side in range(2):
        own = edges[side].contiguous()
        peers.start(
            [own if rank == 0 else own[:0] for rank in range(peers.size)],
            [*found[side].split(counts)],
            op,
        )()
    return found


def _to_owners(
    op: str, edges: Tensor, ids: Tensor, owners: Tensor, peers: Peers
) -> tuple[Tensor, Tensor]:
    """Edges and ids that this rank is to have, ascending by id as ranks' shares follow."""
    order = torch.argsort(owners, stable=True)
    sends = torch.bincount(owners, minlength=peers.size).tolist()
    counts = peers.counts(sends, op)
    found = ids.new_empty(3, sum(counts))
    for values, column in zip((*edges.unbind(), ids), found, strict=True):
        peers.start([*values[order].split(sends)], [*column.split(counts)], op)()
    return found[:2], found[2]
