"""Graphs in which almost no node has an edge: the operators see only the nodes that have one.

Self loops that the layer has added do not count: a node with no other edge has ``alpha = 1`` there,
and its result is its own row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels.graph import Graph
from gatkernels.ops import build, transforms
from gatkernels.ops.autograd import Options

LEAST = 1 << 14  # nodes below which looking for them costs as much as it saves
FEW = 4  # so many nodes for each edge


class Compact(NamedTuple):
    """The nodes that have edges, and the graph among them."""

    src: Tensor  # [n] ids of sources; those of a square graph are its destinations
    dst: Tensor
    edges: Tensor | None  # [n] ids of the edges, where the graph counts them anew
    graph: Graph

    def of_sources(self, rows: Any) -> Any:
        """Their rows ``[n, ...]`` of ``[num_src, ...]``; None of None."""
        return None if rows is None else rows.index_select(0, self.src)

    def of_destinations(self, rows: Any) -> Any:
        return None if rows is None else rows.index_select(0, self.dst)

    def of_edges(self, rows: Any) -> Any:
        return rows if rows is None or self.edges is None else rows.index_select(0, self.edges)

    def spread(self, out: Tensor, x: Tensor, count: int) -> Tensor:
        """``out [n, ...]`` of the destinations among all ``count``: zeros elsewhere, or with self
        loops the row of ``x``."""
        all_rows = out.new_zeros(count, *out.shape[1:]) if self.edges is None else x
        return all_rows.index_copy(0, self.dst, out)


def compact(graph: Graph) -> Compact | None:
    """None where most nodes have edges, or the graph is small; remembered with the graph."""
    if torch.compiler.is_compiling() or graph.num_dst < LEAST or _traced():
        return None
    if graph.attend is not None:  # an exchange has a place for every node
        return None
    if graph.device.type != "cpu":  # looking for the nodes would wait
        return None
    square = graph.num_src == graph.num_dst
    if graph.self_loops and not square:
        return None
    edges = graph.num_edges - (graph.num_dst if graph.self_loops else 0)
    if FEW * edges > min(graph.num_src, graph.num_dst):
        return None
    found: Compact | None = graph.__dict__.get("_compact")
    if found is None:
        with build.plain():
            found = graph.__dict__["_compact"] = _of(graph)
    return found


def _traced() -> bool:
    """Whether a call is transformed, or a program made, which no value may decide about."""
    modes: int = torch._C._len_torch_dispatch_stack()
    return torch._C._is_tracing() or modes > 0 or transforms.active()


def only_loops(graph: Graph, options: Options, *inputs: Tensor | None) -> bool:
    """Whether nodes without edges but their self loops can be told their results: where neither
    masks nor weights of those edges are wanted, and all scores are finite.

    Args:
        graph: The whole graph.
        options: Of the call.
        inputs: All that scores are made of: sums of them, or products of two.
    """
    if not graph.self_loops:
        return True
    if options.dropout > 0.0 or options.return_attention:
        return False
    return all(t is None or _moderate(t) for t in inputs)


def _moderate(tensor: Tensor) -> bool:
    """Whether all values are finite, and a product of two such rows is."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return bool(torch.linalg.vector_norm(tensor.detach(), dtype=dtype) < 1e18)


def _of(graph: Graph) -> Compact:
    if graph.self_loops or "row" not in graph.__dict__:
        alone = 1 if graph.self_loops else 0  # edges into a node that are no more than its loop
        dst = (graph.rowptr.diff() > alone).nonzero().squeeze(1)
    else:  # without a look at every node
        dst = graph.row.long().unique()
    rowptr, places = _edges_of(graph.rowptr, dst)
    src = graph.col[places].long().unique()
    if graph.num_src == graph.num_dst:
        src = dst = torch.cat([src, dst]).unique()
        rowptr, places = _edges_of(graph.rowptr, dst)
    col, eid = torch.searchsorted(src, graph.col[places].long()).int(), graph.eid[places]
    if graph.self_loops:
        edges = eid.long().sort().values
        csr = (rowptr, col, torch.searchsorted(edges, eid.long()).int())
        return Compact(src, dst, edges, Graph(len(src), len(dst), csr, None))
    colptr, places = _edges_of(graph.colptr, src)
    csc = (colptr, torch.searchsorted(dst, graph.row[places].long()).int(), graph.ceid[places])
    return Compact(src, dst, None, Graph(len(src), len(dst), (rowptr, col, eid), csc))


def _edges_of(pointer: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """A pointer of these nodes alone, and the places of their edges, node by node."""
    counts = pointer[nodes + 1] - pointer[nodes]
    own = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    start = torch.repeat_interleave(pointer[nodes] - own[:-1], counts)
    return own, start + torch.arange(start.shape[0])
