"""The graph in the form the kernels read: CSR by destination, CSC by source, edge ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C import _functorch

from gatkernels.backends import schedule
from gatkernels.backends.schedule import Parts
from gatkernels.ops import build, checks, library
from gatkernels.ops.call import Edges
from gatkernels.ops.memo import Memo, watchable

NodeCounts = int | tuple[int, int] | None


class Graph:
    """Directed edges from ``num_src`` source nodes to ``num_dst`` destination nodes.

    Built by one of the constructors below, range-checked once, and then read-only.

    Attributes:
        num_src, num_dst: Number of source and destination nodes.
        num_edges: Length of per-edge tensors, in the order of the edges the user gave. With
            ``self_loops`` this is the ``E`` given edges followed by ``min(num_src, num_dst)``
            loops; given edges that were loops themselves keep their place but take no part, so
            that no size depends on the data.
        rowptr: ``[num_dst + 1]`` int64; edges into node ``i`` are ``rowptr[i]:rowptr[i + 1]``.
        col: ``[num_edges]`` int32, source of each edge, by destination.
        eid: ``[num_edges]`` int32, place of each edge in the user's order, by destination.
        colptr, row, ceid: The same by source: edges out of node ``j`` are
            ``colptr[j]:colptr[j + 1]``, ``row`` their destinations.
        self_loops: Whether loops were replaced as PyG does (existing ones removed, one per node
            appended).
        by_row, by_column: How a GPU goes about the rows of the two, see
            :mod:`gatkernels.backends.schedule`: made with the graph where it is on a GPU, so that
            they share its stream and memory pool; None elsewhere until a call asks for them.
    """

    num_src: int
    num_dst: int
    num_edges: int
    self_loops: bool
    rowptr: Tensor
    col: Tensor
    eid: Tensor
    colptr: Tensor
    row: Tensor
    ceid: Tensor
    by_row: Parts | None
    by_column: Parts | None
    #: Runs a call in which other processes take part, see :mod:`gatkernels.distributed`; None where
    #: the graph is all in this one.
    attend: ClassVar[Callable[..., Any] | None] = None

    def __init__(
        self,
        num_src: int,
        num_dst: int,
        csr: Sequence[Tensor],
        csc: Sequence[Tensor] | None,
        self_loops: bool = False,
        schedules: tuple[Parts | None, Parts | None] = (None, None),
    ) -> None:
        self.num_src = num_src
        self.num_dst = num_dst
        self.rowptr, self.col, self.eid = csr
        if csc is not None:
            self.colptr, self.row, self.ceid = csc
        self.num_edges = self.col.shape[0]
        self.self_loops = self_loops
        self.by_row, self.by_column = schedules
        self._places: Tensor | None = None
        if self.device.type in schedule.WITH_GRAPH:
            self.by_row, self.by_column = self._made_schedules()

    def _made_schedules(self) -> tuple[Parts, Parts]:
        make = build.bounded_schedule if torch.compiler.is_compiling() else schedule.build
        by_row, by_column = self.by_row, self.by_column
        return (
            make(self.rowptr, self.num_edges) if by_row is None else by_row,
            make(self.colptr, self.num_edges) if by_column is None else by_column,
        )

    def schedules(self, backend: str) -> tuple[Parts, Parts]:
        """``by_row`` and ``by_column`` for the kernels of a backend; nothing for the CPU's."""
        if backend == "cpu":
            return (), ()
        if self.by_row is not None and self.by_column is not None:
            return self.by_row, self.by_column
        with build.plain():
            made = self._made_schedules()
        if not torch.compiler.is_compiling():  # those of a program that is traced have no memory
            self.by_row, self.by_column = made
        return made

    def edges_by_row(self, backend: str, dropout: float = 0.0) -> Edges:
        """The edges by destination, for the kernels of a backend; ``dropout`` is the call's."""
        return Edges(self.rowptr, self.col, self.eid, self.schedules(backend)[0])

    def edges_by_column(self, backend: str, dropout: float = 0.0) -> Edges:
        """The edges by source."""
        return Edges(self.colptr, self.row, self.ceid, self.schedules(backend)[1])

    @classmethod
    def from_edge_index(
        cls, edge_index: Tensor, num_nodes: NodeCounts = None, self_loops: bool = False
    ) -> Graph:
        """Build from ``edge_index [2, E]`` (int32 or int64), sources first, then destinations.

        Args:
            edge_index: Edge ``e`` goes from ``edge_index[0, e]`` to ``edge_index[1, e]``.
            num_nodes: Number of nodes, or ``(num_src, num_dst)`` of a bipartite graph; by
                default one more than the largest id (which reads the tensor's values).
            self_loops: Remove the given self loops and append one per node, as
                ``torch_geometric.nn.GATConv(add_self_loops=True)`` does; a bipartite graph gets
                loops ``i -> i`` for ``i < min(num_src, num_dst)``.

        Raises:
            TypeError: If ``edge_index`` is not a dense tensor of int32 or int64, or a node count
                is not an int.
            ValueError: If ``edge_index`` is not ``[2, E]``, a node id is negative or too large,
                or sizes pass the 31 bits of the column type.
        """
        op = "Graph.from_edge_index"
        checks.edge_index(op, edge_index)
        edge_index = _untransformed(edge_index)
        num_src, num_dst = _node_counts(op, edge_index, num_nodes)
        edge_index = edge_index.detach()
        if library.exporting_to_onnx():
            return _EdgeList(edge_index, num_src, num_dst, self_loops)
        compiling = torch.compiler.is_compiling()
        both = torch.is_grad_enabled()  # else edges by source only if asked for
        with build.plain():
            if not compiling and (both or not build.sides_apart(edge_index.device)):
                return cls._from_both_sides(edge_index, num_src, num_dst, self_loops)
            csr = build.build_csr(edge_index, num_src, num_dst, False, self_loops)
            csc = None
            if compiling:
                csc = build.build_csr(edge_index, num_src, num_dst, True, self_loops)
            return cls(num_src, num_dst, csr, csc, self_loops)

    @classmethod
    def _from_both_sides(
        cls, edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool
    ) -> Graph:
        *arrays, ends, chunks = build.build_graph(edge_index, num_src, num_dst, self_loops)
        csr, csc = arrays[:3], arrays[3:]
        schedules: tuple[Parts | None, Parts | None] = None, None
        if chunks.numel():
            first, last = chunks.tolist()
            sides = ends[:num_dst], ends[num_dst + 1 :]
            if first and last:
                sides = sides[0], sides[1] - first
            by_row = schedule.build(csr[0], csr[1].shape[0], sides[0], first)
            schedules = by_row, schedule.build(csc[0], csc[1].shape[0], sides[1], last)
        return cls(num_src, num_dst, csr, csc, self_loops, schedules)

    def __getattr__(self, name: str) -> Tensor:
        """The edges by source where they were not needed until now: a backward reads them."""
        if name not in ("colptr", "row", "ceid") or "rowptr" not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        with build.plain():
            self.colptr, self.row, self.ceid = _by_source(self)
        found: Tensor = self.__dict__[name]
        return found

    @classmethod
    def from_csr(cls, rowptr: Tensor, col: Tensor, num_src: int | None = None) -> Graph:
        """Build from CSR by destination; the user's edge order is the order of ``col``.

        Args:
            rowptr: ``[num_dst + 1]``, int32 or int64, from 0 to ``E``, not decreasing.
            col: ``[E]``, int32 or int64, source of each edge.
            num_src: Number of source nodes; by default that of the destinations.

        Raises:
            TypeError: If a dtype is not int32 or int64.
            ValueError: If ``rowptr`` is no row pointer of ``col``, or an id is out of range.
        """
        op = "Graph.from_csr"
        checks.index_vector(op, "rowptr", rowptr)
        checks.index_vector(op, "col", col)
        checks.same_device(op, "rowptr", rowptr, col.device, "'col'")
        if rowptr.numel() == 0:
            raise ValueError(f"{op}: 'rowptr' must have shape [num_dst + 1], got (0,)")
        degree = rowptr.diff()
        first, last = int(rowptr[0]), int(rowptr[-1])
        if first != 0 or last != col.numel() or bool((degree < 0).any()):
            raise ValueError(
                f"{op}: 'rowptr' must rise from 0 to len(col)={col.numel()} without falling, "
                f"got first={first}, last={last}, smallest step="
                f"{int(degree.min()) if degree.numel() else 0}"
            )
        num_dst = rowptr.numel() - 1
        dst = torch.repeat_interleave(torch.arange(num_dst, device=col.device), degree)
        counts = (num_dst if num_src is None else num_src, num_dst)
        checks.node_count(op, "num_src", counts[0])
        wrong = (col < 0) | (col >= counts[0])
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise checks.node_id_out_of_range(op, "col", int(col[place]), place, counts[0])
        return cls.from_edge_index(torch.stack([col.long(), dst]), counts)

    @classmethod
    def from_torch_sparse(cls, adjacency: Tensor, self_loops: bool = False) -> Graph:
        """Build from a ``torch.sparse`` matrix ``[num_dst, num_src]`` whose rows are destinations.

        COO, CSR and CSC are taken; values are ignored; the user's edge order is that of
        ``adjacency.values()`` (of the stored values where a COO tensor is not coalesced).

        Raises:
            TypeError: If ``adjacency`` is not a sparse tensor in one of these layouts.
            ValueError: If it does not have two dimensions.
        """
        op = "Graph.from_torch_sparse"
        checks.tensor(op, "adjacency", adjacency)
        if adjacency.dim() != 2:
            raise ValueError(
                f"{op}: 'adjacency' must have shape [num_dst, num_src], "
                f"got {tuple(adjacency.shape)}"
            )
        num_dst, num_src = adjacency.shape
        if adjacency.layout == torch.sparse_coo:
            dst, src = adjacency._indices()
        elif adjacency.layout == torch.sparse_csr:
            src = adjacency.col_indices()
            dst = _expand(adjacency.crow_indices(), num_dst)
        elif adjacency.layout == torch.sparse_csc:
            src = _expand(adjacency.ccol_indices(), num_src)
            dst = adjacency.row_indices()
        else:
            raise TypeError(
                f"{op}: 'adjacency' must be a sparse COO, CSR or CSC tensor, "
                f"got layout {adjacency.layout}"
            )
        edge_index = torch.stack([src.long(), dst.long()])
        return cls.from_edge_index(edge_index, (num_src, num_dst), self_loops)

    @property
    def num_nodes(self) -> int:
        """Number of nodes, where sources and destinations are the same.

        Raises:
            ValueError: If the graph is bipartite, with ``num_src`` and ``num_dst`` apart.
        """
        if self.num_src != self.num_dst:
            raise ValueError(
                f"Graph.num_nodes: the graph has {self.num_src} source and {self.num_dst} "
                "destination nodes: use num_src or num_dst"
            )
        return self.num_dst

    @property
    def device(self) -> torch.device:
        return self.rowptr.device

    @property
    def edge_index(self) -> Tensor:
        """``[2, E]`` int64 in the user's order, without the removed self loops."""
        order = self._order()
        src, dst, _ = self.csr_edges()
        return torch.stack([src[order], dst[order]])

    def used_edge_ids(self) -> Tensor:
        """Places of per-edge tensors that hold an edge, ascending: all but removed self loops."""
        return self.eid[self._order()].long()

    def _order(self) -> Tensor:
        """Places of the CSR arrays in the user's order: a sort and a wait, the first time."""
        if self._places is not None:
            return self._places
        order = torch.argsort(self.eid[: int(self.rowptr[-1])])
        if not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled()):
            self._places = order
        return order

    def csr_edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """Source, destination and edge id of each place of the CSR arrays, ``[num_edges]`` int64.

        Places past ``rowptr[-1]`` (removed self loops) get destination ``num_dst``.
        """
        place = torch.arange(self.num_edges, device=self.device)
        dst = torch.searchsorted(self.rowptr, place, right=True) - 1
        return self.col.long(), dst, self.eid.long()

    def to(self, device: torch.device | str) -> Graph:
        """This graph on ``device`` (itself where it is there already)."""
        if self.device == torch.device(device):
            return self
        csr = (self.rowptr.to(device), self.col.to(device), self.eid.to(device))
        schedules: tuple[Parts | None, Parts | None] = None, None
        if torch.device(device).type in schedule.WITH_GRAPH:  # made here without a wait there
            made = self.schedules("auto")
            schedules = tuple(t.to(device) for t in made[0]), tuple(t.to(device) for t in made[1])
        csc = None
        if "colptr" in self.__dict__:
            csc = (self.colptr.to(device), self.row.to(device), self.ceid.to(device))
        return Graph(self.num_src, self.num_dst, csr, csc, self.self_loops, schedules)

    def reverse(self) -> Graph:
        """Every edge turned round, in the same order; shares memory with this graph."""
        csr = (self.rowptr, self.col, self.eid)
        csc = (self.colptr, self.row, self.ceid)
        schedules = self.by_column, self.by_row
        return Graph(self.num_dst, self.num_src, csc, csr, self.self_loops, schedules)

    def __repr__(self) -> str:
        loops = ", self_loops=True" if self.self_loops else ""
        return (
            f"Graph(num_src={self.num_src}, num_dst={self.num_dst}, "
            f"num_edges={self.num_edges}{loops}, device='{self.device}')"
        )


def _by_source(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """CSC of a graph that has CSR alone, with the edges of a source in the user's order."""
    used = graph.used_edge_ids()
    edge_index, counts = graph.edge_index, (graph.num_src, graph.num_dst)
    colptr, row, place = build.build_csr(edge_index, *counts, True, False)
    row_of_all, ceid = torch.zeros_like(graph.col), torch.zeros_like(graph.eid)
    row_of_all[: used.shape[0]], ceid[: used.shape[0]] = row, used[place.long()].int()
    return colptr, row_of_all, ceid


class _EdgeList(Graph):
    """The edges in the order they were given, all that the reference reads: for ONNX exports."""

    def __init__(self, edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool) -> None:
        src, dst = edge_index[0].long(), edge_index[1].long()
        if self_loops:
            loops = torch.arange(torch.sym_min(num_src, num_dst), device=src.device)
            dst = torch.cat([torch.where(src == dst, num_dst, dst), loops])
            src = torch.cat([src, loops])
        place = torch.arange(src.shape[0], device=src.device)
        self._edges = (src, dst, place)
        super().__init__(num_src, num_dst, (dst, src, place), (src, dst, place), self_loops)

    def csr_edges(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._edges

    def _made_schedules(self) -> tuple[Parts, Parts]:
        """None: no kernel runs."""
        return (), ()


def _expand(pointer: Tensor, count: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(count, device=pointer.device), pointer.diff())


def _node_counts(op: str, edge_index: Tensor, num_nodes: NodeCounts) -> tuple[int, int]:
    if num_nodes is None:
        count = max(int(edge_index.max()) + 1, 0) if edge_index.numel() else 0
        if count >= 2**31:
            side, place = divmod(int(edge_index.argmax()), edge_index.shape[1])
            name = f"edge_index[{side}]"
            raise checks.node_id_out_of_range(op, name, count - 1, place, 2**31 - 1)
        return count, count
    if isinstance(num_nodes, (tuple, list)):
        if len(num_nodes) != 2:
            raise ValueError(
                f"{op}: 'num_nodes' must be an int or (num_src, num_dst), got {num_nodes}"
            )
        names = ("num_nodes[0]", "num_nodes[1]")
        num_src, num_dst = (
            checks.node_count(op, *item) for item in zip(names, num_nodes, strict=True)
        )
        return num_src, num_dst
    count = checks.node_count(op, "num_nodes", num_nodes)
    return count, count


def _untransformed(edge_index: Tensor) -> Tensor:
    """The tensor that ``torch.func`` transforms have wrapped."""
    while not torch.compiler.is_compiling() and _functorch.is_functorch_wrapped_tensor(edge_index):
        if _functorch.is_batchedtensor(edge_index):
            raise ValueError(
                "Graph.from_edge_index: 'edge_index' cannot be mapped over by vmap; "
                "call the layer for each graph, or join the graphs to one"
            )
        edge_index = _functorch.get_unwrapped(edge_index)
    return edge_index


_memo: Memo[Graph] = Memo()


def cached_graph(
    edge_index: Tensor,
    num_nodes: int | tuple[int, int],
    self_loops: bool = False,
    given: Tensor | None = None,
) -> Graph:
    """``Graph.from_edge_index``, remembered for as long as ``edge_index`` lives unchanged.

    A change in place (which torch counts in the tensor's version) builds the graph anew. Of changes
    torch does not count, such as writing through ``edge_index.numpy()``, those of most ids at once
    are noticed on the CPU, where some of the ids are compared; others go unnoticed.

    Args:
        edge_index, num_nodes, self_loops: As in :meth:`Graph.from_edge_index`.
        given: The tensor that the user holds, where ``edge_index`` is what it wraps.
    """
    if not isinstance(edge_index, Tensor) or edge_index.layout != torch.strided:
        return Graph.from_edge_index(edge_index, num_nodes, self_loops)  # which says what is wrong
    edge_index = _untransformed(edge_index)
    given = edge_index if given is None else given
    if not watchable(given):
        return Graph.from_edge_index(edge_index, num_nodes, self_loops)
    key = (num_nodes, self_loops)
    found = _memo.find(given, (edge_index,), key)
    if found is None:
        found = Graph.from_edge_index(edge_index, num_nodes, self_loops)
        _memo.keep(given, (edge_index,), key, found)
    return found
