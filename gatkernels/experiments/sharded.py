"""A process's share of a training: its graph, and the rows that are its own."""

from __future__ import annotations

import torch
from torch import Tensor

from gatkernels.distributed import ShardedGraph
from gatkernels.experiments.batches import Batch
from gatkernels.experiments.world import World


def build_sharded(
    world: World, partition: str, exchange: str, edges: Tensor, nodes: int
) -> ShardedGraph:
    """As :func:`~gatkernels.experiments.batches.build_graph`, of a graph that all processes have.

    Each gives a part of the edges in their order, so that an edge's id is that of one process.
    """
    part = edges[:, world.slice_of(edges.shape[1])]
    return ShardedGraph.from_edge_index(
        part, nodes, self_loops=True, partition=partition, exchange=exchange
    )


def own_rows(batch: Batch) -> Batch:
    """Of a batch with a :class:`~gatkernels.distributed.ShardedGraph`, what is this process's."""
    own = batch.graph.nodes
    x, total = rows(batch.x, own), batch.y.shape[0]
    if batch.nodes is None:
        exact = None if batch.exact is None else batch.exact[own]
        return batch._replace(x=x, y=batch.y[own], exact=exact, total=total)
    place = torch.full((batch.x.shape[0],), -1, device=own.device)
    place[own] = torch.arange(len(own), device=own.device)
    local = place[batch.nodes]
    mine = local >= 0
    return batch._replace(x=x, y=batch.y[mine], nodes=local[mine], total=total)


def rows(x: Tensor, chosen: Tensor) -> Tensor:
    """Some rows of a dense or sparse CSR matrix."""
    if x.layout != torch.sparse_csr:
        return x[chosen]
    crow, col, values = x.crow_indices(), x.col_indices(), x.values()
    counts = crow.diff()[chosen]
    ends = counts.cumsum(0)
    # The place of each value: the first of its row, and how far it is from there.
    first = torch.repeat_interleave(crow[:-1][chosen] - ends + counts, counts)
    place = first + torch.arange(int(counts.sum()), device=x.device)
    new_crow = torch.cat([ends.new_zeros(1), ends]).to(crow.dtype)
    return torch.sparse_csr_tensor(
        new_crow, col[place], values[place], (len(chosen), x.shape[1]), check_invariants=False
    )
