"""What a rank holds of a graph: the edges into its own nodes, and those out of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """A rank's part of a graph whose nodes are owned by ranks; ids of nodes and edges are global.

    The shares of all ranks hold every node once, and every edge twice: with its destination's owner
    and with its source's.
    """

    nodes: Tensor  # [own] int64, ids of its nodes, ascending: the order of its rows
    num_nodes: int  # of the whole graph
    num_edges: int  # of the whole graph
    #: Who owns a node: [num_nodes] int32, its rank; or [ranks + 1] int64, where rank r owns the
    #: nodes owners[r]:owners[r + 1].
    owners: Tensor
    in_edges: Tensor  # [2, n] int64, sources and destinations, the latter its own
    in_ids: Tensor  # [n] int64, ids of these edges, ascending
    out_edges: Tensor  # [2, m] int64, the sources its own
    out_ids: Tensor  # [m] int64, ids of these edges, ascending


def owner_of(owners: Tensor, nodes: Tensor) -> Tensor:
    """The rank of each of ``nodes [n]``, int64, by ``owners`` as in :class:`Share`."""
    if owners.dtype == torch.int32:
        return owners[nodes].long()
    return torch.searchsorted(owners, nodes, right=True) - 1


def nodes_of(owners: Tensor, rank: int) -> Tensor:
    """The ids of a rank's nodes, ascending, by ``owners`` as in :class:`Share`."""
    if owners.dtype == torch.int32:
        return (owners == rank).nonzero().squeeze(1)
    return torch.arange(int(owners[rank]), int(owners[rank + 1]), device=owners.device)
