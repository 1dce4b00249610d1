"""Tensors to pointers: the only caller of the compiled modules, and of ``data_ptr()``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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

#: Pointers, the nodes at the other ends, edge ids, and the parts of a schedule.
Csr = tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]
Scores = tuple[Tensor, Tensor, Tensor | None, float, float, Tensor | None]
#: The attention vectors ``[1, H, C]`` that scores come from; None where they are given.
Atts = tuple[Tensor | None, Tensor | None]
Gatv2Scores = tuple[Tensor, Tensor, Tensor | None, float, float, Tensor | None]


def cpu_module() -> Any:
    if _cpu is None:
        raise RuntimeError(f"gatkernels: {cpu_missing}")
    return _cpu


def place(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _rows(tensor: Tensor) -> Tensor:
    """``tensor`` with every row's trailing dimensions contiguous; rows may be apart or the same.

    They are less than 4 GiB apart, so that the distance has 32 bits.
    """
    if tensor.is_contiguous():
        return tensor
    if tensor.stride(0) * tensor.element_size() >= 1 << 32:
        return tensor.contiguous()
    expected = 1
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


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
    arrays: tuple[Tensor, ...] = ()
    for count in counts if both else counts[:1]:
        ids = (torch.empty(places, dtype=torch.int32) for _ in range(2))
        arrays = (*arrays, torch.empty(count + 1, dtype=torch.int64), *ids)
    by_other = () if both else (0, 0, 0)
    bad = cpu_module().build_graph(
        row.data_ptr(), other.data_ptr(), row.dtype == torch.int64, edges, *counts, self_loops,
        torch.get_num_threads(), *map(Tensor.data_ptr, arrays), *by_other,
    )  # fmt: skip
    return arrays, bad


def sparse_product(
    rowptr: Tensor, col: Tensor, order: Tensor | None, values: Tensor, dense: Tensor
) -> Tensor:
    dense, values = _rows(dense), values.contiguous()
    rows, width = rowptr.shape[0] - 1, dense.shape[1]
    out = empty(dense, rows, width)
    cpu_module().sparse_product(
        DTYPE_CODES[dense.dtype], torch.get_num_threads(), rowptr.data_ptr(), col.data_ptr(),
        place(order), rows, width, values.data_ptr(), dense.data_ptr(), dense.stride(0),
        out.data_ptr(),
    )  # fmt: skip
    return out


def sparse_transposed_product(
    crow: Tensor, col: Tensor, values: Tensor, dense: Tensor, columns: int
) -> Tensor:
    dense, values = _rows(dense), values.contiguous()
    rows, width = dense.shape
    out = empty(dense, columns, width)
    cpu_module().sparse_transposed_product(
        DTYPE_CODES[dense.dtype], torch.get_num_threads(), crow.data_ptr(), col.data_ptr(),
        rows, columns, width, values.data_ptr(), dense.data_ptr(), dense.stride(0),
        out.data_ptr(),
    )  # fmt: skip
    return out


#: What is done to features besides dropout, as numbered in the kernels.
NONE, ELU, ELU_GRAD = range(3)


def feature_dropout(
    x: Tensor, p: float, seed: Tensor | None, activation: int = NONE, grad: Tensor | None = None
) -> Tensor:
    x, grad = x.contiguous(), _contiguous(grad)
    out = empty(x, *x.shape)
    cpu_module().feature_dropout(
        DTYPE_CODES[x.dtype], torch.get_num_threads(), x.numel(), place(seed), p, activation,
        x.data_ptr(), place(grad), out.data_ptr(),
    )  # fmt: skip
    return out


class Kernels:
    """The kernels of a compiled module, which differ in what they need besides tensors."""

    # On a small graph this takes longer than the kernels: plain statements, few calls.

    def _module(self) -> Any:
        raise NotImplementedError

    def _context(
        self,
        csr: Csr,
        csc: Csr | None,
        sums: Tensor,
        rows: Tensor | None,
        matrices: int = 1,
        vectors: int = 0,
    ) -> tuple[Any, Any]:
        """For edges that gather from so many matrices like ``rows [nodes, heads, channels]``, and
        gradients of so many attention vectors.

        Also the scratch, of the dtype of ``sums``, to keep.
        """
        raise NotImplementedError

    def node_scores(self, csr: Csr, x: Tensor, atts: Atts) -> Tensor:
        """``[vectors, N, H]``: ``<x, att>`` of each node and head, in the dtype of ``atts``."""
        att_src, att_dst = atts
        assert att_src is not None
        x, att_src, att_dst = _rows(x), att_src.contiguous(), _contiguous(att_dst)
        rows, heads, channels = x.shape
        scores = att_src.new_empty(1 if att_dst is None else 2, rows, heads)
        context, _scratch = self._context(csr, None, att_src, None)
        self._module().node_scores(
            DTYPE_CODES[x.dtype], context, heads, channels, rows, x.data_ptr(), x.stride(0),
            att_src.data_ptr(), place(att_dst), scores.data_ptr(),
            0 if att_dst is None else scores[1].data_ptr(),
        )  # fmt: skip
        return scores

    def gat_forward(
        self, csr: Csr, x: Tensor, scores: Scores, training: bool, statistics: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``out``, ``out_pos`` (empty unless ``training``), ``stats`` (unless ``statistics``)."""
        rowptr, col, eid, _ = csr
        src, dst, edge, negative_slope, dropout, seed = scores
        x, src, dst, edge = _rows(x), _rows(src), _rows(dst), _contiguous(edge)
        num_dst = rowptr.shape[0] - 1
        _, heads, channels = x.shape
        out = empty(x, num_dst, heads, channels)
        # src: in the dtype of sums
        out_pos = empty(src, num_dst, heads, channels) if training else src.new_empty(0)
        stats = empty(src, num_dst, 3, heads) if statistics else src.new_empty(0)
        context, _scratch = self._context(csr, None, src, x)
        self._module().gat_forward(
            DTYPE_CODES[x.dtype], context, heads, channels,
            rowptr.data_ptr(), col.data_ptr(), eid.data_ptr(), num_dst,
            src.data_ptr(), src.stride(0), dst.data_ptr(), dst.stride(0), place(edge),
            negative_slope, place(seed) if dropout else 0, dropout,
            x.data_ptr(), x.stride(0), out.data_ptr(),
            out_pos.data_ptr() if training else 0, stats.data_ptr() if statistics else 0,
        )  # fmt: skip
        return out, out_pos, stats

    def gat_alpha(self, csr: Csr, scores: Scores, stats: Tensor) -> Tensor:
        rowptr, col, eid, _ = csr
        src, dst, edge, negative_slope, dropout, seed = scores
        src, dst, edge = _rows(src), _rows(dst), _contiguous(edge)
        alpha = stats.new_zeros(col.shape[0], stats.shape[2])
        context, _scratch = self._context(csr, None, stats, None)
        self._module().gat_alpha(
            DTYPE_CODES[stats.dtype], context, stats.shape[2],
            rowptr.data_ptr(), col.data_ptr(), eid.data_ptr(), rowptr.shape[0] - 1,
            src.data_ptr(), src.stride(0), dst.data_ptr(), dst.stride(0), place(edge),
            negative_slope, place(seed) if dropout else 0, dropout,
            stats.data_ptr(), alpha.data_ptr(),
        )  # fmt: skip
        return alpha

    def gat_backward(
        self,
        csr: Csr,
        csc: Csr,
        x: Tensor,
        scores: Scores,
        atts: Atts,
        saved: tuple[Tensor, Tensor, Tensor, Tensor | None],
        grads: tuple[Tensor, Tensor | None],
        results: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        """Gradients of x, score_src, score_dst, edge_score and ``atts``, written into ``results``.

        Where the scores are :meth:`node_scores` of x, that of x includes what comes through them.
        ``saved`` holds out, out_pos, stats and alpha; ``grads`` the gradients of out and alpha.
        """
        rowptr, col, eid, _ = csr
        colptr, row, ceid, _ = csc
        src, dst, edge, negative_slope, dropout, seed = scores
        out, out_pos, stats, alpha = saved
        grad, grad_alpha = grads
        grad_x, grad_src, grad_dst, grad_edge, grad_att = results
        att_src, att_dst = map(_contiguous, atts)
        x, src, dst, edge = _rows(x), _rows(src), _rows(dst), _contiguous(edge)
        grad, grad_alpha = _rows(grad), _contiguous(grad_alpha)
        _, heads, channels = x.shape
        fields = empty(stats, rowptr.shape[0] - 1, 4 * heads)
        context, _scratch = self._context(csr, csc, stats, grad, vectors=grad_att.shape[0])
        self._module().gat_backward(
            DTYPE_CODES[x.dtype], context, heads, channels,
            rowptr.data_ptr(), col.data_ptr(), eid.data_ptr(), rowptr.shape[0] - 1,
            colptr.data_ptr(), row.data_ptr(), ceid.data_ptr(), colptr.shape[0] - 1,
            src.data_ptr(), src.stride(0), dst.data_ptr(), dst.stride(0), place(edge),
            negative_slope, place(seed) if dropout else 0, dropout,
            x.data_ptr(), x.stride(0), grad.data_ptr(), grad.stride(0),
            out.data_ptr(), out_pos.data_ptr(), stats.data_ptr(), place(alpha), place(grad_alpha),
            fields.data_ptr(), grad_x.data_ptr(), grad_x.stride(0),
            grad_src.data_ptr(), grad_src.stride(0), grad_dst.data_ptr(), grad_dst.stride(0),
            0 if edge is None else grad_edge.data_ptr(), place(att_src), place(att_dst),
            0 if att_src is None else grad_att.data_ptr(),
        )  # fmt: skip

    def gatv2_forward(
        self, csr: Csr, x: Tensor, scores: Gatv2Scores, statistics: bool
    ) -> tuple[Tensor, Tensor]:
        """``out`` and ``stats`` (empty unless ``statistics``)."""
        rowptr, col, eid, _ = csr
        dst, att, edge, negative_slope, dropout, seed = scores
        x, dst, att, edge = _rows(x), _rows(dst), att.contiguous(), _contiguous(edge)
        num_dst = rowptr.shape[0] - 1
        _, heads, channels = x.shape
        out = empty(x, num_dst, heads, channels)
        # att: in the dtype of sums
        stats = empty(att, num_dst, 3, heads) if statistics else att.new_empty(0)
        context, _scratch = self._context(csr, None, att, x)
        self._module().gatv2_forward(
            DTYPE_CODES[x.dtype], context, heads, channels,
            rowptr.data_ptr(), col.data_ptr(), eid.data_ptr(), num_dst,
            dst.data_ptr(), dst.stride(0), att.data_ptr(), place(edge),
            negative_slope, place(seed) if dropout else 0, dropout,
            x.data_ptr(), x.stride(0), out.data_ptr(), stats.data_ptr() if statistics else 0,
        )  # fmt: skip
        return out, stats

    def gatv2_alpha(self, csr: Csr, x: Tensor, scores: Gatv2Scores, stats: Tensor) -> Tensor:
        rowptr, col, eid, _ = csr
        dst, att, edge, negative_slope, dropout, seed = scores
        x, dst, att, edge = _rows(x), _rows(dst), att.contiguous(), _contiguous(edge)
        _, heads, channels = x.shape
        alpha = stats.new_zeros(col.shape[0], heads)
        context, _scratch = self._context(csr, None, stats, x)
        self._module().gatv2_alpha(
            DTYPE_CODES[x.dtype], context, heads, channels,
            rowptr.data_ptr(), col.data_ptr(), eid.data_ptr(), rowptr.shape[0] - 1,
            dst.data_ptr(), dst.stride(0), att.data_ptr(), place(edge),
            negative_slope, place(seed) if dropout else 0, dropout,
            x.data_ptr(), x.stride(0), stats.data_ptr(), alpha.data_ptr(),
        )  # fmt: skip
        return alpha

    def gatv2_backward(
        self,
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
        rowptr, col, eid, _ = csr
        colptr, row, ceid, _ = csc
        dst, att, edge, negative_slope, dropout, seed = scores
        out, stats, alpha = saved
        grad, grad_alpha = grads
        grad_x, grad_dst, grad_att, grad_edge = results
        x, dst, att, edge = _rows(x), _rows(dst), att.contiguous(), _contiguous(edge)
        grad, grad_alpha = _rows(grad), _contiguous(grad_alpha)
        _, heads, channels = x.shape
        fields = empty(stats, rowptr.shape[0] - 1, 4 * heads)
        context, _scratch = self._context(csr, csc, stats, grad, matrices=2, vectors=1)
        self._module().gatv2_backward(
            DTYPE_CODES[x.dtype], context, heads, channels,
            rowptr.data_ptr(), col.data_ptr(), eid.data_ptr(), rowptr.shape[0] - 1,
            colptr.data_ptr(), row.data_ptr(), ceid.data_ptr(), colptr.shape[0] - 1,
            dst.data_ptr(), dst.stride(0), att.data_ptr(), place(edge),
            negative_slope, place(seed) if dropout else 0, dropout,
            x.data_ptr(), x.stride(0), grad.data_ptr(), grad.stride(0),
            out.data_ptr(), stats.data_ptr(), place(alpha), place(grad_alpha),
            fields.data_ptr(), grad_x.data_ptr(), grad_dst.data_ptr(),
            grad_att.data_ptr(), 0 if edge is None else grad_edge.data_ptr(),
        )  # fmt: skip


class _Cpu(Kernels):
    def _module(self) -> Any:
        return cpu_module()

    def _context(
        self,
        csr: Csr,
        csc: Csr | None,
        sums: Tensor,
        rows: Tensor | None,
        matrices: int = 1,
        vectors: int = 0,
    ) -> tuple[Any, Any]:
        return torch.get_num_threads(), None


CPU = _Cpu()
