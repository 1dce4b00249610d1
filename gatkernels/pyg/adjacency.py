"""Every adjacency PyG's layers take, as the graph the kernels read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.typing import SparseTensor, torch_sparse
from torch_geometric.utils import (
    add_self_loops,
    is_torch_sparse_tensor,
    remove_self_loops,
    to_edge_index,
)
from torch_geometric.utils.loop import compute_loop_attr
from torch_geometric.utils.sparse import set_sparse_value

from gatkernels.graph import Graph, cached_graph
from gatkernels.ops.memo import Memo, sparse_parts, watchable

FillValue = float | Tensor | str | None


class Unfused(Exception):
    """PyG's own code must run, to do what the kernels cannot or to raise its own error."""


class Adjacency(NamedTuple):
    """A graph from sources to destinations, and what PyG returns beside attention weights."""

    graph: Graph
    edge_attr: Tensor | None  # [graph.num_edges, ...]
    given: Any  # the layer's argument, with its self loops already where ``loops`` is None
    loops: int | None  # self loops that PyG would put in the place of those of ``given``

    def with_weights(self, alpha: Tensor) -> Any:
        """The second result of a layer asked for attention weights, in PyG's order and types."""
        if self.graph.self_loops:
            alpha = alpha[self.graph.used_edge_ids()]
        given = self.given
        if isinstance(given, Graph):
            return given.edge_index, alpha
        if self.loops is not None:
            given, _ = remove_self_loops(given)
            given, _ = add_self_loops(given, num_nodes=self.loops)
        if isinstance(given, SparseTensor):
            return given.set_value(alpha, layout="coo")
        if is_torch_sparse_tensor(given):
            return set_sparse_value(given, alpha), alpha
        return given, alpha


def node_counts(x_src: Tensor, x_dst: Tensor | None, size: Sequence[int | None] | None) -> Any:
    """``(num_src, num_dst)``; the second as PyG infers it where there are no destinations."""
    num_src = x_src.shape[0]
    if x_dst is not None:
        num_dst = x_dst.shape[0]
    else:
        num_dst = size[1] if size is not None and size[1] is not None else num_src
    if size is not None and (size[0] != num_src or size[1] != num_dst):
        raise Unfused("size is not that of the features")
    return num_src, num_dst


def adjacency(
    edge_index: Any,
    edge_attr: Tensor | None,
    counts: tuple[int, int],
    self_loops: bool,
    fill_value: FillValue,
) -> Adjacency:
    """The graph of any adjacency, with edge features where there are any.

    Args:
        edge_index: As the layer got it; a Graph is used as it is, whatever ``self_loops`` says.
        edge_attr: ``[E]`` or ``[E, D]``, or None.
        counts: ``(num_src, num_dst)`` of the features.
        self_loops: Whether loops are to be replaced by one per node.
        fill_value: Features of the new loops: a value, None for ones, or how to reduce those of
            the edges into the node.

    Raises:
        Unfused: Where PyG's own code must judge the arguments.
        ValueError: Where features do not fit a Graph, which PyG's code does not take.
    """
    if isinstance(edge_index, Graph):
        if counts[0] != edge_index.num_src:
            raise ValueError(
                f"'x' must have a row for each of the graph's num_src={edge_index.num_src} nodes, "
                f"got {counts[0]}"
            )
        rows = edge_index.num_edges
        if edge_attr is not None and (edge_attr.dim() not in (1, 2) or len(edge_attr) != rows):
            raise ValueError(
                f"'edge_attr' must have a row for each of the graph's num_edges={rows} edges, self "
                f"loops included, got {tuple(edge_attr.shape)}"
            )
        return Adjacency(edge_index, edge_attr, edge_index, None)
    if isinstance(edge_index, SparseTensor):
        return _of_sparse_tensor(edge_index, edge_attr, counts, self_loops)
    if not isinstance(edge_index, Tensor):
        raise Unfused(f"an adjacency of type {type(edge_index).__name__}")
    if is_torch_sparse_tensor(edge_index):
        return _of_torch_sparse(edge_index, edge_attr, counts, self_loops, fill_value)
    plain = edge_index
    if isinstance(edge_index, EdgeIndex):
        plain = edge_index.as_tensor()
        sizes = zip(edge_index.sparse_size(), counts, strict=True)
        if any(known not in (None, count) for known, count in sizes):
            raise Unfused("the size of the EdgeIndex is not that of the features")
    try:
        graph = cached_graph(plain, counts, self_loops, edge_index)
    except (TypeError, ValueError) as error:
        raise Unfused("edge_index is not [2, E] of int32 or int64 ids of nodes") from error
    loops = min(counts) if self_loops else None
    if edge_attr is not None:
        _check_attr(edge_attr, plain.shape[1])
        if loops is not None:
            edge_attr = with_loops(plain, edge_attr, loops, fill_value)
    return Adjacency(graph, edge_attr, edge_index, loops)


def with_loops(edge_index: Tensor, edge_attr: Tensor, loops: int, fill_value: FillValue) -> Tensor:
    """Edge features followed by those of one loop per node, ``[E + loops, ...]``.

    Given loops keep their places, which take no part, so that no size depends on the data.
    """
    src, dst = edge_index[0].long(), edge_index[1].long()
    given = src == dst
    # zeros there: an infinite feature of a removed loop must not reach a gradient as 0 * inf
    edge_attr = edge_attr.masked_fill(given.view(-1, *[1] * (edge_attr.dim() - 1)), 0)
    if isinstance(fill_value, str):
        into = torch.where(given | (dst >= loops), loops, dst)  # one more row for what is left out
        filled = compute_loop_attr((None, into), edge_attr, loops + 1, False, fill_value)[:loops]
    else:
        filled = compute_loop_attr(edge_index, edge_attr, loops, False, fill_value)
    return torch.cat([edge_attr, filled])


def _check_attr(edge_attr: Tensor, num_edges: int) -> None:
    if edge_attr.dim() not in (1, 2) or edge_attr.shape[0] != num_edges:
        raise Unfused("edge_attr is not [E] or [E, D]")


def _of_torch_sparse(
    adj: Tensor,
    edge_attr: Tensor | None,
    counts: tuple[int, int],
    self_loops: bool,
    fill_value: FillValue,
) -> Adjacency:
    """Rows are destinations. PyG's own functions place the loops, and merge parallel edges."""
    if adj.layout == torch.sparse_csc:
        raise Unfused("a sparse CSC adjacency")
    if not self_loops and adj.layout == torch.sparse_coo and not adj.is_coalesced():
        raise Unfused("a sparse adjacency that is not coalesced")
    if (adj.shape[1], adj.shape[0]) != counts:
        raise Unfused("the size of the adjacency is not that of the features")
    if edge_attr is not None and self_loops:
        raise Unfused("edge_attr beside a sparse adjacency that gets self loops")
    looped, graph, values = _looped(adj, self_loops, fill_value)
    edge_attr = values if edge_attr is None else edge_attr
    if edge_attr is not None:
        _check_attr(edge_attr, graph.num_edges)
    return Adjacency(graph, edge_attr, looped, None)


def _looped(adj: Tensor, self_loops: bool, fill_value: FillValue) -> tuple[Tensor, Graph, Any]:
    """The matrix with its loops, its graph, and its values where they are edge features.

    Remembered while the matrix lives unchanged, unless it has features, which may need gradients.
    """
    cached = watchable(adj) and not adj.requires_grad  # whose history would keep it alive
    found = _memo.find(adj, sparse_parts(adj), self_loops) if cached else None
    if found is not None:
        return adj if found[0] is None else found[0], found[1], None
    looped = adj
    if self_loops:
        looped, _ = remove_self_loops(adj)
        looped, _ = add_self_loops(looped, fill_value=fill_value)
    indices, values = to_edge_index(looped)  # [2, E], destinations first
    graph = Graph.from_edge_index(indices.flip(0), (adj.shape[1], adj.shape[0]))
    if values.dim() > 1:
        return looped, graph, values
    if cached:
        kept = None if looped is adj else looped  # a reference to itself would keep it alive
        _memo.keep(adj, sparse_parts(adj), self_loops, (kept, graph))
    return looped, graph, None


def _of_sparse_tensor(
    adj: Any, edge_attr: Tensor | None, counts: tuple[int, int], self_loops: bool
) -> Adjacency:
    """torch-sparse's ``SparseTensor``, rows are destinations."""
    if (adj.size(1), adj.size(0)) != counts:
        raise Unfused("the size of the adjacency is not that of the features")
    if self_loops:
        adj = torch_sparse.set_diag(adj)
    row, col, value = adj.coo()
    graph = Graph.from_edge_index(torch.stack([col, row]), counts)
    if edge_attr is None and value is not None and value.dim() > 1:
        edge_attr = value
    if edge_attr is not None:
        _check_attr(edge_attr, graph.num_edges)
    return Adjacency(graph, edge_attr, adj, None)


_memo: Memo[tuple[Tensor | None, Graph]] = Memo()
