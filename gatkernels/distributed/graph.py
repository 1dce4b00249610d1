"""The graph that ranks hold together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels.backends import BackendUnavailable, schedule
from gatkernels.backends.schedule import Parts
from gatkernels.distributed import deal, describe, files, halo, heads
from gatkernels.distributed.fitting import check_routes, check_share
from gatkernels.distributed.peers import TIMEOUT, Peers, peers_of
from gatkernels.distributed.shard import Draws, Shard, as_ids, build_shard, far_nodes
from gatkernels.distributed.share import Share, nodes_of
from gatkernels.distributed.whole import WholeGraph, gather_whole
from gatkernels.graph import Graph
from gatkernels.ops import build, transforms
from gatkernels.ops.autograd import Results
from gatkernels.ops.call import Edges

EXCHANGES = ("auto", "halo", "heads")
#: Halo rows per own row from which an operator's rows are better sent as shards of heads: what a
#: halo sends, two or three rows of features each, against two exchanges each way.
LIMITS = {"gat": 2.0, "gatv2": 3.0, "dot": 2.0}


class Sizes(NamedTuple):
    """Of a rank's shard."""

    nodes: int
    edges: int
    halo: tuple[int, int]  # rows of sources and of destinations that it gets


class ShardedGraph(Graph):
    """A graph whose nodes, and the edges into and out of them, are spread over ranks.

    It goes where a :class:`gatkernels.Graph` goes, in operators and layers, with the rows of own
    nodes in and out; every rank must make the same calls in the same order. Per-edge tensors are
    given with the edge's destination: ``[num_edges, ...]``, in the order of ``edge_ids``.

    Attributes:
        nodes: ``[own]`` int64, global ids of this rank's nodes, ascending: the order of its rows.
        num_src, num_dst, num_nodes: All ``own``.
        num_edges: Length of this rank's per-edge tensors: the edges into its nodes, and a loop of
            each with ``self_loops``.
        rowptr, col, eid, colptr, row, ceid: As a Graph's, of own rows; the nodes at other ends are
            numbered own ones first.
        total_nodes, total_edges: Of the whole graph, self loops included.
        rho: The largest number of halo rows of a rank, halved over both directions, for each node
            that a rank has on average.
        exchange: "auto", "halo" or "heads", as asked for; :meth:`exchange_of` says what it means.
        traffic: Bytes of rows that this rank has sent, by ``"forward"``, ``"backward"``,
            ``"edges"`` (of per-edge tensors) and ``"heads"``; what is sent to agree is not counted.
    """

    def __init__(
        self, share: Share, shard: Shard, peers: Peers, exchange: str, self_loops: bool
    ) -> None:
        own, total = len(share.nodes), share.num_nodes
        self.nodes, self.owners, self.total_nodes = share.nodes, share.owners, total
        self.total_edges = share.num_edges + (total if self_loops else 0)
        self.shard, self.peers, self.exchange = shard, peers, exchange
        self.traffic: Counter[str] = Counter()
        self._draws = Draws(shard.ids)
        self._whole: WholeGraph | None = None
        rows, columns = shard.by_row, shard.by_column
        csr, csc = (rows.rowptr, rows.col, rows.eid), (columns.rowptr, columns.col, columns.eid)
        super().__init__(own, own, csr, csc, self_loops)
        halo_rows = len(rows.halo), len(columns.halo)
        sizes = Sizes(own, self.num_edges, halo_rows)
        self.sizes: list[Sizes] = peers.gather(sizes, "ShardedGraph")
        most = max(sum(one.halo) for one in self.sizes) / 2
        self.rho = most * peers.size / total if total else 0.0

    @classmethod
    def from_edge_index(  # type: ignore[override]
        cls,
        edges: Tensor,
        num_nodes: int,
        self_loops: bool = False,
        *,
        partition: str | Tensor = "range",
        exchange: str = "auto",
        group: Any = None,
        timeout: float = TIMEOUT,
    ) -> ShardedGraph:
        """Build from edges that any ranks have; collective.

        Args:
            edges: ``[2, any]`` int32 or int64, global ids, sources first: this rank's share. An
                edge's id is its place when the shares are laid end to end in rank order.
            num_nodes: Of the whole graph.
            self_loops: As :meth:`gatkernels.Graph.from_edge_index`.
            partition: Who owns a node: "range", contiguous ranges of about equally many edges;
                "metis", few cut edges (needs pymetis; all edges pass through rank 0); or owners
                ``[num_nodes]``.
            exchange: "halo", "heads", or "auto": what sends fewer bytes.
            group: A process group of torch.distributed; None stands for all processes.
            timeout: Seconds after which a rank that has not come is an error on all others.

        Raises:
            RuntimeError: torch.distributed is not initialised.
            TypeError, ValueError: On all ranks, whichever gave what is wrong.
            RankError: A rank is gone, late, or gave other options.
        """
        op = "ShardedGraph.from_edge_index"
        peers = peers_of(group, timeout, op)
        dealt = deal.deal(op, edges, num_nodes, partition, peers)
        graph = cls.from_share(dealt, exchange, group, timeout, self_loops=self_loops)
        del dealt
        build.give_back()
        return graph

    @classmethod
    def from_share(
        cls,
        share: Share,
        exchange: str = "auto",
        group: Any = None,
        timeout: float = TIMEOUT,
        *,
        self_loops: bool = False,
    ) -> ShardedGraph:
        """Build from every rank's share; collective.

        Args, raises: As :meth:`from_edge_index`; ValueError where shares do not fit together.
        """
        op = "ShardedGraph.from_share"
        peers = peers_of(group, timeout, op)
        error: Exception | None = None
        try:
            if exchange not in EXCHANGES:
                names = ", ".join(map(repr, EXCHANGES))
                raise ValueError(f"{op}: 'exchange' must be one of {names}, got {exchange!r}")
            check_share(op, share, peers, self_loops)
            with build.plain():
                shard = build_shard(share, peers.rank, peers.size, self_loops)
        except (TypeError, ValueError) as found:
            error = found
        peers.together(error, op)
        whole = f"num_nodes={share.num_nodes}, num_edges={share.num_edges}"
        peers.agree(f"{whole}, exchange={exchange!r}, self_loops={self_loops}", op)
        check_routes(op, share, shard, peers)
        return cls(share, shard, peers, exchange, self_loops)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        exchange: str = "auto",
        group: Any = None,
        timeout: float = TIMEOUT,
        *,
        self_loops: bool = False,
        device: torch.device | str = "cpu",
    ) -> ShardedGraph:
        """Build from a folder that ``gatkernels partition`` wrote; collective.

        Args:
            folder: There must be as many parts in it as there are ranks. A rank reads its own part
                and the list of owners, and needs no more of it on its machine.
            exchange, group, timeout, self_loops: As :meth:`from_edge_index`.
            device: Where the graph is to be.

        Raises:
            FileNotFoundError: The folder holds no partition.
            ValueError: It has another number of parts, or a file is not the one that was written.
            RuntimeError, TypeError, RankError: As :meth:`from_edge_index`.
        """
        op = "ShardedGraph.load"
        peers = peers_of(group, timeout, op)
        share = files.load_share(op, folder, peers, device)
        graph = cls.from_share(share, exchange, group, timeout, self_loops=self_loops)
        del share
        build.give_back()
        return graph

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(self, name: str, inputs: Any, options: Any, seed: Tensor | None) -> Results:
        """The results of an operator for own destinations; collective."""
        op = f"{name}_attention"
        if options.backend == "reference":
            raise BackendUnavailable(
                f"{op}: backend 'reference' cannot run on a ShardedGraph: it has no kernels; "
                "see gatkernels info for backends that have"
            )
        if transforms.active():
            raise RuntimeError(
                f"{op}: torch.func transforms and forward-mode differentiation "
                "cannot go through a ShardedGraph; use a gatkernels.Graph in one process"
            )
        seed = self._agree(op, inputs, options, seed)
        attend = heads.attend if self.exchange_of(name) == "heads" else halo.attend
        return attend(name, self, inputs, options, seed)

    def _agree(self, op: str, inputs: Any, options: Any, seed: Tensor | None) -> Tensor | None:
        """Rank 0's seed, if all ranks make the same call."""
        gradients = torch.is_grad_enabled()
        tensors = [
            field
            if t is None
            else f"{field} {t.dtype} {tuple(t.shape[1:])}"
            + " with a gradient" * (gradients and t.requires_grad)
            for field, t in zip(inputs._fields, inputs, strict=True)
        ]
        text = f"{', '.join(tensors)}; {options}"
        number = self.peers.agree(text, op, 0 if seed is None else int(seed))
        return None if seed is None else seed.new_tensor([number])

    def exchange_of(self, name: str) -> str:
        """ "halo" or "heads", for the operator "gat", "gatv2" or "dot"."""
        if self.exchange != "auto":
            return self.exchange
        return "halo" if self.rho < self.limit(name) or self.peers.size == 1 else "heads"

    def limit(self, name: str) -> float:
        """The ``rho`` from which "auto" takes heads."""
        return LIMITS[name]

    @property
    def device(self) -> torch.device:
        return self.rowptr.device

    @property
    def edge_ids(self) -> Tensor:
        """``[num_edges]`` int64, global ids of the edges of per-edge tensors, ascending.

        The loop of node ``i`` has the id ``E + i``, with ``E`` the number of given edges.
        """
        return as_ids(self.shard.ids[: self.num_edges])

    @property
    def edge_index(self) -> Tensor:
        """``[2, n]`` int64, global ids of the edges into own nodes, in the order of ``edge_ids``,
        without the removed self loops."""
        src, dst = super().edge_index
        return torch.stack([far_nodes(self.nodes, self.shard.by_row)[src], self.nodes[dst]])

    def rows_of(self, nodes: Tensor) -> Tensor:
        """The rows ``[n]`` of own nodes, by their global ids ``[n]``.

        Raises: ValueError, where one of them is not this rank's.
        """
        rows = torch.searchsorted(self.nodes, nodes)
        found = (
            self.nodes[rows.clamp(max=max(len(self.nodes) - 1, 0))] if len(self.nodes) else rows - 1
        )
        wrong = (found != nodes).nonzero()
        if len(wrong):
            place = int(wrong[0])
            raise ValueError(
                f"ShardedGraph.rows_of: 'nodes' holds {int(nodes[place])} at position {place}, "
                f"which rank {self.peers.rank} does not own"
            )
        return rows

    def scatter(self, rows: Tensor | None, rank: int = 0) -> Tensor:
        """Own rows ``[own, ...]`` of ``rows [total_nodes, ...]``, which ``rank`` has; collective.

        On other ranks ``rows`` is None, or is not looked at.
        """
        op, mine = "ShardedGraph.scatter", self.peers.rank == rank
        error: Exception | None = None
        if mine and (not isinstance(rows, Tensor) or rows.shape[:1] != (self.total_nodes,)):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            error = ValueError(f"{op}: 'rows' must be [{self.total_nodes}, ...], got {got}")
        self.peers.together(error, op)
        kinds = self.peers.gather(
            (rows.dtype, rows.shape[1:]) if mine and rows is not None else None, op
        )
        dtype, shape = kinds[rank]
        found = torch.empty(len(self.nodes), *shape, dtype=dtype, device=self.device)
        nothing = found[:0]
        ranks = range(self.peers.size)
        if mine and rows is not None:
            rows = rows.detach().to(self.device)
            sends = [rows[nodes_of(self.owners, to)] for to in ranks]
        else:
            sends = [nothing] * self.peers.size
        self.peers.start(sends, [found if of == rank else nothing for of in ranks], op)()
        return found

    def gather(self, rows: Tensor) -> Tensor:
        """``[total_nodes, ...]`` of all ranks' rows ``[own, ...]``, on every rank; collective.

        Not differentiable.
        """
        op = "ShardedGraph.gather"
        error = None
        if not isinstance(rows, Tensor) or rows.shape[:1] != (len(self.nodes),):
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            error = ValueError(f"{op}: 'rows' must be [{len(self.nodes)}, ...], got {got}")
        self.peers.together(error, op)
        self.peers.agree(f"{rows.dtype}, {tuple(rows.shape[1:])}", op)
        rows = rows.detach().contiguous()
        counts = [one.nodes for one in self.sizes]
        found = rows.new_empty(self.total_nodes, *rows.shape[1:])
        self.peers.start([rows] * self.peers.size, [*found.split(counts)], op)()
        if self.owners.dtype == torch.int64:
            return found
        order = torch.argsort(self.owners, stable=True)
        return torch.empty_like(found).index_copy_(0, order, found)

    def edges_by_row(self, backend: str, dropout: float = 0.0) -> Edges:
        return self._shards(super().edges_by_row(backend), dropout)

    def edges_by_column(self, backend: str, dropout: float = 0.0) -> Edges:
        return self._shards(super().edges_by_column(backend), dropout)

    def _shards(self, edges: Edges, dropout: float) -> Edges:
        edges = edges._replace(whole=self.total_edges, whole_nodes=self.total_nodes)
        return self._draws.added(edges, dropout)

    def _made_schedules(self) -> tuple[Parts, Parts]:
        """Chunks of the whole graph's size, so that rows are summed as in one process."""
        whole = self.total_edges
        return schedule.build(self.rowptr, whole), schedule.build(self.colptr, whole)

    def whole(self) -> WholeGraph:
        """All ranks' edges, here; gathered the first time, by all ranks."""
        if self._whole is None:
            with build.plain():
                given = self.nodes, self.shard, self.owners, self.num_edges, self.peers
                self._whole = gather_whole(*given)
        return self._whole

    def to(self, device: torch.device | str) -> Graph:
        """Itself; a graph of other ranks' too is built where it is to be."""
        if self.device == torch.device(device):
            return self
        raise RuntimeError(
            f"ShardedGraph: it is on {self.device} and cannot be moved to {device}; "
            "build it from edges that are there"
        )

    def reverse(self) -> Graph:
        raise RuntimeError("ShardedGraph: it cannot be reversed; build one from edges.flip(0)")

    def __repr__(self) -> str:
        return describe.text(self)
