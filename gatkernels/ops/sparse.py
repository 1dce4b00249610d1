"""Sparse input features (a bag of words is 99 % zeros), multiplied without ever being dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels.backends import native
from gatkernels.ops import build, transforms
from gatkernels.ops.dense import dropout
from gatkernels.ops.library import define
from gatkernels.ops.memo import Memo, sparse_parts, watchable

#: Mean number of values of a column from which adding row by row beats gathering by column.
LONG_COLUMN = 512
#: The largest product added up row by row: there are several copies, which a cache must hold.
LARGEST_SUM = 4 << 20  # bytes
#: Of products of two rows, made at a time for the gradient of the values.
BLOCK = 1 << 22  # elements


def _native_product(values: Tensor, dense: Tensor) -> bool:
    """Whether a kernel of ours multiplies them."""
    return native.floats_on_cpu(dense) and dense.dtype == values.dtype


def _sparse_product(
    rowptr: Tensor, col: Tensor, order: Tensor | None, values: Tensor, dense: Tensor
) -> Tensor:
    """A CSR matrix times ``dense [columns, width]``; ``values[order]`` are in the order of col."""
    if _native_product(values, dense):
        return native.sparse_product(rowptr, col, order, values, dense)
    size = (rowptr.shape[0] - 1, dense.shape[0])
    values = values if order is None else values[order.long()]
    matrix = torch.sparse_csr_tensor(rowptr.int(), col, values, size, check_invariants=False)
    return matrix.to(dense.dtype) @ dense


def _sparse_transposed_product(
    crow: Tensor, col: Tensor, values: Tensor, dense: Tensor, columns: int
) -> Tensor:
    """The transpose of a CSR matrix times ``dense [rows, width]``; only a ``_native_product``."""
    return native.sparse_transposed_product(crow, col, values, dense, columns)


sparse_product: Callable[..., Tensor] = define(
    _sparse_product,
    "Tensor",
    lambda rowptr, col, order, values, dense: dense.new_empty(rowptr.shape[0] - 1, dense.shape[1]),
)
sparse_transposed_product: Callable[..., Tensor] = define(
    _sparse_transposed_product,
    "Tensor",
    lambda crow, col, values, dense, columns: dense.new_empty(columns, dense.shape[1]),
    devices=("CPU",),
)


class SparseRows(NamedTuple):
    """A sparse CSR matrix ``[rows, columns]`` with its transpose, so that both products are CSR.

    Pointers are int64, all other indices int32. A stored zero is no value: what it is multiplied
    with is not looked at.
    """

    crow: Tensor
    col: Tensor
    values: Tensor
    shape: tuple[int, int]
    t_crow: Tensor
    t_col: Tensor
    t_order: Tensor  # place in ``values`` of each value of the transpose

    @classmethod
    def of(cls, matrix: Tensor) -> SparseRows:
        """From a ``torch.sparse_csr`` tensor, differentiable in its values.

        The structure is remembered while that tensor lives unchanged.
        """
        with build.plain():
            if not watchable(matrix):
                return cls._build(matrix)._replace(values=matrix.values())
            parts = sparse_parts(matrix)
            found = _memo.find(matrix, parts, None)
            if found is None:
                found = cls._build(matrix)
                _memo.keep(matrix, parts, None, found)
            return found._replace(values=matrix.values())

    @classmethod
    def _build(cls, matrix: Tensor) -> SparseRows:
        """With another tensor in the place of the values."""
        crow, col = matrix.crow_indices(), matrix.col_indices()
        rows, columns = matrix.shape
        if max(rows, columns, col.shape[0]) >= 2**31:
            raise ValueError("sparse features must have fewer than 2^31 rows, columns and values")
        row = torch.repeat_interleave(torch.arange(rows, device=crow.device), crow.diff())
        order = torch.argsort(col, stable=True)
        t_crow = torch.zeros(columns + 1, dtype=torch.int64, device=crow.device)
        t_crow[1:] = torch.bincount(col, minlength=columns).cumsum(0)
        transpose = (t_crow, row[order].int(), order.int())
        copied = (crow.to(torch.int64, copy=True), col.to(torch.int32, copy=True))
        return cls(*copied, transpose[2], (rows, columns), *transpose)

    def dropout(self, p: float, training: bool) -> SparseRows:
        """Dropout of the stored values; a dropped zero would be a zero."""
        if not training or p == 0.0:
            return self
        return self._replace(values=dropout(self.values, p))

    def matmul(self, dense: Tensor) -> Tensor:
        """``self @ dense`` for ``dense [columns, width]``, differentiable in both."""
        if transforms.active():
            return self._matmul(dense)
        result: Tensor = _SparseProduct.apply(self, self.values, dense, False)
        return result

    def _matmul(self, dense: Tensor) -> Tensor:
        """The same in torch's ops, which can be transformed; makes ``[values, width]``."""
        row = torch.repeat_interleave(self.crow.diff())
        terms = self.values[:, None] * dense[self.col]
        return terms.new_zeros(self.shape[0], dense.shape[1]).index_add(0, row, terms)

    def linear(self, weight: Tensor) -> Tensor:
        """``self @ weight.T`` for ``weight [out, columns]``, differentiable in both."""
        return self.matmul(weight.t())


class _SparseProduct(torch.autograd.Function):
    """``matrix @ dense``, or ``matrix.T @ dense``; each is the other's backward."""

    @staticmethod
    def forward(
        ctx: Any, matrix: SparseRows, values: Tensor, dense: Tensor, transposed: bool
    ) -> Tensor:
        m = matrix._replace(values=values)
        ctx.matrix, ctx.transposed = matrix._replace(values=matrix.t_order), transposed
        ctx.save_for_backward(values, dense if ctx.needs_input_grad[1] else None)
        with torch.autocast(dense.device.type, enabled=False):
            if transposed and _by_rows(m, dense):
                return sparse_transposed_product(m.crow, m.col, values, dense, m.shape[1])
            if transposed:
                return sparse_product(m.t_crow, m.t_col, m.t_order, values, dense)
            return sparse_product(m.crow, m.col, None, values, dense)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        values, dense = ctx.saved_tensors
        grad_values = grad_dense = None
        if ctx.needs_input_grad[1]:
            pair = (dense, grad) if ctx.transposed else (grad, dense)
            grad_values = _products_of_rows(ctx.matrix, *pair).to(values.dtype)
        if ctx.needs_input_grad[2]:
            grad_dense = _SparseProduct.apply(ctx.matrix, values, grad, not ctx.transposed)
        return None, grad_values, grad_dense, None


def _products_of_rows(m: SparseRows, by_row: Tensor, by_column: Tensor) -> Tensor:
    """``<by_row[i], by_column[j]>`` for each value's place ``(i, j)``, ``[values]``."""
    row = torch.repeat_interleave(m.crow.diff())
    step = max(1, BLOCK // max(1, by_row.shape[1]))
    blocks = zip(row.split(step), m.col.split(step), strict=True)
    return torch.cat([(by_row[i] * by_column[j]).sum(1) for i, j in blocks])


def _by_rows(m: SparseRows, dense: Tensor) -> bool:
    """Whether ``m.T @ dense`` is best added up along the rows of ``m``."""
    columns, size = m.shape[1], m.shape[1] * dense.shape[1] * dense.element_size()
    long = m.col.shape[0] >= LONG_COLUMN * columns and size <= LARGEST_SUM
    return long and _native_product(m.values, dense)


_memo: Memo[SparseRows] = Memo()
