"""The compiled CUDA kernels: the schedule, scratch and stream they need besides tensors."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gatkernels.backends import schedule, tiles
from gatkernels.backends.compiled import Compiled
from gatkernels.ops.call import Edges

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
def _gpu(device: torch.device) -> tiles.Gpu:
    return tiles.Gpu.of(*module.gpu(device.index or 0))


@functools.lru_cache(1024)
def _tiled(device: torch.device, nodes: int, edges: int, heads: int, head_bytes: int) -> int:
    return tiles.most_heads(_gpu(device), nodes, edges, heads, head_bytes)


def _most_heads(device: torch.device, nodes: int, edges: int, heads: int, head_bytes: int) -> int:
    """Of a tile; without the model where all rows fit the cache, as those of batches do."""
    if nodes * heads * head_bytes <= tiles.USABLE * _gpu(device).cache:
        return heads
    return _tiled(device, nodes, edges, heads, head_bytes)


def _schedule_of(edges: Edges) -> tuple[Any, int]:
    """A schedule as the module takes it, and how many chunks it has."""
    found = schedule.read(edges.schedule)
    chunk = schedule.chunk_of(edges.whole or edges.col.shape[0])
    parts = found.order, found.chunk_row, found.chunk_end
    return module.Schedule(*parts, found.chunks, chunk), found.chunks


class _Cuda(Compiled):
    """Once per call: the schedules, the scratch, the stream."""

    def _module(self) -> Any:
        return module

    def _context(
        self,
        edges: Edges,
        sums: Tensor,
        rows: Tensor | None = None,
        matrices: int = 1,
        vectors: int = 0,
        channels: int | None = None,
        terms: int = 0,
    ) -> Any:
        count = edges.col.shape[0]
        heads = gathered = most_heads = 0
        if rows is not None:
            nodes, heads, gathered = rows.shape
            head_bytes = matrices * gathered * rows.element_size()
            # in a shard as in the whole graph: the order of sums depends on it
            sizes = edges.whole_nodes or nodes, edges.whole or count
            most_heads = _most_heads(sums.device, *sizes, heads, head_bytes)
        plan, chunks = _schedule_of(edges)
        places = chunks + chunks // module.slice
        per_head = 3 + (2 * gathered if channels is None else channels)
        partials = sums.new_empty(places * (heads * per_head + 3))
        edge_terms = sums.new_empty(count * heads * terms) if terms else None
        att_parts = sums.new_empty(module.att_parts * vectors * heads * gathered)
        device = max(sums.get_device(), 0)
        stream = torch._C._cuda_getCurrentRawStream(device) if sums.is_cuda else 0
        scratch = partials, edge_terms, att_parts
        return module.Context(device, stream, plan, *scratch, most_heads), scratch


def _on_device_of_graph(run: Callable[..., Any]) -> Callable[..., Any]:
    """Through torch's own guard where that is not the current device: it knows which devices have
    a context, and makes none where it goes back to one without."""

    @functools.wraps(run)
    def guarded(self: _Cuda, call: Any, *args: Any) -> Any:
        col = call.csr.col
        if not col.is_cuda or col.get_device() == torch._C._cuda_getDevice():
            return run(self, call, *args)
        with torch.cuda.device(col.device):
            return run(self, call, *args)

    return guarded


for _name in (
    "node_scores",
    "gat_forward",
    "gat_alpha",
    "gat_destinations",
    "gat_sources",
    "rowwise_forward",
    "rowwise_alpha",
    "rowwise_destinations",
    "rowwise_sources",
    "dot_forward",
    "dot_alpha",
    "dot_destinations",
    "dot_sources",
):
    setattr(_Cuda, _name, _on_device_of_graph(getattr(Compiled, _name)))
CUDA = _Cuda()
