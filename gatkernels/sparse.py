"""Sparse input features (a bag of words is 99 % zeros), multiplied without ever being dense."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class SparseRows(NamedTuple):
    """A sparse CSR matrix ``[rows, columns]`` with its transpose, so that both products are CSR."""

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
        row = torch.repeat_interleave(torch.arange(rows, device=crow.device), crow.diff())
        order = torch.argsort(col, stable=True)
        t_crow = torch.zeros(columns + 1, dtype=crow.dtype, device=crow.device)
        t_crow[1:] = torch.bincount(col, minlength=columns).cumsum(0)
        t_col = row[order].to(col.dtype)
        return cls(crow, col, values.detach(), (rows, columns), t_crow, t_col, order)

    def dropout(self, p: float, training: bool) -> SparseRows:
        """Dropout of the stored values; a dropped zero would be a zero."""
        if not training or p == 0.0:
            return self
        return self._replace(values=F.dropout(self.values, p))

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
        if transposed:
            parts, shape = (m.t_crow, m.t_col, m.values[m.t_order]), m.shape[::-1]
        else:
            parts, shape = (m.crow, m.col, m.values), m.shape
        with torch.autocast(dense.device.type, enabled=False):
            product: Tensor = (
                torch.sparse_csr_tensor(*parts, size=shape, check_invariants=False) @ dense
            )
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, _SparseProduct.apply(ctx.matrix, grad, not ctx.transposed), None


_cache: Any = WeakTensorKeyDictionary()
