"""The compiled CUDA kernels: the schedule, scratch and stream they need besides tensors."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gatkernels import _schedule, _tiles
from gatkernels._native import Csr, Kernels, place

#: The compiled module; tests put an emulator of it here.
module: Any = None
#: Why there is none; None where there is one.
missing: str | None = None
try:
    module = importlib.import_module("gatkernels._cuda")
except ModuleNotFoundError:
    missing = (
        "the compiled module gatkernels._cuda is missing; "
        "install from source where nvcc is found: GATKERNELS_CUDA=1 pip install ."
    )
except ImportError as error:
    missing = f"the compiled module gatkernels._cuda cannot be loaded: {error}"

#: The oldest GPUs the module has code for, as torch.cuda.get_device_capability() gives it.
CAPABILITY = (8, 0)
#: Rows up to this degree are ordered by it exactly.
TINY = 32
#: The fewest edges of a chunk, and about how many chunks a graph's edges fill: enough for the
#: largest GPU, few enough that their partial results stay small beside the features.
CHUNK, CHUNKS = 256, 8192


def why_not(device: torch.device) -> str | None:
    """None where the kernels run on tensors of ``device``, else the reason why not."""
    if device.type != ("cuda" if module is None else module.device):
        return f"runs on CUDA tensors, got device {device}"
    if module is None:
        return missing
    if torch.version.hip is not None:
        return "runs on NVIDIA GPUs, got a ROCm build of torch"
    return unusable(device, CAPABILITY) if device.type == "cuda" else None


@functools.cache
def unusable(device: torch.device, oldest: tuple[int, int] = (0, 0)) -> str | None:
    """None where torch can use this GPU and it is no older than ``oldest``, else why not."""
    try:
        found = torch.cuda.get_device_capability(device)
    except Exception as error:  # no GPU, no driver, no such GPU, or a torch for CPUs alone
        return f"torch cannot use device {device}: {str(error).splitlines()[0]}"
    if found < oldest:
        needed, got = (".".join(map(str, pair)) for pair in (oldest, found))
        return f"needs compute capability {needed} or newer, got {got}"
    return None


@functools.cache
def _gpu(device: torch.device) -> _tiles.Gpu:
    return _tiles.Gpu.of(*module.gpu(device.index or 0))


@functools.lru_cache
def _most_heads(device: torch.device, nodes: int, edges: int, heads: int, head_bytes: int) -> int:
    return _tiles.most_heads(_gpu(device), nodes, edges, heads, head_bytes)


_schedules = WeakTensorKeyDictionary()


def _schedule_of(csr: Csr) -> tuple[Any, _schedule.Schedule]:
    """The schedule of a graph's rows as the module takes it, and the tensors behind it."""
    rowptr, col = csr[:2]
    if rowptr not in _schedules:
        edges, chunk = col.shape[0], CHUNK
        while chunk * CHUNKS < edges:
            chunk *= 2
        made = _schedule.build(rowptr, edges, TINY, chunk)
        fields = (made.order, made.counts, made.segment_row, made.segment_begin, made.segment_end)
        pointers = [place(t) for t in (*fields, made.hub_ptr)]
        _schedules[rowptr] = module.Schedule(*pointers, made.hubs, made.chunks), made
    found: tuple[Any, _schedule.Schedule] = _schedules[rowptr]
    return found


class _Cuda(Kernels):
    def _module(self) -> Any:
        return module

    def _context(
        self, csr: Csr, csc: Csr | None, sums: Tensor, rows: Tensor | None, matrices: int = 1
    ) -> tuple[Any, Any]:
        heads = channels = most_heads = 0
        if rows is not None:
            nodes, heads, channels = rows.shape
            head_bytes = matrices * channels * rows.element_size()
            most_heads = _most_heads(sums.device, nodes, csr[1].shape[0], heads, head_bytes)
        by_row, made = _schedule_of(csr)
        by_column, chunks, parts = by_row, made.chunks, 0
        if csc is not None:
            by_column, made = _schedule_of(csc)
            chunks = max(chunks, made.chunks)
            parts = module.att_parts * heads * channels
        places = chunks + chunks // module.slice
        partials = sums.new_empty(places * (2 * heads * channels + 3 * heads + 3))
        att_parts = sums.new_empty(parts)
        device, current, stream = 0, 0, 0
        if sums.is_cuda:
            device, current = sums.get_device(), torch.cuda.current_device()
            stream = torch.cuda.current_stream(device).cuda_stream
        context = module.Context(
            device, current, stream, by_row, by_column, place(partials), place(att_parts),
            most_heads,
        )  # fmt: skip
        return context, (partials, att_parts)


CUDA = _Cuda()
