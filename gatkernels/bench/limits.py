"""The limits that a layer is held against, measured beside it.

`copy` is the memory's bandwidth. `projection` is the dense product a layer starts with.
`gather-sum` adds up the same neighbour rows without weights, by the fastest library routine found:
the floor of the aggregation. Backward, the projection is the weight's gradient and the gather runs
over the transposed graph. A layer's floor is projection + gather-sum.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels.bench.cases import Case
from gatkernels.bench.measure import copies_for_cold_caches, last_level_cache
from gatkernels.bench.peers import import_failure

GatherSum = Callable[[Tensor], Tensor]
#: Seconds that a GPU copies before its bandwidth is measured.
COPY_WARM = 0.3


class Rotating:
    """Hands out the items of a list in turn, and the first one only while `hold` is set."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items
        self.hold = False
        self._turn = 0

    def next(self) -> Any:
        self._turn = 0 if self.hold else (self._turn + 1) % len(self.items)
        return self.items[self._turn]


class Projection:
    """`x W^T` forward, the gradient of `W` backward, for each of the layer's projections."""

    note = "dense product alone"

    def __init__(self, case: Case) -> None:
        weights = [weight for name, weight in case.weights.items() if name.startswith("lin")]
        if case.spec.layer == "dot":  # side by side, of each side or of both
            query, key, value, skip = weights
            weights = [torch.cat([key, value]), torch.cat([query, skip])]
            weights = weights if case.bipartite else [torch.cat(weights)]
        sides = 2 if case.bipartite or len(weights) > 1 else 1
        self.weights = [weights[0], weights[-1]][:sides]
        copies = self.weights[0].shape[0] // case.width
        source_grad = case.random(case.edges.num_src, case.width, 9)
        turns = []
        for x, grad_out in case.rotation:
            pair = x if isinstance(x, tuple) else (x, x)
            grads = (source_grad, grad_out) if case.bipartite else (grad_out, grad_out)
            wide = (grad.repeat(1, copies) if copies > 1 else grad for grad in grads)
            turns.append(list(zip(pair, wide, strict=True))[:sides])
        self.rotation = Rotating(turns)
        self.sides = self.rotation.next()

    def forward(self) -> list[Tensor]:
        self.sides = self.rotation.next()
        return [F.linear(x, w) for (x, _), w in zip(self.sides, self.weights, strict=True)]

    def backward(self) -> list[Tensor]:
        return [grad.t() @ x for x, grad in self.sides]


class Gather:
    """Unweighted sum of neighbour rows: over in-edges forward, over out-edges backward."""

    def __init__(self, case: Case) -> None:
        counts = case.edges.num_src, case.edges.num_dst
        forward, backward = (case.random(count, case.width, 9) for count in counts)
        self._forward, first = fastest(case.edge_index, counts, forward)
        self._backward, second = fastest(case.edge_index.flip(0), counts[::-1], backward)
        self.note = first if first == second else f"{first}, {second} back"
        size = (forward.numel() + backward.numel()) * forward.element_size()
        copies = copies_for_cold_caches(size, forward.device)
        self.rotation = Rotating(
            [(forward.roll(turn, 0), backward.roll(turn, 0)) for turn in range(copies)]
        )
        self.rows = self.rotation.next()

    def forward(self) -> Tensor:
        self.rows = self.rotation.next()
        return self._forward(self.rows[0])

    def backward(self) -> Tensor:
        return self._backward(self.rows[1])


def candidates(
    edge_index: Tensor, counts: tuple[int, int], dtype: torch.dtype
) -> Iterator[tuple[str, GatherSum]]:
    """Library routines that sum, per destination, the rows of its sources."""
    src, dst = edge_index
    num_src, num_dst = counts
    order = torch.argsort(dst, stable=True)
    col = src[order]
    rowptr = F.pad(torch.bincount(dst, minlength=num_dst).cumsum(0), (1, 0))
    for index_dtype, bits in ((torch.int32, 32), (torch.int64, 64)):
        ids, ends = col.to(index_dtype), rowptr.to(index_dtype)
        ones = torch.ones(col.numel(), dtype=dtype, device=col.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its CSR layout a beta
            matrix = torch.sparse_csr_tensor(ends, ids, ones, size=(num_dst, num_src))
        yield f"torch.sparse int{bits}", matrix.matmul
        yield f"embedding_bag int{bits}", _embedding_bag(ids, ends[:-1])
    if import_failure("dgl") is None:
        import dgl

        nodes = {"u": num_src, "v": num_dst}
        graph = dgl.heterograph({("u", "to", "v"): (src, dst)}, num_nodes_dict=nodes)
        graph = graph.formats("csc")
        yield "dgl copy_u_sum", lambda rows: dgl.ops.copy_u_sum(graph, rows)


def _embedding_bag(ids: Tensor, offsets: Tensor) -> GatherSum:
    return lambda rows: F.embedding_bag(ids, rows, offsets, mode="sum")


def fastest(edge_index: Tensor, counts: tuple[int, int], rows: Tensor) -> tuple[GatherSum, str]:
    """The quickest candidate by its best of three runs; all must give the same sums.

    A candidate that has no kernel for the dtype is passed over.
    """
    best: tuple[float, GatherSum, str] | None = None
    expected: Tensor | None = None
    loose = 1e-3 if rows.dtype in (torch.float32, torch.float64) else 0.1
    for name, gather in candidates(edge_index, counts, rows.dtype):
        try:
            sums = gather(rows)
        except Exception:
            continue
        if expected is None:
            expected = sums
        elif not torch.allclose(sums, expected, rtol=loose, atol=loose * 10):
            raise RuntimeError(f"gather-sum: {name} disagrees with the first candidate")
        seconds = min(_seconds(gather, rows) for _ in range(3))
        if best is None or seconds < best[0]:
            best = (seconds, gather, name)
    if best is None:
        raise RuntimeError("gather-sum: no candidate")
    return best[1], best[2]


def _seconds(gather: GatherSum, rows: Tensor) -> float:
    start = time.perf_counter()
    gather(rows)
    _wait(rows.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second while copying four times the last-level cache.

    A GPU copies a gibibyte twenty times between two events, after it has copied for 0.3 s: its
    clocks are up then, and the host has no part in the figure.
    """
    least = 2**30 if device.type == "cuda" else 2**27
    source = torch.ones(max(4 * last_level_cache(device), least), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    if device.type == "cuda":
        return 2 * source.numel() / copy_seconds(source, target)
    seconds = []
    for _ in range(6):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() / min(seconds[1:])


def copy_seconds(source: Tensor, target: Tensor, copies: int = 20) -> float:
    """Of one copy on a GPU, by its own clock."""
    end = time.perf_counter() + COPY_WARM
    while time.perf_counter() < end:
        target.copy_(source)
        _wait(source.device)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    marks[0].record()
    for _ in range(copies):
        target.copy_(source)
    marks[1].record()
    marks[1].synchronize()
    milliseconds: float = marks[0].elapsed_time(marks[1])
    return milliseconds / 1e3 / copies


def limits(case: Case) -> dict[str, Projection | Gather]:
    return {"projection": Projection(case), "gather-sum": Gather(case)}
