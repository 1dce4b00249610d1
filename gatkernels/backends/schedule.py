"""How the rows of a CSR graph are worked on on a GPU: which are cut, and in what order they come.

Made with the :class:`gatkernels.Graph`, whose attributes they are: an op reads them as it reads
the graph's other arrays, so that they share its stream, its memory pool and its lifetime.

A row of more than ``chunk`` edges is a hub. It is cut into chunks of ``chunk`` edges (the last one
may be shorter), whose partial results are added in the order of the chunks. Large graphs also have
an order of their rows; the rows of a small one come as they are numbered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: The fewest edges of a chunk, and about how many chunks a graph's edges fill: enough for the
#: largest GPU, few enough that their partial results stay small beside the features.
CHUNK, CHUNKS = 256, 8192
#: The same of a graph of fewer edges: it leaves a GPU idle, and its longest row is what takes time.
SMALL, SMALL_CHUNK = 1 << 17, 64
#: From so many edges on, rows come by falling degree: the sort costs what a few steps gain.
ORDERED = 1 << 18
#: Rows up to these degrees: several to a block of threads; ordered by degree exactly.
TINY, EXACT = 16, 32
#: Kinds of device on which a Graph makes its schedules; elsewhere the first call that asks does.
WITH_GRAPH = ("cuda",)

Parts = tuple[Tensor, ...]


class Schedule(NamedTuple):
    """What :func:`build` returns, None for what it left out.

    Attributes:
        chunk_row: ``[chunks]`` int32, the row of each chunk, rising; -1 where there is none.
        chunk_end: ``[rows]`` int64, how many chunks there are up to the end of each row: those of
            row ``i`` are ``chunk_end[i - 1]:chunk_end[i]``.
        order: ``[rows]`` int32, rows by falling degree class: hubs, other big rows, tiny rows.
            Tiny rows of one degree, and big rows within a factor of two, are in rising order,
            which keeps what locality the numbering of the nodes has.
        bigs: ``[1]`` int32: ``order[bigs:]`` are the rows of at most TINY edges.
    """

    chunk_row: Tensor | None = None
    chunk_end: Tensor | None = None
    order: Tensor | None = None
    bigs: Tensor | None = None

    @property
    def chunks(self) -> int:
        return 0 if self.chunk_row is None else self.chunk_row.shape[0]


def chunk_of(edges: int) -> int:
    """The most edges of a row that is not cut, in a graph of so many."""
    if edges < SMALL:
        return SMALL_CHUNK
    chunk = CHUNK
    while chunk * CHUNKS < edges:
        chunk *= 2
    return chunk


def chunk_ends(degree: Tensor, chunk: int) -> Tensor:
    """``[rows]`` int64: how many chunks there are up to the end of each row."""
    parts = torch.div(degree + (chunk - 1), chunk, rounding_mode="floor")
    return torch.threshold(parts, 1, 0).cumsum(0)


def build(rowptr: Tensor, edges: int, ends: Tensor | None = None, chunks: int = -1) -> Parts:
    """The parts of the schedule of ``rowptr [rows + 1]``: none, the first two, or all four.

    ``ends`` and ``chunks``: :func:`chunk_ends` of its rows and the last of them, where they are
    known. Else this waits for the device.
    """
    if ends is None:
        ends = chunk_ends(rowptr.diff(), chunk_of(edges))
        chunks = int(ends[-1]) if ends.numel() else 0
    if edges < ORDERED and chunks == 0:
        return ()
    place = torch.arange(chunks, device=rowptr.device)
    parts = torch.searchsorted(ends, place, right=True, out_int32=True), ends
    return parts if edges < ORDERED else (*parts, *by_degree(rowptr))


def bounded(rowptr: Tensor, edges: int) -> Parts:
    """:func:`build` without a wait, and of sizes that do not depend on the data.

    For where a graph is made inside a compiled function: there are as many places for chunks as
    numbers of rows and edges allow, those left over marked.
    """
    rows, chunk = rowptr.shape[0] - 1, chunk_of(edges)
    ends = chunk_ends(rowptr.diff(), chunk)
    place = torch.arange(most_chunks(rows, edges), device=rowptr.device)
    row = torch.searchsorted(ends, place, right=True)
    return torch.where(row < rows, row, -1).int(), ends, *by_degree(rowptr)


def most_chunks(rows: int, edges: int) -> int:
    """A bound on the chunks of a graph of these sizes, without a branch that a trace would fix."""
    whole = torch.sym_min(edges // SMALL_CHUNK, CHUNKS)
    return whole + torch.sym_min(rows, whole)  # type: ignore[no-any-return]


def by_degree(rowptr: Tensor) -> Parts:
    """``order`` and ``bigs`` of a :class:`Schedule`."""
    degree, device = rowptr.diff(), rowptr.device
    doublings = torch.arange(1, 32, device=device)
    bounds = torch.cat([torch.arange(EXACT + 1, device=device), EXACT << doublings])
    order = torch.argsort(torch.bucketize(degree, bounds), descending=True, stable=True)
    return order.int(), (degree > TINY).sum(dtype=torch.int32).view(1)


def read(parts: Sequence[Tensor]) -> Schedule:
    return Schedule(*parts)
