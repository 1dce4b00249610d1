"""Tensors as kernels read them, and the rule of dropout as they take it."""

from __future__ import annotations

from torch import Tensor

from gatkernels.ops import philox
from gatkernels.ops.call import (
    DotGrads,
    DotInputs,
    DotScoring,
    GatInputs,
    OutGrads,
    RowwiseInputs,
    Scoring,
)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def rows_apart(tensor: Tensor) -> Tensor:
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


def _contiguous_all(tensors: tuple[Tensor | None, ...]) -> bool:
    for tensor in tensors:  # noqa: SIM110, as a generator takes three times as long
        if tensor is not None and not tensor.is_contiguous():
            return False
    return True


def fit(inputs: GatInputs) -> GatInputs:
    """Tensors as kernels read them: rows may be apart, all else is contiguous."""
    if _contiguous_all(inputs):
        return inputs
    x, src, dst, edge, att_src, att_dst = inputs
    return GatInputs(
        rows_apart(x),
        None if src is None else rows_apart(src),
        None if dst is None else rows_apart(dst),
        contiguous(edge),
        contiguous(att_src),
        contiguous(att_dst),
    )


def fit_rows(inputs: RowwiseInputs) -> RowwiseInputs:
    if _contiguous_all(inputs):
        return inputs
    x, x_dst, att, edge = inputs
    return RowwiseInputs(rows_apart(x), rows_apart(x_dst), att.contiguous(), contiguous(edge))


def fit_dot(inputs: DotInputs) -> DotInputs:
    if _contiguous_all(inputs):
        return inputs
    q, k, v, edge, edge_query = inputs
    query = None if edge_query is None else rows_apart(edge_query)
    return DotInputs(rows_apart(q), rows_apart(k), rows_apart(v), contiguous(edge), query)


def rule(scoring: Scoring | DotScoring) -> tuple[float, Tensor | None, int, float, int]:
    """Slope or scale, seed, and what dropout does: times the fourth where a word reaches the third,
    the threshold; and the first head."""
    number, p, seed, first_head = scoring
    if p == 0.0:
        return number, None, 0, 1.0, 0
    return number, seed, philox.threshold(p), philox.scale(p), first_head


def fit_grads(grads: OutGrads) -> OutGrads:
    if _contiguous_all(grads):
        return grads
    return OutGrads(rows_apart(grads.out), contiguous(grads.alpha))


def fit_dot_grads(grads: DotGrads) -> DotGrads:
    if _contiguous_all(grads):
        return grads
    out, edge_out, alpha = grads
    return DotGrads(
        rows_apart(out), None if edge_out is None else rows_apart(edge_out), contiguous(alpha)
    )


def grad_of_edges(edge: Tensor | None, wanted: bool) -> Tensor | None:
    """Zeros, where there are edge features and their gradient is wanted: a removed self loop has a
    place here, but no edge."""
    return edge.new_zeros(edge.shape) if wanted and edge is not None else None
