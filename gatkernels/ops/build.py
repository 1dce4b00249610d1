"""A graph's arrays from its edges: what :class:`gatkernels.Graph` is made of."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from gatkernels.backends import native, schedule
from gatkernels.ops import checks
from gatkernels.ops.library import define

Built = tuple[Tensor, ...]
OP = "Graph.from_edge_index"
#: From so many edges on, those of both sides are too many for one sort.
SORTED = 2**30


def plain() -> AbstractContextManager[Any]:
    """A context in which tensors are ordinary ones, whatever ``torch.func`` transform or inference
    mode the caller is in: a graph outlives both."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    if torch._C._are_functorch_transforms_active():
        stack.enter_context(torch._C._DisableFuncTorch())
    if torch.is_inference_mode_enabled():
        stack.enter_context(torch.inference_mode(False))
    return stack


def give_back() -> None:
    """Freed memory, to the system: glibc keeps what building a graph took, block by block, where
    no block is as large as what a step takes next."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def one_side(
    row: Tensor, other: Tensor, num_rows: int, num_others: int, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One side of a graph from torch ops, on any device; sizes do not depend on the data."""
    row, other = row.long(), other.long()
    if self_loops:
        loops = torch.arange(min(num_rows, num_others), device=row.device)
        row = torch.cat([torch.where(row == other, num_rows, row), loops])
        other = torch.cat([other, loops])
    order = torch.argsort(row, stable=True)
    degree = torch.zeros(num_rows + 1, dtype=torch.int64, device=row.device)
    degree.index_add_(0, row, torch.ones_like(row))
    rowptr = torch.zeros_like(degree)
    torch.cumsum(degree[:-1], 0, out=rowptr[1:])
    return rowptr, other[order].int(), order.int()


def both_sides(edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool) -> Built:
    """Both sides of a graph from one sort, in few launches: destinations, then sources.

    Keys are destinations, and sources behind them; between the two is the place of self loops that
    are removed. Ids out of range give nonsense, but harm nothing.
    """
    sides = num_dst + 1, num_src + 1
    dtype = torch.int32 if sum(sides) < 2**31 else torch.int64
    given = edge_index.shape[1]
    ends = edge_index.to(dtype).contiguous()
    if self_loops:
        loops = torch.arange(min(num_src, num_dst), dtype=dtype, device=ends.device)
        ends = torch.cat([ends, loops.expand(2, -1)], dim=1)
    edges = ends.shape[1]
    keys = ends.flip(0)
    if self_loops:
        removed = ends[0] == ends[1]
        removed[given:].fill_(False)
        for key, count in zip(keys, (num_dst, num_src), strict=True):
            key.masked_fill_(removed, count)
    keys[1].add_(sides[0])
    sorted_keys, order = keys.view(-1).sort(stable=True)
    places = torch.arange(sum(sides), dtype=dtype, device=ends.device)
    ptr = torch.searchsorted(sorted_keys, places)
    ids = torch.remainder(order, edges, out=torch.empty_like(order, dtype=torch.int32))
    others = ends.view(-1)[order].int()
    degree = ptr.diff()
    if self_loops:
        degree[num_dst].fill_(0)
    chunk_ends = schedule.chunk_ends(degree, schedule.chunk_of(edges))
    by_source = ptr[sides[0] :] - edges
    return (
        ptr[: sides[0]],
        others[:edges],
        ids[:edges],
        by_source,
        _aligned(others[edges:]),
        _aligned(ids[edges:]),
        chunk_ends,
    )


def _aligned(tensor: Tensor) -> Tensor:
    """Triton compiles a kernel again for a pointer that is no multiple of 16 bytes."""
    offset = tensor.storage_offset() * tensor.element_size()
    return tensor if offset % 16 == 0 else tensor.clone()


def sides_apart(device: torch.device) -> bool:
    """Whether one side can be built without the other; elsewhere one sort makes both."""
    return device.type == "cpu" and native.cpu_missing is None


def _build_csr(
    edge_index: Tensor, num_src: int, num_dst: int, by_source: bool, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One side of a graph."""
    checks.edge_count(OP, edge_index, num_src, num_dst)
    src, dst = edge_index[0], edge_index[1]
    side = (src, dst, num_src, num_dst) if by_source else (dst, src, num_dst, num_src)
    if sides_apart(edge_index.device):
        *arrays, bad = native.build_csr(*side, self_loops)
        if bad >= 0:
            _raise_bad_id(edge_index, num_src, num_dst, bad % edge_index.shape[1])
        rowptr, col, eid = arrays
        return rowptr, col, eid
    if edge_index.numel() and not by_source:
        low, high = torch.aminmax(edge_index, dim=1)
        _check_ids(edge_index, torch.cat([low, high]).tolist(), num_src, num_dst)
    return one_side(*side, self_loops)


def _build_graph(edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool) -> Built:
    """CSR and CSC; and on a GPU :func:`schedule.chunk_ends` of all destinations, then a place for
    none, then all sources, with the last value of each side ``[2]`` in the CPU's memory: one wait
    brings these and what the ids are checked by. Both are empty where they are not known."""
    checks.edge_count(OP, edge_index, num_src, num_dst)
    if sides_apart(edge_index.device):
        found, bad = native.build_graph(edge_index, num_src, num_dst, self_loops)
        if bad >= 0:
            _raise_bad_id(edge_index, num_src, num_dst, bad % edge_index.shape[1])
        return (*found, *(torch.empty(0, dtype=torch.int64) for _ in range(2)))
    edges = edge_index.shape[1] + (min(num_src, num_dst) if self_loops else 0)
    limits: tuple[Tensor, ...] = torch.aminmax(edge_index, dim=1) if edge_index.numel() else ()
    if 0 < edges < SORTED:
        *arrays, ends = both_sides(edge_index, num_src, num_dst, self_loops)
        *facts, first, last = torch.cat([*limits, ends[num_dst : num_dst + 1], ends[-1:]]).tolist()
        chunks = torch.tensor([first, last - first])
    else:
        src, dst = edge_index[0], edge_index[1]
        arrays = [*one_side(dst, src, num_dst, num_src, self_loops)]
        arrays += one_side(src, dst, num_src, num_dst, self_loops)
        facts = torch.cat(limits).tolist() if limits else []
        ends, chunks = edge_index.new_empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    _check_ids(edge_index, facts, num_src, num_dst)
    return (*arrays, ends, chunks)


def _check_ids(edge_index: Tensor, facts: list[int], num_src: int, num_dst: int) -> None:
    """``facts`` are the lowest id of each side, and the highest; or nothing."""
    if facts and (min(facts) < 0 or facts[2] >= num_src or facts[3] >= num_dst):
        counts = edge_index.new_tensor([[num_src], [num_dst]])
        wrong = ((edge_index < 0) | (edge_index >= counts)).any(0)
        _raise_bad_id(edge_index, num_src, num_dst, int(wrong.nonzero()[0]))


def _raise_bad_id(edge_index: Tensor, num_src: int, num_dst: int, place: int) -> None:
    """About the edge at ``place``, one of whose ids is out of range."""
    for side, count in enumerate((num_src, num_dst)):
        found = int(edge_index[side, place])
        if not 0 <= found < count:
            raise checks.node_id_out_of_range(OP, f"edge_index[{side}]", found, place, count)


def _fake_build_csr(
    edge_index: Tensor, num_src: int, num_dst: int, by_source: bool, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    places = edge_index.shape[1] + (torch.sym_min(num_src, num_dst) if self_loops else 0)
    rows = num_src if by_source else num_dst
    return (
        edge_index.new_empty(rows + 1, dtype=torch.int64),
        edge_index.new_empty(places, dtype=torch.int32),
        edge_index.new_empty(places, dtype=torch.int32),
    )


def _fake_build_graph(edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool) -> Built:
    edges = edge_index.shape[1] + (torch.sym_min(num_src, num_dst) if self_loops else 0)
    found: list[Tensor] = []
    for rows in (num_dst, num_src):
        found.append(edge_index.new_empty(rows + 1, dtype=torch.int64))
        found += [edge_index.new_empty(edges, dtype=torch.int32) for _ in range(2)]
    known = not sides_apart(edge_index.device) and 0 < edges < SORTED
    ends = edge_index.new_empty(num_dst + 1 + num_src if known else 0, dtype=torch.int64)
    return (*found, ends, torch.empty(2 if known else 0, dtype=torch.int64))


def _bounded_schedule(rowptr: Tensor, edges: int) -> tuple[Tensor, ...]:
    """As :func:`schedule.bounded`, from an op that compiled functions can hold."""
    return schedule.bounded(rowptr, edges)


def _fake_bounded_schedule(rowptr: Tensor, edges: int) -> tuple[Tensor, ...]:
    rows = rowptr.shape[0] - 1
    sizes = schedule.most_chunks(rows, edges), rows, rows, 1
    kinds = torch.int32, torch.int64, torch.int32, torch.int32
    return tuple(rowptr.new_empty(n, dtype=kind) for n, kind in zip(sizes, kinds, strict=True))


EVERYWHERE = ("CompositeExplicitAutograd",)
build_csr = define(
    _build_csr,
    "(Tensor rowptr, Tensor col, Tensor eid)",
    _fake_build_csr,
    devices=EVERYWHERE,
)
build_graph = define(
    _build_graph,
    "(Tensor rowptr, Tensor col, Tensor eid, Tensor colptr, Tensor row, Tensor ceid,"
    " Tensor chunk_ends, Tensor chunks)",
    _fake_build_graph,
    devices=EVERYWHERE,
)
bounded_schedule = define(
    _bounded_schedule,
    "(Tensor chunk_row, Tensor chunk_end, Tensor order, Tensor bigs)",
    _fake_bounded_schedule,
    devices=EVERYWHERE,
)
