"""Which rows of a CSR graph are worked on together on a GPU: a schedule by degree.

Built once per graph from torch ops on the graph's own device. No size depends on the data and
nothing is copied to the host: arrays have the largest length that the numbers of rows and edges
allow, and the places left over are marked.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class Schedule(NamedTuple):
    """Work on the rows of a CSR graph, the largest pieces first.

    A row of more than ``chunk`` edges is a hub. It is cut into chunks of ``chunk`` edges (the last
    one may be shorter), whose partial results are to be added in the order of the chunks. A row of
    more than ``tiny`` edges is big. All others, those without edges included, are tiny: several
    fit in one block of threads.

    Attributes:
        order: ``[rows]`` int32, rows by falling degree class: hubs, other big rows, tiny rows.
            Tiny rows of one degree, and big rows within a factor of two, are in rising order,
            which keeps what locality the numbering of the nodes has.
        counts: ``[2]`` int32, the number of hubs and that of big rows, hubs included:
            ``order[counts[1]:]`` are the tiny rows.
        segment_row: ``[chunks + bigs]`` int32, the row of each segment; -1 where there is none.
            The first ``chunks`` places are for the chunks of hubs, the others for big rows that
            are no hubs.
        segment_begin, segment_end: ``[chunks + bigs]`` int64, the segment's places in ``col``.
        hub_ptr: ``[hubs + 1]`` int32; the chunks of hub ``order[k]`` are the segments
            ``hub_ptr[k]:hub_ptr[k + 1]``, none from ``counts[0]`` on.
        hubs, bigs, chunks: How many hubs, big rows and chunks there can be.
    """

    order: Tensor
    counts: Tensor
    segment_row: Tensor
    segment_begin: Tensor
    segment_end: Tensor
    hub_ptr: Tensor
    hubs: int
    bigs: int
    chunks: int


def build(rowptr: Tensor, num_edges: int, tiny: int, chunk: int) -> Schedule:
    """The schedule of ``rowptr [rows + 1]`` int64, which holds at most ``num_edges`` edges.

    ``chunk`` is ``tiny`` times a power of two, so that both are bounds of degree classes.
    """
    rows, device = rowptr.shape[0] - 1, rowptr.device
    hubs, bigs = min(rows, num_edges // (chunk + 1)), min(rows, num_edges // (tiny + 1))
    chunks = num_edges // chunk + hubs if hubs else 0
    degree = rowptr.diff()
    doublings = torch.arange(1, 33, device=device)
    bounds = torch.cat([torch.arange(tiny + 1, device=device), tiny << doublings])
    order = torch.argsort(torch.bucketize(degree, bounds), descending=True, stable=True)
    counts = torch.stack([(degree > chunk).sum(), (degree > tiny).sum()])

    hub_degree = degree[order[:hubs]]
    parts = torch.where(hub_degree > chunk, (hub_degree + chunk - 1) // chunk, 0)
    hub_ptr = torch.cat([parts.new_zeros(1), parts.cumsum(0)])
    place = torch.arange(chunks, device=device)
    hub = torch.searchsorted(hub_ptr[1:], place, right=True).clamp(max=max(hubs - 1, 0))
    hub_row = order[hub]
    hub_begin = rowptr[hub_row] + (place - hub_ptr[hub]) * chunk
    hub_end = torch.minimum(hub_begin + chunk, rowptr[hub_row + 1])

    big_row, rank = order[:bigs], torch.arange(bigs, device=device)
    there = torch.cat([place < hub_ptr[-1], (rank >= counts[0]) & (rank < counts[1])])
    row = torch.cat([hub_row, big_row])
    begin = torch.cat([hub_begin, rowptr[big_row]])
    end = torch.cat([hub_end, rowptr[big_row + 1]])
    return Schedule(
        order.int(),
        counts.int(),
        torch.where(there, row, -1).int(),
        torch.where(there, begin, 0),
        torch.where(there, end, 0),
        hub_ptr.int(),
        hubs,
        bigs,
        chunks,
    )


_cache = WeakTensorKeyDictionary()


def cached(rowptr: Tensor, num_edges: int, tiny: int, chunk: int) -> Schedule:
    """:func:`build`, remembered for as long as ``rowptr`` (read-only, as in a Graph) lives."""
    entries = _cache.setdefault(rowptr, {})
    key = (num_edges, tiny, chunk)
    if key not in entries:
        entries[key] = build(rowptr, num_edges, tiny, chunk)
    found: Schedule = entries[key]
    return found
