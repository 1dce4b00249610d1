"""The work of a launch, and what kernels take, made of the records of a call."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor

from gatkernels.backends import schedule
from gatkernels.backends.fit import rule
from gatkernels.backends.triton.common import Partial, Rows, Work
from gatkernels.backends.triton.tiling import DotTile, Tile
from gatkernels.ops.call import DotScoring, Edges, Scoring

#: Before 3.7, what a kernel reads of a constant is no constant in a call.
_BARE = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7)


class _Constants:
    """A tile whose fields are constants each, and those of its fields."""

    def __init__(self, cut: Any) -> None:
        self._cut = cut
        for name, value in zip(cut._fields, cut, strict=True):
            inner = _Constants(value) if isinstance(value, tuple) else value
            setattr(self, name, triton.language.constexpr(inner))

    def __repr__(self) -> str:
        return repr(self._cut)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constants) and self._cut == other._cut

    def __hash__(self) -> int:
        return hash(self._cut)


@functools.cache
def constants(cut: Tile | DotTile) -> dict[str, Any]:
    """``cut`` for a kernel, and how it is compiled."""
    tile = _Constants(cut) if _BARE else cut
    return {"tile": tile, "num_warps": cut.warps, "enable_fp_fusion": True}


def launch(kernel: Any, programs: int, cut: Tile | DotTile, *args: Any) -> None:
    """Run ``kernel`` on the current device, ``programs`` for each group of heads."""
    if programs > 0:
        kernel[(programs, cut.groups)](*args, **constants(cut))


def guard(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device; make that the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def unit_of(*matrices: Tensor) -> int:
    """Elements, up to 16 bytes of them, of which every row stride is a multiple."""
    unit = max(16 // matrices[0].element_size(), 1)
    return math.gcd(unit, *(matrix.stride(0) for matrix in matrices))


def matrix(tensor: Tensor, unit: int) -> Rows:
    return Rows(tensor, tensor.stride(0) // unit)


def run_prologue(kernel: Any, job: Job, cut: Tile | DotTile, walk: bool, *args: Any) -> None:
    """Several destinations to a program; one, where it walks their edges."""
    rows = 1 if walk else cut.tiny.rows
    launch(kernel, -(-job.rows // rows), cut, *job.args()[:2], *args)


def partial_of(like: Tensor, job: Job, size: tuple[int, int], sums: int, pair: bool) -> Partial:
    """Room for the chunks' ``sums`` of each head, and one or two of each feature."""
    # allocated one by one, they are aligned; else kernels are compiled anew
    rows, rows2 = (like.new_empty(job.chunks, *size) if wanted else None for wanted in (True, pair))
    return Partial(like.new_empty(job.chunks, sums, size[0]) if sums else None, rows, rows2)


class Job:
    """The work on the rows of a CSR graph, as kernels take it."""

    def __init__(self, edges_by_row: Edges, scoring: Scoring | DotScoring) -> None:
        rowptr, col, eid, parts, draw, whole, _ = edges_by_row
        plan, edges = schedule.read(parts), col.shape[0]
        self.rows, self.chunks = rowptr.shape[0] - 1, plan.chunks
        # a kernel that need not look at chunks gets something of the same type
        chunk_row = col if plan.chunk_row is None else plan.chunk_row
        chunk_end = rowptr if plan.chunk_end is None else plan.chunk_end
        chunk = schedule.chunk_of(whole or edges)
        self.work = Work(
            rowptr,
            col,
            eid,
            draw=draw,
            chunk_row=chunk_row,
            chunk_end=chunk_end,
            order=plan.order,
            bigs=plan.bigs,
            chunk=chunk,
            first_head=scoring.first_head or None,  # a kernel without it takes fewer registers
        )
        self.packed = plan.order is not None
        bigs = min(self.rows, edges // (schedule.TINY + 1)) if self.packed else self.rows
        self.singles = plan.chunks + bigs

    def packs(self, cut: Tile | DotTile) -> int:
        return -(-self.rows // cut.tiny.rows) if self.packed else 0

    def programs(self, cut: Tile | DotTile) -> int:
        return self.singles + self.packs(cut)

    def args(self) -> tuple[Any, ...]:
        return self.work, self.rows, self.singles, self.chunks


def options(scoring: Scoring | DotScoring) -> tuple[Tensor | None, float, float, int]:
    """Seed, slope or scale, and what dropout does, for a kernel."""
    number, seed, threshold, scale, _ = rule(scoring)
    return seed, number, scale, threshold
