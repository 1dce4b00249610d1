"""Who owns which node: contiguous ranges of as many edges each, METIS's parts, or chance."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gatkernels.extras import require

#: Bytes that :func:`owners_by_metis` takes at its peak, for each edge and for each node.
METIS_BYTES = (130, 120)


def bounds_by_edges(degrees: Tensor, parts: int) -> Tensor:
    """Ranges of consecutive nodes, ``[parts + 1]`` int64: rank r owns ``bounds[r]:bounds[r + 1]``.

    Args:
        degrees: ``[num_nodes]``, edges into and out of each node.
        parts: Number of ranges; each gets as nearly as whole nodes allow the same sum of degrees,
            where a node counts for one edge more, so that nodes without edges are dealt out, too.
    """
    weights = degrees.long() + 1
    ends = torch.cumsum(weights, 0, out=weights)  # of each node's edges, when laid end to end
    total = int(ends[-1]) if len(ends) else 0
    cuts = torch.arange(1, parts, device=ends.device) * total // parts
    first = torch.searchsorted(ends, cuts)  # the node that a cut falls into
    if total:
        after = ends[first] - cuts
        before = cuts - torch.where(first > 0, ends[first - 1], 0)
        first = first + (after < before)
    bounds = torch.empty(parts + 1, dtype=torch.int64, device=ends.device)
    bounds[0], bounds[1:-1], bounds[-1] = 0, first, len(ends)
    return bounds


def owners_by_metis(edge_index: Tensor, num_nodes: int, parts: int) -> Tensor:
    """Owners ``[num_nodes]`` int32 that cut few edges, by METIS's multilevel k-way partitioning.

    METIS sees every pair of linked nodes once, whatever the number and direction of the edges
    between them; self loops do not count. Parts are balanced by edges, as :func:`bounds_by_edges`
    counts them. The whole graph lies in memory: see ``METIS_BYTES``.

    Args:
        edge_index: ``[2, E]`` int32 or int64, on the CPU, ids in ``[0, num_nodes)``.
        num_nodes: Number of nodes.
        parts: Number of owners.

    Raises:
        MissingExtraError: pymetis is not installed.
    """
    metis = require("pymetis", "pymetis", "distributed")
    if parts >= num_nodes:
        return torch.arange(num_nodes, dtype=torch.int32)
    degrees = torch.bincount(edge_index.flatten(), minlength=num_nodes)
    rowptr, col = _linked(edge_index, num_nodes)
    if parts == 1 or not len(col):  # METIS wants two parts and an edge
        bounds = bounds_by_edges(degrees, parts)
        return torch.repeat_interleave(torch.arange(parts, dtype=torch.int32), bounds.diff())
    found = metis.part_graph(
        parts,
        metis.CSRAdjacency(rowptr.numpy(), col.numpy()),
        vweights=(degrees + 1).numpy(),
        recursive=False,
    )
    return torch.from_numpy(np.array(found.vertex_part, np.int32))


def _linked(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """The nodes linked to each node, ascending, as ``rowptr`` and ``col``, int64."""
    src, dst = edge_index
    apart = src != dst
    src, dst = src[apart].long(), dst[apart].long()
    keys = torch.cat([src * num_nodes + dst, dst * num_nodes + src])
    del src, dst, apart
    keys.numpy().sort()  # in place, and no order beside it
    keys = torch.unique_consecutive(keys)
    rowptr = torch.searchsorted(keys, torch.arange(num_nodes + 1) * num_nodes)
    return rowptr, keys.remainder_(num_nodes)


def random_owners(num_nodes: int, parts: int, seed: int) -> Tensor:
    """An owner for each node, ``[num_nodes]`` int32, drawn alike: the cut no order can spoil."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(parts, (num_nodes,), generator=generator, dtype=torch.int32)
