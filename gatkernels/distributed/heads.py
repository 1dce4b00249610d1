"""Attention over shards by heads: each rank has all rows of some heads, and the whole graph.

Shards of rows become shards of heads in one exchange, and results shards of rows in another; the
backward goes the same ways back. Nothing is gathered along edges, so that volumes do not depend on
how the graph was cut.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gatkernels.distributed.halo import refuse_twice
from gatkernels.distributed.peers import Peers
from gatkernels.distributed.whole import WholeGraph
from gatkernels.ops.autograd import OPERATORS, Results
from gatkernels.ops.autograd import attend as attend_all
from gatkernels.ops.checks import SUM_DTYPES

#: Of each input of an operator, what its rows are of; weights have none.
_ROWS: dict[str, tuple[str | None, ...]] = {
    "gat": ("nodes", "nodes", "nodes", "edges", None, None),
    "gatv2": ("nodes", "nodes", None, "edges"),
    "dot": ("nodes", "nodes", "nodes", "edges", "nodes"),
}


class Sharded(Protocol):
    """What is asked of a graph."""

    peers: Peers
    traffic: Counter[str]

    def whole(self) -> WholeGraph: ...


class _Heads(NamedTuple):
    """The heads of a call, and which of them each rank has."""

    bounds: list[int]  # [ranks + 1]
    rank: int

    @classmethod
    def of(cls, heads: int, peers: Peers) -> _Heads:
        return cls([heads * rank // peers.size for rank in range(peers.size + 1)], peers.rank)

    def of_rank(self, rank: int) -> slice:
        return slice(self.bounds[rank], self.bounds[rank + 1])

    @property
    def own(self) -> slice:
        return self.of_rank(self.rank)

    @property
    def sizes(self) -> list[int]:
        return [end - start for start, end in pairwise(self.bounds)]


def attend(name: str, graph: Sharded, inputs: Any, options: Any, seed: Tensor | None) -> Results:
    """The results of own destinations, as :func:`gatkernels.ops.autograd.attend` gives them."""
    operator, whole = OPERATORS[name], graph.whole()
    heads = _Heads.of(inputs[0].shape[1], graph.peers)
    start, stop = heads.own.start, heads.own.stop
    travel = _Travel(graph, heads, whole.counts, _ROWS[name], operator.heads)
    moved = _ToHeads.apply(travel, *inputs)  # type: ignore[no-untyped-call]
    here = operator.inputs(
        *(
            t.narrow(dim, start, stop - start) if t is not None and rows is None else other
            for t, other, rows, dim in zip(inputs, moved, travel.rows, travel.dims, strict=True)
        )
    )
    if start < stop:
        results = attend_all(name, whole, here, options._replace(first_head=start), seed)
    else:
        weights = [t for t, rows in zip(here, travel.rows, strict=True) if rows is None]
        results = _without_heads(name, whole, here, weights, options.return_attention)
    rows = (*["nodes"] * (len(results) - 1), "edges")
    travel = travel._replace(rows=rows, dims=(1,) * len(rows))
    found: Results = _ToRows.apply(travel, *results)  # type: ignore[no-untyped-call]
    return found


def _without_heads(
    name: str, whole: WholeGraph, here: Any, weights: list[Tensor | None], attention: bool
) -> Results:
    """The results of no heads, which hang on inputs so that a backward comes by, and on weights so
    that they have a gradient on every rank: none of their values."""
    alpha = None
    if attention:  # of the dtype that others send
        alpha = here[0].new_empty(whole.num_edges, 0, dtype=SUM_DTYPES[here[0].dtype])
    if name == "dot":
        return here.v, here.edge_query, alpha
    out = here[0]
    for weight in weights:
        out = out if weight is None else out + weight.sum().to(out.dtype)
    return out, alpha


class _Travel(NamedTuple):
    """Tensors that change from rows to heads, or back."""

    graph: Sharded
    heads: _Heads
    counts: dict[str, list[int]]  # rows of each rank, by what they are of
    rows: tuple[str | None, ...]  # what they are of; None where a tensor stays
    dims: tuple[int | None, ...]  # the dimension of heads; None where all heads share a row

    def to_heads(self, t: Tensor, rows: str, dim: int | None) -> Tensor:
        """``[all, H / ranks, ...]`` of ``[own, H, ...]``; ``[all, ...]`` without heads."""
        counts, heads, ranks = self.counts[rows], self.heads, self.graph.peers.size
        if dim is None:
            sends = [t.contiguous()] * ranks
        else:
            sends = [t[:, heads.of_rank(rank)].contiguous() for rank in range(ranks)]
        found = t.new_empty(sum(counts), *sends[heads.rank].shape[1:])
        self._swap(sends, [*found.split(counts)])
        return found

    def to_rows(self, t: Tensor, rows: str, dim: int | None) -> Tensor:
        """The way back; what heads share is added up, in the order of the ranks."""
        counts, heads = self.counts[rows], self.heads
        own, shape = counts[heads.rank], t.shape[1:] if dim is None else t.shape[2:]
        sizes = [[]] * len(counts) if dim is None else [[size] for size in heads.sizes]
        parts = [t.new_empty(own, *size, *shape) for size in sizes]
        self._swap([*t.contiguous().split(counts)], parts)
        return torch.stack(parts).sum(0) if dim is None else torch.cat(parts, 1)

    def _swap(self, sends: list[Tensor], receives: list[Tensor]) -> None:
        peers = self.graph.peers
        others = (t.nbytes for rank, t in enumerate(sends) if rank != peers.rank)
        self.graph.traffic["heads"] += sum(others)
        peers.start(sends, receives, "heads")()


class _ToHeads(torch.autograd.Function):
    """One function of all tensors: ranks without heads come by its backward, too."""

    @staticmethod
    def forward(ctx: Any, travel: _Travel, *tensors: Tensor | None) -> Any:
        ctx.travel = travel
        found = []
        for t, rows, dim in zip(tensors, travel.rows, travel.dims, strict=True):
            moved = None if t is None or rows is None else travel.to_heads(t, rows, dim)
            found.append(moved)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        refuse_twice()
        travel, wanted = ctx.travel, ctx.needs_input_grad[1:]
        found = []
        for grad, want, rows, dim in zip(grads, wanted, travel.rows, travel.dims, strict=True):
            here = want and rows is not None and grad is not None
            found.append(travel.to_rows(grad, rows, dim) if here else None)
        return None, *found


class _ToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, travel: _Travel, *tensors: Tensor | None) -> Any:
        ctx.travel = travel
        ctx.set_materialize_grads(False)
        return tuple(
            None if t is None else travel.to_rows(t, rows or "", dim)
            for t, rows, dim in zip(tensors, travel.rows, travel.dims, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        refuse_twice()
        travel = ctx.travel
        return None, *(
            None if grad is None else travel.to_heads(grad, rows, dim)
            for grad, rows, dim in zip(grads, travel.rows, travel.dims, strict=True)
        )
