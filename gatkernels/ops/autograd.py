"""One ``torch.autograd.Function`` around the ops of every attention.

Nothing of size ``E x C`` or ``E x H`` is saved. Where the backward itself is to be differentiated
(``create_graph=True``), it runs through the formulas of the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels import reference
from gatkernels.graph import Graph
from gatkernels.ops import attention
from gatkernels.ops.call import (
    Edges,
    GatCall,
    GatInputs,
    GatSaved,
    OutGrads,
    RowwiseCall,
    RowwiseInputs,
    RowwiseSaved,
    Scoring,
)


class Options(NamedTuple):
    """What a call is about besides its tensors."""

    negative_slope: float
    dropout: float
    return_attention: bool
    backend: str

    def scoring(self, seed: Tensor | None) -> Scoring:
        return Scoring(self.negative_slope, self.dropout, seed)


def _csr(graph: Graph, backend: str) -> Edges:
    return Edges(graph.rowptr, graph.col, graph.eid, graph.schedules(backend)[0])


def _csc(graph: Graph, backend: str) -> Edges:
    return Edges(graph.colptr, graph.row, graph.ceid, graph.schedules(backend)[1])


#: ``out``; ``alpha`` where it was asked for, else None; the inputs and the rest of what is saved.
Result = tuple[Tensor, Tensor | None, tuple[Any, ...], tuple[Any, ...]]


class Operator(NamedTuple):
    """An attention: its records, its ops, its formula."""

    inputs: type[Any]
    saved: type[Any]
    #: Of edges, inputs and scoring.
    call: Callable[..., Any]
    #: Of a call, whether ``alpha`` is wanted, whether a backward comes, and the backend.
    forward: Callable[..., Result]
    #: Gradients in the order of the inputs; None for what is not there.
    backward: Callable[..., tuple[Tensor | None, ...]]
    #: ``out`` and ``alpha`` of a graph, inputs and scoring, by the reference.
    formula: Callable[..., tuple[Tensor, Tensor]]


def _gat_forward(call: GatCall, weights: bool, training: bool, backend: str) -> Result:
    out, out_pos, stats, found_src, found_dst = attention.gat_forward(
        call, training, training or weights, backend
    )
    csr, (x, src, dst, edge, att_src, att_dst), scoring = call
    src = src if att_src is None else found_src
    dst = dst if att_dst is None else found_dst
    inputs, alpha = (x, src, dst, edge, att_src, att_dst), None
    if weights:
        alpha = attention.gat_alpha(GatCall(csr, GatInputs(*inputs), scoring), stats, backend)
    return out, alpha, inputs, (out, out_pos, stats, alpha)


def _gat_backward(
    call: GatCall, csc: Edges, saved: GatSaved, grads: OutGrads, backend: str
) -> tuple[Tensor | None, ...]:
    x, src, dst, edge, att = attention.gat_backward(call, csc, saved, grads, backend)
    _, _, _, edge_score, att_src, att_dst = call.inputs
    return (
        x,
        src if att_src is None else None,
        dst if att_dst is None else None,
        None if edge_score is None else edge,
        None if att_src is None else att[:1],
        None if att_dst is None else att[1:],
    )


def _gat_formula(graph: Graph, inputs: GatInputs, scoring: Scoring) -> tuple[Tensor, Tensor]:
    x, src, dst, edge, att_src, att_dst = inputs
    if att_src is not None:
        src = (x * att_src).sum(-1)
    if att_dst is not None:
        dst = (x * att_dst).sum(-1)
    assert src is not None
    return reference.gat_attention(graph, x, src, dst, edge, **scoring._asdict())


def _rowwise_forward(call: RowwiseCall, weights: bool, training: bool, backend: str) -> Result:
    out, stats = attention.rowwise_forward(call, training or weights, backend)
    alpha = attention.rowwise_alpha(call, stats, backend) if weights else None
    return out, alpha, call.inputs, (out, stats, alpha)


def _rowwise_backward(
    call: RowwiseCall, csc: Edges, saved: RowwiseSaved, grads: OutGrads, backend: str
) -> tuple[Tensor | None, ...]:
    *found, edge = attention.rowwise_backward(call, csc, saved, grads, backend)
    return (*found, None if call.inputs.edge is None else edge)


def _rowwise(scorer: str, formula: Callable[..., tuple[Tensor, Tensor]]) -> Operator:
    def call(csr: Edges, inputs: RowwiseInputs, scoring: Scoring) -> RowwiseCall:
        return RowwiseCall(scorer, csr, inputs, scoring)

    def of_inputs(graph: Graph, inputs: RowwiseInputs, scoring: Scoring) -> tuple[Tensor, Tensor]:
        return formula(graph, *inputs, **scoring._asdict())

    return Operator(
        RowwiseInputs, RowwiseSaved, call, _rowwise_forward, _rowwise_backward, of_inputs
    )


OPERATORS = {
    "gat": Operator(GatInputs, GatSaved, GatCall, _gat_forward, _gat_backward, _gat_formula),
    "gatv2": _rowwise("gatv2", reference.gatv2_attention),
}


def _reference_backward(
    formula: Any, graph: Graph, inputs: Any, scoring: Scoring, grads: OutGrads
) -> list[Tensor | None]:
    """Differentiable gradients of the inputs that need one."""
    out, alpha = formula(graph, inputs, scoring)
    outputs = [(out, grads.out)] + ([] if grads.alpha is None else [(alpha, grads.alpha)])
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    results, weights = zip(*outputs, strict=True)
    found = iter(
        torch.autograd.grad(results, wanted, weights, create_graph=True, allow_unused=True)
    )
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


class Attention(torch.autograd.Function):
    """``out`` and, where asked for, ``alpha``."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        graph: Graph,
        options: Options,
        seed: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        operator = OPERATORS[name]
        inputs, scoring = operator.inputs(*tensors), options.scoring(seed)
        call = operator.call(_csr(graph, options.backend), inputs, scoring)
        out, alpha, inputs, saved = operator.forward(
            call, options.return_attention, True, options.backend
        )
        ctx.save_for_backward(seed, *inputs, *saved)
        ctx.name, ctx.graph, ctx.options = name, graph, options
        ctx.set_materialize_grads(False)
        return out, alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_alpha: Tensor | None) -> Any:
        operator, options = OPERATORS[ctx.name], ctx.options
        seed, *tensors = ctx.saved_tensors
        count = len(operator.inputs._fields)
        inputs, saved = operator.inputs(*tensors[:count]), operator.saved(*tensors[count:])
        scoring = options.scoring(seed)
        grads = OutGrads(torch.zeros_like(saved.out) if grad is None else grad, grad_alpha)
        if torch.is_grad_enabled():
            found: Any = _reference_backward(operator.formula, ctx.graph, inputs, scoring, grads)
        else:
            call = operator.call(_csr(ctx.graph, options.backend), inputs, scoring)
            csc = _csc(ctx.graph, options.backend)
            found = operator.backward(call, csc, saved, grads, options.backend)
        return None, None, None, None, *found


def _distinct(inputs: Any) -> Any:
    """Compiled code takes no tensor twice as inputs of a Function."""
    if not torch.compiler.is_compiling():
        return inputs
    return [
        t.view_as(t) if t is not None and any(t is other for other in inputs[:place]) else t
        for place, t in enumerate(inputs)
    ]


def attend(
    name: str, graph: Graph, inputs: Any, options: Options, seed: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``out`` and, where asked for, ``alpha`` of an operator on its record of inputs."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        found: tuple[Tensor, Tensor | None] = Attention.apply(
            name, graph, options, seed, *_distinct(inputs)
        )
        return found
    operator = OPERATORS[name]
    call = operator.call(_csr(graph, options.backend), inputs, options.scoring(seed))
    out, alpha, *_ = operator.forward(call, options.return_attention, False, options.backend)
    return out, alpha
