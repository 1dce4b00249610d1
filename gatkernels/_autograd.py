"""Thin ``torch.autograd.Function`` wrappers around the registered ops.

Nothing of size ``E x C`` or ``E x H`` is saved. Where the backward itself is to be differentiated
(``create_graph=True``), it runs through the reference formulas.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels import _ops, reference
from gatkernels.graph import Graph

_gatkernels = torch.ops.gatkernels


class Options(NamedTuple):
    """What a call is about besides its tensors."""

    negative_slope: float
    dropout: float
    return_attention: bool
    backend: str


def _by_row(graph: Graph, backend: str) -> tuple[Any, ...]:
    return graph.rowptr, graph.col, graph.eid, graph.schedules(backend)[0]


def _arrays(graph: Graph, backend: str) -> tuple[Any, ...]:
    by_column = graph.colptr, graph.row, graph.ceid, graph.schedules(backend)[1]
    return *_by_row(graph, backend), *by_column


def _needs_backward(*inputs: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def _reference_backward(
    attention: Any,
    ctx: Any,
    inputs: tuple[Tensor | None, ...],
    seed: Tensor | None,
    grad: Tensor,
    grad_alpha: Tensor | None,
) -> list[Tensor | None]:
    """Differentiable gradients of the inputs that need one, by a formula of the reference."""
    slope, dropout = ctx.options[:2]
    out, alpha = attention(ctx.graph, *inputs, negative_slope=slope, dropout=dropout, seed=seed)
    outputs, grads = [out], [grad]
    if grad_alpha is not None:
        outputs.append(alpha)
        grads.append(grad_alpha)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


def _gat_forward(
    graph: Graph, x: Tensor, scores: tuple[Any, ...], options: Options, training: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """``out, out_pos, stats`` and, where asked for, ``alpha``."""
    csr, statistics = _by_row(graph, options.backend), training or options.return_attention
    scores = (*scores[:3], options.negative_slope, options.dropout, scores[3])
    found = _gatkernels.gat_forward(*csr, x, *scores, training, statistics, options.backend)
    alpha = None
    if options.return_attention:
        alpha = _gatkernels.gat_alpha(*csr, *scores, found[2], options.backend)
    return (*found, alpha)


def _gatv2_forward(
    graph: Graph, scores: tuple[Any, ...], options: Options, training: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``out, stats`` and, where asked for, ``alpha``."""
    csr, statistics = _by_row(graph, options.backend), training or options.return_attention
    scores = (*scores[:4], options.negative_slope, options.dropout, scores[4])
    out, stats = _gatkernels.gatv2_forward(*csr, *scores, statistics, options.backend)
    alpha = None
    if options.return_attention:
        alpha = _gatkernels.gatv2_alpha(*csr, *scores, stats, options.backend)
    return out, stats, alpha


class GATAttention(torch.autograd.Function):
    """``out`` and, where asked for, ``alpha`` from x and scores held in tensors of their own."""

    @staticmethod
    def forward(
        ctx: Any,
        graph: Graph,
        x: Tensor,
        score_src: Tensor,
        score_dst: Tensor,
        edge_score: Tensor | None,
        seed: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor | None]:
        inputs = (x, score_src, score_dst, edge_score, seed)
        out, out_pos, stats, alpha = _gat_forward(graph, x, inputs[1:], options, True)
        ctx.save_for_backward(*inputs, out, out_pos, stats, alpha)
        ctx.graph, ctx.options = graph, options
        ctx.set_materialize_grads(False)
        return out, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        x, src, dst, edge, seed, out, out_pos, stats, alpha = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(out)
        if torch.is_grad_enabled():
            grads = _reference_backward(
                reference.gat_attention, ctx, (x, src, dst, edge), seed, grad, grad_alpha
            )
        else:
            slope, dropout, _, backend = ctx.options
            grads = _gatkernels.gat_backward(
                *_arrays(ctx.graph, backend), x, src, dst, edge, slope, dropout, seed,
                out, out_pos, stats, alpha, grad, grad_alpha, backend,
            )  # fmt: skip
        return (None, *grads[:3], grads[3] if edge is not None else None, None, None)


class GATPacked(torch.autograd.Function):
    """The same from one tensor ``[N, H*C + 2H]``: x, score_src, score_dst side by side."""

    @staticmethod
    def forward(
        ctx: Any,
        graph: Graph,
        packed: Tensor,
        heads: int,
        channels: int,
        seed: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor | None]:
        x, score_src, score_dst = _ops.split_packed(packed, heads, channels)
        scores = (score_src, score_dst, None, seed)
        out, out_pos, stats, alpha = _gat_forward(graph, x, scores, options, True)
        ctx.save_for_backward(packed, seed, out, out_pos, stats, alpha)
        ctx.graph, ctx.options, ctx.sizes = graph, options, (heads, channels)
        ctx.set_materialize_grads(False)
        return out, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        packed, seed, out, out_pos, stats, alpha = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(out)
        if torch.is_grad_enabled():
            parts = (*_ops.split_packed(packed, *ctx.sizes), None)
            grads = _reference_backward(reference.gat_attention, ctx, parts, seed, grad, grad_alpha)
            grad_packed = torch.cat([g.flatten(1) for g in grads[:3] if g is not None], dim=1)
        else:
            slope, dropout, _, backend = ctx.options
            grad_packed = _gatkernels.gat_packed_backward(
                *_arrays(ctx.graph, backend), packed, *ctx.sizes, slope, dropout, seed,
                out, out_pos, stats, alpha, grad, grad_alpha, backend,
            )  # fmt: skip
        return None, grad_packed, None, None, None, None


class GATv2Attention(torch.autograd.Function):
    """``out`` and, where asked for, ``alpha`` of GATv2."""

    @staticmethod
    def forward(
        ctx: Any,
        graph: Graph,
        x_src: Tensor,
        x_dst: Tensor,
        att: Tensor,
        edge: Tensor | None,
        seed: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor | None]:
        inputs = (x_src, x_dst, att, edge, seed)
        out, stats, alpha = _gatv2_forward(graph, inputs, options, True)
        ctx.save_for_backward(*inputs, out, stats, alpha)
        ctx.graph, ctx.options = graph, options
        ctx.set_materialize_grads(False)
        return out, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        x_src, x_dst, att, edge, seed, out, stats, alpha = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(out)
        if torch.is_grad_enabled():
            inputs = (x_src, x_dst, att, edge)
            grads = _reference_backward(
                reference.gatv2_attention, ctx, inputs, seed, grad, grad_alpha
            )
        else:
            slope, dropout, _, backend = ctx.options
            grads = _gatkernels.gatv2_backward(
                *_arrays(ctx.graph, backend), x_src, x_dst, att, edge, slope, dropout, seed,
                out, stats, alpha, grad, grad_alpha, backend,
            )  # fmt: skip
        return (None, *grads[:3], grads[3] if edge is not None else None, None, None)


def _apart(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """``second``; compiled code takes no tensor twice as inputs of a Function."""
    if second is not None and second is first and torch.compiler.is_compiling():
        return second.view_as(second)
    return second


def gat(
    graph: Graph,
    x: Tensor,
    scores: tuple[Tensor | None, ...],
    options: Options,
) -> tuple[Tensor, Tensor | None]:
    """``scores``: score_src, score_dst, edge_score, seed."""
    if _needs_backward(x, *scores[:3]):
        src, dst, *rest = scores
        result: tuple[Tensor, Tensor | None] = GATAttention.apply(
            graph, x, src, _apart(src, dst), *rest, options
        )
        return result
    out, _, _, alpha = _gat_forward(graph, x, scores, options, False)
    return out, alpha


def gat_packed(
    graph: Graph, packed: Tensor, sizes: tuple[int, int], seed: Tensor | None, options: Options
) -> tuple[Tensor, Tensor | None]:
    if _needs_backward(packed):
        result: tuple[Tensor, Tensor | None] = GATPacked.apply(graph, packed, *sizes, seed, options)
        return result
    x, score_src, score_dst = _ops.split_packed(packed, *sizes)
    out, _, _, alpha = _gat_forward(graph, x, (score_src, score_dst, None, seed), options, False)
    return out, alpha


def gatv2(
    graph: Graph, inputs: tuple[Tensor | None, ...], options: Options
) -> tuple[Tensor, Tensor | None]:
    """``inputs``: x_src, x_dst, att, edge, seed."""
    if _needs_backward(*inputs[:4]):
        src, dst, *rest = inputs
        result: tuple[Tensor, Tensor | None] = GATv2Attention.apply(
            graph, src, _apart(src, dst), *rest, options
        )
        return result
    out, _, alpha = _gatv2_forward(graph, inputs, options, False)
    return out, alpha
