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
from gatkernels.ops import attention, dot
from gatkernels.ops.call import (
    DotCall,
    DotGrads,
    DotInputs,
    DotSaved,
    DotScoring,
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
    first_head: int = 0  # what head 0 is to dropout's draws

    def scoring(self, seed: Tensor | None) -> Scoring:
        return Scoring(self.negative_slope, self.dropout, seed, self.first_head)


class DotOptions(NamedTuple):
    scale: float
    dropout: float
    return_attention: bool
    backend: str
    first_head: int = 0  # what head 0 is to dropout's draws

    def scoring(self, seed: Tensor | None) -> DotScoring:
        return DotScoring(self.scale, self.dropout, seed, self.first_head)


#: In the order of the record of their gradients, None where not asked for or not there.
Results = tuple[Tensor | None, ...]
#: The results; the inputs and the rest of what is saved.
Forward = tuple[Results, tuple[Any, ...], tuple[Any, ...]]


class Operator(NamedTuple):
    """An attention: its records, its ops, its formula."""

    inputs: type[Any]
    saved: type[Any]
    #: Of edges, inputs and scoring.
    call: Callable[..., Any]
    #: Of a call, whether ``alpha`` is wanted, whether a backward comes, and the backend.
    forward: Callable[..., Forward]
    #: The record of what is saved and the results' gradients, some None, as a record of these.
    grads: Callable[..., Any]
    #: Of a call, CSC, both records, which inputs need a gradient (a record of them), and the
    #: backend: gradients in the order of the inputs; None for what is not there.
    backward: Callable[..., tuple[Tensor | None, ...]]
    #: All results of a graph, inputs and scoring, by the reference.
    formula: Callable[..., Results]
    #: Which results there are, of the inputs and whether ``alpha`` is wanted.
    has: Callable[[Any, bool], tuple[bool, ...]]
    #: Of each input, its dimension of heads; None where all heads share it.
    heads: tuple[int | None, ...]


def _gat_forward(call: GatCall, weights: bool, training: bool, backend: str) -> Forward:
    out, out_pos, stats, found_src, found_dst = attention.gat_forward(
        call, training, training or weights, backend
    )
    csr, (x, src, dst, edge, att_src, att_dst), scoring = call
    src = src if att_src is None else found_src
    dst = dst if att_dst is None else found_dst
    inputs, alpha = (x, src, dst, edge, att_src, att_dst), None
    if weights:
        alpha = attention.gat_alpha(GatCall(csr, GatInputs(*inputs), scoring), stats, backend)
    return (out, alpha), inputs, (out, out_pos, stats, alpha)


def _gat_backward(
    call: GatCall, csc: Edges, saved: GatSaved, grads: OutGrads, needs: Any, backend: str
) -> tuple[Tensor | None, ...]:
    of_edges = needs.edge_score
    x, src, dst, edge, att = attention.gat_backward(call, csc, saved, grads, of_edges, backend)
    _, _, _, _, att_src, att_dst = call.inputs
    return (
        x,
        src if att_src is None else None,
        dst if att_dst is None else None,
        edge if of_edges else None,
        None if att_src is None else att[:1],
        None if att_dst is None else att[1:],
    )


def _gat_formula(graph: Graph, inputs: GatInputs, scoring: Scoring) -> Results:
    x, src, dst, edge, att_src, att_dst = inputs
    if att_src is not None:
        src = (x * att_src).sum(-1)
    if att_dst is not None:
        dst = (x * att_dst).sum(-1)
    assert src is not None
    return reference.gat_attention(graph, x, src, dst, edge, **scoring._asdict())


def _rowwise_forward(call: RowwiseCall, weights: bool, training: bool, backend: str) -> Forward:
    out, stats = attention.rowwise_forward(call, training or weights, backend)
    alpha = attention.rowwise_alpha(call, stats, backend) if weights else None
    return (out, alpha), call.inputs, (out, stats, alpha)


def _rowwise_backward(
    call: RowwiseCall, csc: Edges, saved: RowwiseSaved, grads: OutGrads, needs: Any, backend: str
) -> tuple[Tensor | None, ...]:
    *found, edge = attention.rowwise_backward(call, csc, saved, grads, needs.edge, backend)
    return (*found, edge if needs.edge else None)


def _zeros_for(result: Tensor, grad: Tensor | None) -> Tensor:
    return torch.zeros_like(result) if grad is None else grad


def _out_grads(
    saved: GatSaved | RowwiseSaved, out: Tensor | None, alpha: Tensor | None
) -> OutGrads:
    return OutGrads(_zeros_for(saved.out, out), alpha)


def _has_out(inputs: GatInputs | RowwiseInputs, weights: bool) -> tuple[bool, ...]:
    return True, weights


def _rowwise(scorer: str, formula: Callable[..., Results]) -> Operator:
    def call(csr: Edges, inputs: RowwiseInputs, scoring: Scoring) -> RowwiseCall:
        return RowwiseCall(scorer, csr, inputs, scoring)

    def of_inputs(graph: Graph, inputs: RowwiseInputs, scoring: Scoring) -> Results:
        return formula(graph, *inputs, **scoring._asdict())

    return Operator(
        inputs=RowwiseInputs,
        saved=RowwiseSaved,
        call=call,
        forward=_rowwise_forward,
        grads=_out_grads,
        backward=_rowwise_backward,
        formula=of_inputs,
        has=_has_out,
        heads=(1, 1, 0, 1),
    )


def _dot_forward(call: DotCall, weights: bool, training: bool, backend: str) -> Forward:
    out, found, stats = dot.dot_forward(call, training or weights, backend)
    edge_out = None if call.inputs.edge is None else found
    alpha = dot.dot_alpha(call, stats, backend) if weights else None
    return (out, edge_out, alpha), call.inputs, (out, edge_out, stats, alpha)


def _dot_grads(
    saved: DotSaved, out: Tensor | None, edge_out: Tensor | None, alpha: Tensor | None
) -> DotGrads:
    if saved.edge_out is not None:
        edge_out = _zeros_for(saved.edge_out, edge_out)
    return DotGrads(_zeros_for(saved.out, out), edge_out, alpha)


def _dot_backward(
    call: DotCall, csc: Edges, saved: DotSaved, grads: DotGrads, needs: Any, backend: str
) -> tuple[Tensor | None, ...]:
    *found, edge, edge_query = dot.dot_backward(call, csc, saved, grads, needs.edge, backend)
    has_query = call.inputs.edge_query is not None
    return (*found, edge if needs.edge else None, edge_query if has_query else None)


def _dot_formula(graph: Graph, inputs: DotInputs, scoring: DotScoring) -> Results:
    return reference.dot_attention(graph, *inputs, **scoring._asdict())


def _dot_has(inputs: DotInputs, weights: bool) -> tuple[bool, ...]:
    return True, inputs.edge is not None, weights


OPERATORS = {
    "gat": Operator(
        inputs=GatInputs,
        saved=GatSaved,
        call=GatCall,
        forward=_gat_forward,
        grads=_out_grads,
        backward=_gat_backward,
        formula=_gat_formula,
        has=_has_out,
        heads=(1, 1, 1, 1, 1, 1),
    ),
    "gatv2": _rowwise("gatv2", reference.gatv2_attention),
    "dot": Operator(
        inputs=DotInputs,
        saved=DotSaved,
        call=DotCall,
        forward=_dot_forward,
        grads=_dot_grads,
        backward=_dot_backward,
        formula=_dot_formula,
        has=_dot_has,
        heads=(1, 1, 1, None, 1),
    ),
}


def _reference_backward(
    formula: Any, graph: Graph, inputs: Any, scoring: Any, grads: Any
) -> list[Tensor | None]:
    """Differentiable gradients of the inputs that need one."""
    found = formula(graph, inputs, scoring)
    outputs = [(r, g) for r, g in zip(found, grads, strict=True) if g is not None]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    results, weights = zip(*outputs, strict=True)
    found = iter(
        torch.autograd.grad(results, wanted, weights, create_graph=True, allow_unused=True)
    )
    return [next(found) if t is not None and t.requires_grad else None for t in inputs]


class Attention(torch.autograd.Function):
    """The results of an operator."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        graph: Graph,
        options: Any,
        seed: Tensor | None,
        *tensors: Tensor | None,
    ) -> Results:
        operator = OPERATORS[name]
        inputs, scoring = operator.inputs(*tensors), options.scoring(seed)
        call = operator.call(graph.edges_by_row(options.backend, options.dropout), inputs, scoring)
        results, inputs, saved = operator.forward(
            call, options.return_attention, True, options.backend
        )
        ctx.save_for_backward(seed, *inputs, *saved)
        ctx.name, ctx.graph, ctx.options = name, graph, options
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        operator, options = OPERATORS[ctx.name], ctx.options
        seed, *tensors = ctx.saved_tensors
        count = len(operator.inputs._fields)
        inputs, saved = operator.inputs(*tensors[:count]), operator.saved(*tensors[count:])
        scoring, grads = options.scoring(seed), operator.grads(saved, *given)
        if torch.is_grad_enabled():
            found: Any = _reference_backward(operator.formula, ctx.graph, inputs, scoring, grads)
        else:
            csr = ctx.graph.edges_by_row(options.backend, options.dropout)
            csc = ctx.graph.edges_by_column(options.backend, options.dropout)
            call = operator.call(csr, inputs, scoring)
            needs = operator.inputs(*ctx.needs_input_grad[4:])
            found = operator.backward(call, csc, saved, grads, needs, options.backend)
        return None, None, None, None, *found


def _distinct(inputs: Any) -> Any:
    """Compiled code takes no tensor twice as inputs of a Function."""
    if not torch.compiler.is_compiling():
        return inputs
    return [
        t.view_as(t) if t is not None and any(t is other for other in inputs[:place]) else t
        for place, t in enumerate(inputs)
    ]


def attend(name: str, graph: Graph, inputs: Any, options: Any, seed: Tensor | None) -> Any:
    """The results of an operator on its record of inputs."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return Attention.apply(name, graph, options, seed, *_distinct(inputs))
    operator = OPERATORS[name]
    call = operator.call(
        graph.edges_by_row(options.backend, options.dropout), inputs, options.scoring(seed)
    )
    results, *_ = operator.forward(call, options.return_attention, False, options.backend)
    return results
