"""Thin ``torch.autograd.Function`` wrappers around the registered ops.

Nothing of size ``E x C`` or ``E x H`` is saved. Where the backward itself is to be differentiated
(``create_graph=True``), it runs through the reference formulas.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels import reference
from gatkernels.graph import Graph
from gatkernels.ops import library

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
) -> tuple[Any, ...]:
    """``out, out_pos, stats``, both scores, and ``alpha`` where it is asked for, else None."""
    csr, statistics = _by_row(graph, options.backend), training or options.return_attention
    *given, seed = scores
    how = options.negative_slope, options.dropout, seed
    out, out_pos, stats, found = _gatkernels.gat_forward(
        *csr, x, *given[:3], *how, *given[3:], training, statistics, options.backend
    )
    both = library.node_scores(found, *given[:2]) if statistics else (None, None)
    alpha = None
    if options.return_attention:
        alpha = _gatkernels.gat_alpha(*csr, *both, given[2], *how, stats, options.backend)
    return out, out_pos, stats, *both, alpha


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
    """``out`` and, where asked for, ``alpha``, from scores that are given or come from x."""

    @staticmethod
    def forward(
        ctx: Any,
        graph: Graph,
        x: Tensor,
        score_src: Tensor | None,
        score_dst: Tensor | None,
        edge_score: Tensor | None,
        att_src: Tensor | None,
        att_dst: Tensor | None,
        seed: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor | None]:
        given = (score_src, score_dst, edge_score, att_src, att_dst, seed)
        out, out_pos, stats, *scores, alpha = _gat_forward(graph, x, given, options, True)
        ctx.save_for_backward(x, *scores, *given[2:], out, out_pos, stats, alpha)
        ctx.graph, ctx.options = graph, options
        ctx.set_materialize_grads(False)
        return out, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        x, src, dst, edge, att_src, att_dst, seed, out, out_pos, stats, alpha = ctx.saved_tensors
        if grad is None:
            grad = torch.zeros_like(out)
        if torch.is_grad_enabled():
            given = x, None if att_src is not None else src, None if att_dst is not None else dst
            inputs = (*given, edge, att_src, att_dst)
            grads = _reference_backward(_gat_reference, ctx, inputs, seed, grad, grad_alpha)
            return None, *grads, None, None
        slope, dropout, _, backend = ctx.options
        grad_x, grad_src, grad_dst, grad_edge, grad_att = _gatkernels.gat_backward(
            *_arrays(ctx.graph, backend), x, src, dst, edge, slope, dropout, seed,
            att_src, att_dst, out, out_pos, stats, alpha, grad, grad_alpha, backend,
        )  # fmt: skip
        return (
            None,
            grad_x,
            grad_src if att_src is None else None,
            grad_dst if att_dst is None else None,
            None if edge is None else grad_edge,
            None if att_src is None else grad_att[:1],
            None if att_dst is None else grad_att[1:],
            None,
            None,
        )


def _gat_reference(
    graph: Graph,
    x: Tensor,
    score_src: Tensor | None,
    score_dst: Tensor | None,
    edge_score: Tensor | None,
    att_src: Tensor | None,
    att_dst: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    if att_src is not None:
        score_src = (x * att_src).sum(-1)
    if att_dst is not None:
        score_dst = (x * att_dst).sum(-1)
    assert score_src is not None
    return reference.gat_attention(graph, x, score_src, score_dst, edge_score, **options)


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
    """``scores``: score_src, score_dst, edge_score, att_src, att_dst, seed. An attention vector
    ``[1, H, C]`` stands for a score that is None."""
    if _needs_backward(x, *scores[:5]):
        src, dst, *rest = scores
        result: tuple[Tensor, Tensor | None] = GATAttention.apply(
            graph, x, src, _apart(src, dst), *rest, options
        )
        return result
    out, *_, alpha = _gat_forward(graph, x, scores, options, False)
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
