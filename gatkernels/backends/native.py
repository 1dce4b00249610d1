"""The compiled CPU module, and its kernels that are no attention's: graphs, products, features."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from gatkernels.backends import threads
from gatkernels.backends.fit import contiguous, rows_apart
from gatkernels.ops import philox
from gatkernels.ops.checks import DTYPE_CODES

_cpu: Any = None
#: Why the compiled CPU module cannot be used; None where it can.
cpu_missing: str | None = None
try:  # torch is imported first, so that both share one OpenMP runtime
    _cpu = importlib.import_module("gatkernels._cpu")
except ModuleNotFoundError:
    cpu_missing = (
        "the compiled module gatkernels._cpu is missing; "
        "install from source with a C++ compiler: pip install ."
    )
except ImportError as error:
    cpu_missing = f"the compiled module gatkernels._cpu cannot be loaded: {error}"


def cpu_module() -> Any:
    if _cpu is None:
        raise RuntimeError(f"gatkernels: {cpu_missing}")
    return _cpu


LARGE = 1 << 22  # bytes from which large pages are worth asking for


def empty(like: Tensor, *size: int) -> Tensor:
    """Uninitialised memory of the dtype and device of ``like`` for a kernel to write."""
    tensor = like.new_empty(size)
    if tensor.nbytes >= LARGE and tensor.device.type == "cpu":
        cpu_module().want_large_pages(tensor, tensor.nbytes)
    return tensor


def build_csr(
    row: Tensor, other: Tensor, num_rows: int, num_others: int, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """CSR of edges grouped by ``row``, and the place of an id out of range (-1: none)."""
    (rowptr, col, eid), bad = _build((row, other), (num_rows, num_others), self_loops, both=False)
    return rowptr, col, eid, bad


def build_graph(
    edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool
) -> tuple[tuple[Tensor, ...], int]:
    """CSR by destination and CSC, and the place of an id out of range (-1: none)."""
    src, dst = edge_index.unbind()
    return _build((dst, src), (num_dst, num_src), self_loops, both=True)


def _build(
    ends: tuple[Tensor, Tensor], counts: tuple[int, int], self_loops: bool, both: bool
) -> tuple[tuple[Tensor, ...], int]:
    row, other = ends[0].contiguous(), ends[1].contiguous()
    edges = row.shape[0]
    places = edges + (min(counts) if self_loops else 0)
    sides: list[tuple[Tensor, ...] | None] = []
    for count in counts if both else counts[:1]:
        ids = (torch.empty(places, dtype=torch.int32) for _ in range(2))
        sides.append((torch.empty(count + 1, dtype=torch.int64), *ids))
    if not both:
        sides.append(None)
    bad = cpu_module().build_graph(
        row,
        other,
        row.dtype == torch.int64,
        edges,
        *counts,
        self_loops,
        threads.count(),
        *sides,
    )
    return tuple(array for side in sides for array in side or ()), bad


def floats_on_cpu(x: Tensor) -> bool:
    """Whether kernels take it that are the CPU's alone, for float32 and float64."""
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return on_cpu and cpu_missing is None


def sparse_product(
    rowptr: Tensor, col: Tensor, order: Tensor | None, values: Tensor, dense: Tensor
) -> Tensor:
    dense, values = rows_apart(dense), values.contiguous()
    rows, width = rowptr.shape[0] - 1, dense.shape[1]
    out = empty(dense, rows, width)
    cpu_module().sparse_product(
        code(dense), threads.count(), rowptr, col, order, rows, width, values, dense, out
    )
    return out


def sparse_transposed_product(
    crow: Tensor, col: Tensor, values: Tensor, dense: Tensor, columns: int
) -> Tensor:
    dense, values = rows_apart(dense), values.contiguous()
    rows, width = dense.shape
    out = empty(dense, columns, width)
    cpu_module().sparse_transposed_product(
        code(dense), threads.count(), crow, col, rows, columns, width, values, dense, out
    )
    return out


#: What is done to features besides dropout, as numbered in the kernels.
NONE, ELU, ELU_GRAD = range(3)


def feature_dropout(
    x: Tensor, p: float, seed: Tensor | None, activation: int = NONE, grad: Tensor | None = None
) -> Tensor:
    x, grad = x.contiguous(), contiguous(grad)
    out = empty(x, *x.shape)
    cpu_module().feature_dropout(
        code(x),
        threads.count(),
        x.numel(),
        seed,
        philox.threshold(p),
        philox.scale(p),
        activation,
        x,
        grad,
        out,
    )
    return out


def code(x: Tensor) -> int:
    return DTYPE_CODES[x.dtype]
