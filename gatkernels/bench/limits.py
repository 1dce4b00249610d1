"""The limits that a layer is held against, measured beside it.

`projection` is the dense product every GAT layer starts with. `gather-sum` adds up the same
neighbour rows without weights, by the fastest library routine found: the physical floor of the
aggregation. Backward, the projection is the weight's gradient and the gather runs over the
transposed graph.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels.bench.graphs import Case
from gatkernels.bench.peers import import_failure

LIMITS = ("projection", "gather-sum")
GatherSum = Callable[[Tensor], Tensor]


class Projection:
    """`x W^T` forward, the gradient of `W` backward."""

    note = "dense product alone"

    def __init__(self, case: Case) -> None:
        self.x, self.weight, self.grad_out = case.x, case.weights.lin, case.grad_out

    def forward(self) -> Tensor:
        return F.linear(self.x, self.weight)

    def backward(self) -> Tensor:
        return self.grad_out.t() @ self.x


class Gather:
    """Unweighted sum of neighbour rows: over in-edges forward, over out-edges backward."""

    def __init__(self, case: Case, rounds: int = 3) -> None:
        self.rows = case.grad_out
        reverse = case.edge_index.flip(0)
        self._forward, first = fastest(case.edge_index, self.rows, rounds)
        self._backward, second = fastest(reverse, self.rows, rounds)
        self.note = first if first == second else f"{first}, {second} back"

    def forward(self) -> Tensor:
        return self._forward(self.rows)

    def backward(self) -> Tensor:
        return self._backward(self.rows)


def candidates(edge_index: Tensor, num_nodes: int) -> Iterator[tuple[str, GatherSum]]:
    """Library routines that sum, per node, the rows of the nodes with an edge into it."""
    src, dst = edge_index
    order = torch.argsort(dst, stable=True)
    col = src[order]
    rowptr = torch.zeros(num_nodes + 1, dtype=torch.int64)
    rowptr[1:] = torch.bincount(dst, minlength=num_nodes).cumsum(0)
    for dtype, bits in ((torch.int32, 32), (torch.int64, 64)):
        ids, ends = col.to(dtype), rowptr.to(dtype)
        ones = torch.ones(col.numel())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its CSR layout a beta
            matrix = torch.sparse_csr_tensor(ends, ids, ones, size=(num_nodes, num_nodes))
        yield f"torch.sparse int{bits}", matrix.matmul
        yield f"embedding_bag int{bits}", _embedding_bag(ids, ends[:-1])
    if import_failure("dgl") is None:
        import dgl

        graph = dgl.graph((src, dst), num_nodes=num_nodes).formats("csc")
        yield "dgl copy_u_sum", lambda rows: dgl.ops.copy_u_sum(graph, rows)


def _embedding_bag(ids: Tensor, offsets: Tensor) -> GatherSum:
    return lambda rows: F.embedding_bag(ids, rows, offsets, mode="sum")


def fastest(edge_index: Tensor, rows: Tensor, rounds: int = 3) -> tuple[GatherSum, str]:
    """The quickest candidate by its best of `rounds` runs; all must give the same sums."""
    best: tuple[float, GatherSum, str] | None = None
    expected: Tensor | None = None
    for name, gather in candidates(edge_index, rows.shape[0]):
        sums = gather(rows)
        if expected is None:
            expected = sums
        elif not torch.allclose(sums, expected, rtol=1e-3, atol=1e-2):
            raise RuntimeError(f"gather-sum: {name} disagrees with the first candidate")
        seconds = min(_seconds(gather, rows) for _ in range(rounds))
        if best is None or seconds < best[0]:
            best = (seconds, gather, name)
    if best is None:
        raise RuntimeError("gather-sum: no candidate")
    return best[1], best[2]


def _seconds(gather: GatherSum, rows: Tensor) -> float:
    start = time.perf_counter()
    gather(rows)
    return time.perf_counter() - start


def limits(case: Case) -> dict[str, Projection | Gather]:
    return {"projection": Projection(case), "gather-sum": Gather(case)}
