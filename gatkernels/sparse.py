"""Sparse input features (a bag of words is 99 % zeros), multiplied without ever being dense."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gatkernels import _ops
from gatkernels._large import dropout

#: Mean number of values of a column from which adding row by row beats gathering by column.
LONG_COLUMN = 512
#: The largest product added up row by row: there are several copies, which a cache must hold.
LARGEST_SUM = 4 << 20  # bytes


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
        """From a ``torch.sparse_csr`` tensor; remembered while that tensor lives."""
        found: SparseRows | None = _cache.get(matrix)
        if found is None:
            found = _cache[matrix] = cls._build(matrix)
        return found

    @classmethod
    def _build(cls, matrix: Tensor) -> SparseRows:
        crow, col, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
        rows, columns = matrix.shape
        if max(rows, columns, col.shape[0]) >= 2**31:
            raise ValueError("sparse features must have fewer than 2^31 rows, columns and values")
        row = torch.repeat_interleave(torch.arange(rows, device=crow.device), crow.diff())
        order = torch.argsort(col, stable=True)
        t_crow = torch.zeros(columns + 1, dtype=torch.int64, device=crow.device)
        t_crow[1:] = torch.bincount(col, minlength=columns).cumsum(0)
        transpose = (t_crow, row[order].int(), order.int())
        return cls(crow.long(), col.int(), values.detach(), (rows, columns), *transpose)

    def dropout(self, p: float, training: bool) -> SparseRows:
        """Dropout of the stored values; a dropped zero would be a zero."""
        if not training or p == 0.0:
            return self
        return self._replace(values=dropout(self.values, p))

    def matmul(self, dense: Tensor) -> Tensor:
        """``self @ dense`` for ``dense [columns, width]``, differentiable in ``dense``."""
        result: Tensor = _SparseProduct.apply(self, dense, False)
        return result

    def linear(self, weight: Tensor) -> Tensor:
        """``self @ weight.T`` for ``weight [out, columns]``, differentiable in ``weight``."""
        return self.matmul(weight.t())


class _SparseProduct(torch.autograd.Function):
    """``matrix @ dense``, or ``matrix.T @ dense``; each is the other's backward."""

    @staticmethod
    def forward(ctx: Any, matrix: SparseRows, dense: Tensor, transposed: bool) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        m = matrix
        with torch.autocast(dense.device.type, enabled=False):
            if transposed and _by_rows(m, dense):
                return _ops.sparse_transposed_product(m.crow, m.col, m.values, dense, m.shape[1])
            if transposed:
                return _ops.sparse_product(m.t_crow, m.t_col, m.t_order, m.values, dense)
            return _ops.sparse_product(m.crow, m.col, None, m.values, dense)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, _SparseProduct.apply(ctx.matrix, grad, not ctx.transposed), None


def _by_rows(m: SparseRows, dense: Tensor) -> bool:
    """Whether ``m.T @ dense`` is best added up along the rows of ``m``."""
    columns, size = m.shape[1], m.shape[1] * dense.shape[1] * dense.element_size()
    long = m.col.shape[0] >= LONG_COLUMN * columns and size <= LARGEST_SUM
    return long and _ops.native_product(m.values, dense)


_cache: Any = WeakTensorKeyDictionary()
