"""Thin ``torch.autograd.Function`` wrappers around the registered ops.

Nothing of size ``E x C`` or ``E x H`` is saved. Where the backward itself is to be differentiated
(``create_graph=True``), it runs through the reference formulas.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatkernels import _ops, reference
from gatkernels.graph import Graph

_gatkernels = torch.ops.gatkernels


def _arrays(graph: Graph) -> tuple[Tensor, ...]:
    return graph.rowptr, graph.col, graph.eid, graph.colptr, graph.row, graph.ceid


def _graph_of(arrays: tuple[Tensor, ...]) -> Graph:
    num_dst, num_src = arrays[0].shape[0] - 1, arrays[3].shape[0] - 1
    return Graph(num_src, num_dst, arrays[:3], arrays[3:])  # type: ignore[arg-type]


def _needs_backward(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def _reference_backward(
    attention: Any,
    graph: Graph,
    inputs: tuple[Tensor | None, ...],
    options: tuple[float, float],
    seed: Tensor | None,
    grad: Tensor,
    grad_alpha: Tensor | None,
) -> list[Tensor | None]:
    """Differentiable gradients of the inputs that need one, by a formula of the reference."""
    out, alpha = attention(graph, *inputs, negative_slope=options[0], dropout=options[1], seed=seed)
    outputs, grads = [out], [grad]
    if grad_alpha is not None:
        outputs.append(alpha)
        grads.append(grad_alpha)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


class GATAttention(torch.autograd.Function):
    """``out`` and, where asked for, ``alpha`` from x and scores held in tensors of their own."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        eid: Tensor,
        colptr: Tensor,
        row: Tensor,
        ceid: Tensor,
        x: Tensor,
        score_src: Tensor,
        score_dst: Tensor,
        edge_score: Tensor | None,
        seed: Tensor | None,
        options: tuple[float, float],
        return_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        scores = (score_src, score_dst, edge_score, *options, seed)
        out, out_pos, stats = _gatkernels.gat_forward(rowptr, col, eid, x, *scores, True, True)
        alpha = None
        if return_attention:
            alpha = _gatkernels.gat_alpha(rowptr, col, eid, *scores, stats)
        ctx.save_for_backward(
            rowptr, col, eid, colptr, row, ceid, x, *scores[:3], seed, out, out_pos, stats, alpha
        )
        ctx.options = options
        ctx.set_materialize_grads(False)
        return out, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        *arrays, x, src, dst, edge, seed, out, out_pos, stats, alpha = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(out)
        if torch.is_grad_enabled():
            grads = _reference_backward(
                reference.gat_attention,
                _graph_of(tuple(arrays)),
                (x, src, dst, edge),
                ctx.options,
                seed,
                grad,
                grad_alpha,
            )
        else:
            grads = _gatkernels.gat_backward(
                *arrays, x, src, dst, edge, *ctx.options, seed,
                out, out_pos, stats, alpha, grad, grad_alpha,
            )  # fmt: skip
        grad_edge = grads[3] if edge is not None else None
        return (None,) * 6 + (*grads[:3], grad_edge, None, None, None)


class GATPacked(torch.autograd.Function):
    """The same from one tensor ``[N, H*C + 2H]``: x, score_src, score_dst side by side."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        eid: Tensor,
        colptr: Tensor,
        row: Tensor,
        ceid: Tensor,
        packed: Tensor,
        heads: int,
        channels: int,
        seed: Tensor | None,
        options: tuple[float, float],
        return_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        x, score_src, score_dst = _ops.split_packed(packed, heads, channels)
        scores = (score_src, score_dst, None, *options, seed)
        out, out_pos, stats = _gatkernels.gat_forward(rowptr, col, eid, x, *scores, True, True)
        alpha = None
        if return_attention:
            alpha = _gatkernels.gat_alpha(rowptr, col, eid, *scores, stats)
        ctx.save_for_backward(
            rowptr, col, eid, colptr, row, ceid, packed, seed, out, out_pos, stats, alpha
        )
        ctx.options = options
        ctx.sizes = (heads, channels)
        ctx.set_materialize_grads(False)
        return out, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        *arrays, packed, seed, out, out_pos, stats, alpha = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(out)
        if torch.is_grad_enabled():
            parts = (*_ops.split_packed(packed, *ctx.sizes), None)
            grads = _reference_backward(
                reference.gat_attention,
                _graph_of(tuple(arrays)),
                parts,
                ctx.options,
                seed,
                grad,
                grad_alpha,
            )
            grad_packed = torch.cat([g.flatten(1) for g in grads[:3] if g is not None], dim=1)
        else:
            grad_packed = _gatkernels.gat_packed_backward(
                *arrays, packed, *ctx.sizes, *ctx.options, seed,
                out, out_pos, stats, alpha, grad, grad_alpha,
            )  # fmt: skip
        return (None,) * 6 + (grad_packed, None, None, None, None, None)


class GATv2Attention(torch.autograd.Function):
    """``out`` and, where asked for, ``alpha`` of GATv2."""

    @staticmethod
    def forward(
        ctx: Any,
        rowptr: Tensor,
        col: Tensor,
        eid: Tensor,
        colptr: Tensor,
        row: Tensor,
        ceid: Tensor,
        x_src: Tensor,
        x_dst: Tensor,
        att: Tensor,
        edge: Tensor | None,
        seed: Tensor | None,
        options: tuple[float, float],
        return_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        csr, scores = (rowptr, col, eid), (x_src, x_dst, att, edge, *options, seed)
        out, stats = _gatkernels.gatv2_forward(*csr, *scores, True)
        alpha = _gatkernels.gatv2_alpha(*csr, *scores, stats) if return_attention else None
        ctx.save_for_backward(*csr, colptr, row, ceid, *scores[:4], seed, out, stats, alpha)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return out, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        *arrays, x_src, x_dst, att, edge, seed, out, stats, alpha = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(out)
        if torch.is_grad_enabled():
            grads = _reference_backward(
                reference.gatv2_attention,
                _graph_of(tuple(arrays)),
                (x_src, x_dst, att, edge),
                ctx.options,
                seed,
                grad,
                grad_alpha,
            )
        else:
            grads = _gatkernels.gatv2_backward(
                *arrays, x_src, x_dst, att, edge, *ctx.options, seed,
                out, stats, alpha, grad, grad_alpha,
            )  # fmt: skip
        grad_edge = grads[3] if edge is not None else None
        return (None,) * 6 + (*grads[:3], grad_edge, None, None, None)


def gatv2(
    graph: Graph,
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None,
    seed: Tensor | None,
    options: tuple[float, float],
    return_attention: bool,
) -> tuple[Tensor, Tensor | None]:
    if _needs_backward(x_src, x_dst, att, edge):
        result: tuple[Tensor, Tensor | None] = GATv2Attention.apply(
            *_arrays(graph), x_src, x_dst, att, edge, seed, options, return_attention
        )
        return result
    csr, scores = (graph.rowptr, graph.col, graph.eid), (x_src, x_dst, att, edge, *options, seed)
    out, stats = _gatkernels.gatv2_forward(*csr, *scores, return_attention)
    return out, _gatkernels.gatv2_alpha(*csr, *scores, stats) if return_attention else None


def gat(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor,
    edge_score: Tensor | None,
    seed: Tensor | None,
    options: tuple[float, float],
    return_attention: bool,
) -> tuple[Tensor, Tensor | None]:
    if _needs_backward(x, score_src, score_dst, edge_score):
        result: tuple[Tensor, Tensor | None] = GATAttention.apply(
            *_arrays(graph), x, score_src, score_dst, edge_score, seed, options, return_attention
        )
        return result
    return _infer(graph, x, (score_src, score_dst, edge_score, *options, seed), return_attention)


def gat_packed(
    graph: Graph,
    packed: Tensor,
    sizes: tuple[int, int],
    seed: Tensor | None,
    options: tuple[float, float],
    return_attention: bool,
) -> tuple[Tensor, Tensor | None]:
    if _needs_backward(packed):
        result: tuple[Tensor, Tensor | None] = GATPacked.apply(
            *_arrays(graph), packed, *sizes, seed, options, return_attention
        )
        return result
    x, score_src, score_dst = _ops.split_packed(packed, *sizes)
    return _infer(graph, x, (score_src, score_dst, None, *options, seed), return_attention)


def _infer(
    graph: Graph, x: Tensor, scores: tuple[Any, ...], return_attention: bool
) -> tuple[Tensor, Tensor | None]:
    csr = (graph.rowptr, graph.col, graph.eid)
    out, _, stats = _gatkernels.gat_forward(*csr, x, *scores, False, return_attention)
    return out, _gatkernels.gat_alpha(*csr, *scores, stats) if return_attention else None
