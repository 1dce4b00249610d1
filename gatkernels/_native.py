"""Tensors to pointers: the only caller of the compiled module, and of ``data_ptr()``."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from gatkernels._checks import DTYPE_CODES

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

Csr = tuple[Tensor, Tensor, Tensor]
Scores = tuple[Tensor, Tensor, Tensor | None, float, float, Tensor | None]


def cpu_module() -> Any:
    if _cpu is None:
        raise RuntimeError(f"gatkernels: {cpu_missing}")
    return _cpu


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _rows(tensor: Tensor) -> Tensor:
    """``tensor`` with every row's trailing dimensions contiguous; rows may be apart or the same."""
    if tensor.is_contiguous():
        return tensor
    expected = 1
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def _matrix(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.stride(0)


LARGE = 1 << 22  # bytes from which large pages are worth asking for


def empty(like: Tensor, *size: int) -> Tensor:
    """Uninitialised memory of the dtype and device of ``like`` for a kernel to write."""
    tensor = like.new_empty(size)
    if tensor.nbytes >= LARGE and tensor.device.type == "cpu":
        cpu_module().want_large_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def build_csr(
    row: Tensor, other: Tensor, num_rows: int, num_others: int, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """CSR of edges grouped by ``row``, and the place of an id out of range (-1: none)."""
    row, other = row.contiguous(), other.contiguous()
    edges = row.shape[0]
    places = edges + (min(num_rows, num_others) if self_loops else 0)
    rowptr = torch.empty(num_rows + 1, dtype=torch.int64)
    col = torch.empty(places, dtype=torch.int32)
    eid = torch.empty(places, dtype=torch.int32)
    bad = cpu_module().build_csr(
        row.data_ptr(),
        other.data_ptr(),
        row.dtype == torch.int64,
        edges,
        num_rows,
        num_others,
        self_loops,
        torch.get_num_threads(),
        rowptr.data_ptr(),
        col.data_ptr(),
        eid.data_ptr(),
    )
    return rowptr, col, eid, bad


def _score_args(scores: Scores, keep: list[Tensor]) -> tuple[float, ...]:
    """The arguments of a kernel that describe scores; what must stay alive goes into ``keep``."""
    src, dst, edge, negative_slope, dropout, seed = scores
    src, dst = _rows(src), _rows(dst)
    keep += [src, dst]
    if edge is not None:
        edge = edge.contiguous()
        keep.append(edge)
    return (
        *_matrix(src),
        *_matrix(dst),
        _address(edge),
        negative_slope,
        _address(seed) if dropout > 0.0 else 0,
        dropout,
    )


def _csr_args(csr: Csr) -> tuple[int, int, int, int]:
    rowptr, col, eid = csr
    return rowptr.data_ptr(), col.data_ptr(), eid.data_ptr(), rowptr.shape[0] - 1


def gat_forward(
    csr: Csr, x: Tensor, scores: Scores, training: bool, statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``out``, ``out_pos`` (empty unless ``training``), ``stats`` (empty unless ``statistics``)."""
    num_dst, (heads, channels) = csr[0].shape[0] - 1, x.shape[1:]
    out = empty(x, num_dst, heads, channels)
    sums = scores[0]  # in the dtype of sums
    out_pos = empty(sums, num_dst, heads, channels) if training else sums.new_empty(0)
    stats = empty(sums, num_dst, 3, heads) if statistics else sums.new_empty(0)
    keep: list[Tensor] = []
    x = _rows(x)
    cpu_module().gat_forward(
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
        heads,
        channels,
        *_csr_args(csr),
        *_score_args(scores, keep),
        *_matrix(x),
        out.data_ptr(),
        out_pos.data_ptr() if training else 0,
        stats.data_ptr() if statistics else 0,
    )
    return out, out_pos, stats


def gat_alpha(csr: Csr, scores: Scores, stats: Tensor) -> Tensor:
    heads = stats.shape[2]
    alpha = stats.new_zeros(csr[1].shape[0], heads)
    keep: list[Tensor] = []
    cpu_module().gat_alpha(
        DTYPE_CODES[stats.dtype],
        torch.get_num_threads(),
        heads,
        *_csr_args(csr),
        *_score_args(scores, keep),
        stats.data_ptr(),
        alpha.data_ptr(),
    )
    return alpha


def _packed_rows(x: Tensor, sums: Tensor, features: int, fields: int) -> Tensor:
    """Rows of ``features`` values like ``x``, then ``fields`` like ``sums``, in whole lines."""
    unit = sums.element_size()
    size = -(-features * x.element_size() // unit) * unit + fields * unit
    return empty(x, sums.shape[0], -(-size // 64) * 64 // x.element_size())


def gat_backward(
    csr: Csr,
    csc: Csr,
    x: Tensor,
    scores: Scores,
    saved: tuple[Tensor, Tensor, Tensor, Tensor | None],
    grads: tuple[Tensor, Tensor | None],
    results: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Gradients of x, score_src, score_dst and edge_score, written into ``results``.

    ``saved`` holds out, out_pos, stats and alpha; ``grads`` the gradients of out and alpha.
    """
    heads, channels = x.shape[1:]
    out, out_pos, stats, alpha = saved
    x, grad = _rows(x), _rows(grads[0])
    grad_alpha = None if grads[1] is None else grads[1].contiguous()
    packed = _packed_rows(x, stats, heads * channels, 4 * heads)
    keep: list[Tensor] = []
    cpu_module().gat_backward(
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
        heads,
        channels,
        *_csr_args(csr),
        *_csr_args(csc),
        *_score_args(scores, keep),
        *_matrix(x),
        *_matrix(grad),
        out.data_ptr(),
        out_pos.data_ptr(),
        stats.data_ptr(),
        _address(alpha),
        _address(grad_alpha),
        *_matrix(packed),
        *_matrix(results[0]),
        *_matrix(results[1]),
        *_matrix(results[2]),
        0 if scores[2] is None else results[3].data_ptr(),
    )


Gatv2Scores = tuple[Tensor, Tensor, Tensor | None, float, float, Tensor | None]


def _gatv2_args(x: Tensor, scores: Gatv2Scores, keep: list[Tensor]) -> tuple[Any, ...]:
    """What every GATv2 kernel takes behind the graph: scores, then x of the sources."""
    x_dst, att, edge, negative_slope, dropout, seed = scores
    x_dst, att, x = _rows(x_dst), att.contiguous(), _rows(x)
    keep += [x_dst, att, x]
    if edge is not None:
        edge = edge.contiguous()
        keep.append(edge)
    return (
        *_matrix(x_dst),
        att.data_ptr(),
        _address(edge),
        negative_slope,
        _address(seed) if dropout > 0.0 else 0,
        dropout,
        *_matrix(x),
    )


def gatv2_forward(
    csr: Csr, x: Tensor, scores: Gatv2Scores, statistics: bool
) -> tuple[Tensor, Tensor]:
    """``out`` and ``stats`` (empty unless ``statistics``)."""
    num_dst, (heads, channels) = csr[0].shape[0] - 1, x.shape[1:]
    out = empty(x, num_dst, heads, channels)
    att = scores[1]  # in the dtype of sums
    stats = empty(att, num_dst, 3, heads) if statistics else att.new_empty(0)
    keep: list[Tensor] = []
    cpu_module().gatv2_forward(
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
        heads,
        channels,
        *_csr_args(csr),
        *_gatv2_args(x, scores, keep),
        out.data_ptr(),
        stats.data_ptr() if statistics else 0,
    )
    return out, stats


def gatv2_alpha(csr: Csr, x: Tensor, scores: Gatv2Scores, stats: Tensor) -> Tensor:
    heads, channels = x.shape[1:]
    alpha = stats.new_zeros(csr[1].shape[0], heads)
    keep: list[Tensor] = []
    cpu_module().gatv2_alpha(
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
        heads,
        channels,
        *_csr_args(csr),
        *_gatv2_args(x, scores, keep),
        stats.data_ptr(),
        alpha.data_ptr(),
    )
    return alpha


def gatv2_backward(
    csr: Csr,
    csc: Csr,
    x: Tensor,
    scores: Gatv2Scores,
    saved: tuple[Tensor, Tensor, Tensor | None],
    grads: tuple[Tensor, Tensor | None],
    results: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Gradients of x_src, x_dst, att and edge, written into ``results``.

    ``saved`` holds out, stats and alpha; ``grads`` the gradients of out and alpha.
    """
    heads, channels = x.shape[1:]
    out, stats, alpha = saved
    grad = _rows(grads[0])
    grad_alpha = None if grads[1] is None else grads[1].contiguous()
    packed = _packed_rows(x, stats, 2 * heads * channels, 3 * heads)
    keep: list[Tensor] = []
    cpu_module().gatv2_backward(
        DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
        heads,
        channels,
        *_csr_args(csr),
        *_csr_args(csc),
        *_gatv2_args(x, scores, keep),
        *_matrix(grad),
        out.data_ptr(),
        stats.data_ptr(),
        _address(alpha),
        _address(grad_alpha),
        *_matrix(packed),
        *(result.data_ptr() for result in results[:3]),
        0 if scores[2] is None else results[3].data_ptr(),
    )
