"""Sums of edge features over the edges into each node, weighted by attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatkernels.graph import Graph
from gatkernels.ops import transforms

#: Nodes of about one degree: their ids ``[n]``, and the ids of their edges ``[n, width]`` int32,
#: filled up with ``num_edges``.
Group = tuple[Tensor, Tensor]


def groups_of(graph: Graph) -> list[Group]:
    """The destinations by in-degree, rounded up to powers of two: a matrix product for each."""
    degree = graph.rowptr.diff()
    width = torch.where(degree > 0, 2 ** torch.ceil(torch.log2(degree.double())), 0).long()
    groups = []
    for count in width.unique().tolist():
        if count:
            nodes = (width == count).nonzero()[:, 0]
            column = torch.arange(count, device=graph.device)
            place = (graph.rowptr[nodes][:, None] + column).clamp(max=graph.num_edges - 1)
            edges = graph.eid[place]
            edges[column >= degree[nodes][:, None]] = graph.num_edges
            groups.append((nodes, edges))
    return groups


def _take(rows: Tensor, places: Tensor) -> Tensor:
    taken: Tensor = rows.index_select(0, places.flatten()).unflatten(0, tuple(places.shape))
    return taken


def _with_zero_row(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _sums(alpha: Tensor, features: Tensor, groups: list[Group], num_dst: int) -> Tensor:
    alpha, features = _with_zero_row(alpha), _with_zero_row(features)
    out = features.new_zeros(num_dst, alpha.shape[1], features.shape[1])
    for nodes, edges in groups:
        found = _take(alpha, edges).transpose(1, 2) @ _take(features, edges)
        out = (
            out.index_add(0, nodes, found)
            if transforms.active()
            else out.index_copy_(0, nodes, found)
        )
    return out


class _EdgeSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, features: Tensor, groups: list[Group], num_dst: int
    ) -> Tensor:
        ctx.save_for_backward(alpha, features)
        ctx.groups = groups
        return _sums(alpha, features, groups, num_dst)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        alpha, features = map(_with_zero_row, ctx.saved_tensors)
        # Removed self loops are in no group; what fills up the groups writes the row past the last.
        grad_alpha = torch.zeros_like(alpha) if ctx.needs_input_grad[0] else None
        grad_features = torch.zeros_like(features) if ctx.needs_input_grad[1] else None
        for nodes, edges in ctx.groups:
            into = grad[nodes]  # [n, H, D]
            if grad_alpha is not None:
                grad_alpha[edges] = _take(features, edges) @ into.transpose(1, 2)
            if grad_features is not None:
                grad_features[edges] = _take(alpha, edges) @ into
        found = (None if g is None else g[:-1] for g in (grad_alpha, grad_features))
        return (*found, None, None)


def edge_sum(alpha: Tensor, features: Tensor, groups: list[Group], num_dst: int) -> Tensor:
    """``sum_e alpha[e, h] features[e]`` over the edges into each node.

    Args:
        alpha: ``[num_edges, heads]``.
        features: ``[num_edges, channels]``, dtype of ``alpha``.
        groups: What :func:`groups_of` gives.
        num_dst: Number of destinations.

    Returns:
        ``[num_dst, heads, channels]``. Nothing of size ``num_edges x heads x channels`` is made.
    """
    if transforms.active():
        return _sums(alpha, features, groups, num_dst)
    result: Tensor = _EdgeSum.apply(alpha, features, groups, num_dst)
    return result
