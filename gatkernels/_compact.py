"""Graphs in which almost no node has an edge: the operators see only the nodes that have one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels import _build
from gatkernels.graph import Graph

LEAST = 1 << 14  # nodes below which looking for them costs as much as it saves
FEW = 4  # so many nodes for each edge


class Compact(NamedTuple):
    """The nodes that have edges, and the graph among them."""

    src: Tensor  # [n] ids of sources; those of a square graph are its destinations
    dst: Tensor
    graph: Graph

    def of_sources(self, rows: Any) -> Any:
        """Their rows ``[n, ...]`` of ``[num_src, ...]``; None of None."""
        return None if rows is None else rows.index_select(0, self.src)

    def of_destinations(self, rows: Any) -> Any:
        return None if rows is None else rows.index_select(0, self.dst)


def compact(graph: Graph) -> Compact | None:
    """None where most nodes have edges, or the graph is small; remembered with the graph."""
    if torch.compiler.is_compiling() or graph.num_dst < LEAST or graph.device.type != "cpu":
        return None  # on a GPU, looking for the nodes would wait
    if FEW * graph.num_edges > min(graph.num_src, graph.num_dst) or graph.self_loops:
        return None
    found: Compact | None = graph.__dict__.get("_compact")
    if found is None:
        with _build.plain():
            found = graph.__dict__["_compact"] = _of(graph)
    return found


def _of(graph: Graph) -> Compact:
    col, row, square = graph.col.long(), graph.row.long(), graph.num_src == graph.num_dst
    src, dst = col.unique(), row.unique()
    if square:
        src = dst = torch.cat([src, dst]).unique()
    csr = (_pointer(graph.rowptr, dst), torch.searchsorted(src, col).int(), graph.eid)
    csc = (_pointer(graph.colptr, src), torch.searchsorted(dst, row).int(), graph.ceid)
    return Compact(src, dst, Graph(src.shape[0], dst.shape[0], csr, csc))


def _pointer(pointer: Tensor, nodes: Tensor) -> Tensor:
    return torch.cat([pointer[nodes], pointer[-1:]])


def spread(rows: Tensor, nodes: Tensor, count: int) -> Tensor:
    """``rows [n, ...]`` at their ``nodes`` among ``count``, zeros elsewhere."""
    return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, nodes, rows)
