"""Attention over shards by halo exchange: rows travel to where they are gathered.

A forward brings the sources' rows of a rank's in-edges to it, a backward the destinations' rows of
its out-edges: their gradients and fields. Each row is then summed on one rank, over its edges in
the order of one process; no gradient is sent, but of per-edge inputs whose edge was cut. In a
backward all that is known before travels while destinations compute their fields.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gatkernels.backends import kernels
from gatkernels.backends.protocol import Kernels
from gatkernels.distributed.exchange import Halo, Route, Transfer
from gatkernels.distributed.peers import Peers
from gatkernels.distributed.shard import Shard
from gatkernels.ops.autograd import OPERATORS, Results
from gatkernels.ops.call import Edges, GatCall, GatDestinationGrads


class Sharded(Protocol):
    """What is asked of a graph."""

    shard: Shard
    peers: Peers
    traffic: Counter[str]

    def edges_by_row(self, backend: str, dropout: float) -> Edges: ...

    def edges_by_column(self, backend: str, dropout: float) -> Edges: ...


class _Travel(NamedTuple):
    """Which inputs of an operator travel: fields of its record."""

    sources: tuple[str, ...]  # rows that a forward gathers
    destinations: tuple[str, ...]  # rows that a backward gathers, besides gradients and fields
    edges: str
    kept: tuple[str, ...]  # of the sources' rows, those that the backward gathers, too


_TRAVEL = {
    "gat": _Travel(("x", "score_src"), (), "edge_score", kept=("score_src",)),
    "gatv2": _Travel(("x_src",), ("x_dst",), "edge", kept=("x_src",)),
    "dot": _Travel(("k", "v"), ("q", "edge_query"), "edge", kept=("k", "v")),
}


def attend(name: str, graph: Sharded, inputs: Any, options: Any, seed: Tensor | None) -> Results:
    """The results of own destinations, as :func:`gatkernels.ops.autograd.attend` gives them."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        results: Results = _Attention.apply(name, graph, options, seed, *inputs)  # type: ignore[no-untyped-call]
        return results
    return _forward(name, graph, inputs, options, seed, False)[0]


def _forward(
    name: str, graph: Sharded, inputs: Any, options: Any, seed: Tensor | None, training: bool
) -> tuple[Results, Any, tuple[Any, ...]]:
    """The results; the record of inputs, with its halo where the backward wants it; what is saved
    besides."""
    operator, travel, backend = OPERATORS[name], _TRAVEL[name], options.backend
    csr, scoring = graph.edges_by_row(backend, options.dropout), options.scoring(seed)
    if name == "gat":
        inputs = _with_scores(operator.call(csr, inputs, scoring), kernels(backend))
    own = [getattr(inputs, field) for field in travel.sources]
    wide = Halo(graph.peers, graph.shard.sources, own, graph.traffic, "forward").wait()
    full = inputs._replace(**dict(zip(travel.sources, wide, strict=True)))
    given = full if name != "gat" else full._replace(att_src=None, att_dst=None)
    call = operator.call(csr, given, scoring)
    results, _, saved = operator.forward(call, options.return_attention, training, backend)
    return results, inputs._replace(**{f: getattr(full, f) for f in travel.kept}), saved


def _with_scores(call: GatCall, run: Kernels) -> Any:
    """The inputs with the scores that are to be taken of x, which are of own rows alone."""
    inputs = call.inputs
    if inputs.att_src is None:
        return inputs
    src, dst = run.node_scores(call)
    return inputs._replace(score_src=src, score_dst=inputs.score_dst if dst is None else dst)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        graph: Sharded,
        options: Any,
        seed: Tensor | None,
        *tensors: Tensor | None,
    ) -> Results:
        inputs = OPERATORS[name].inputs(*tensors)
        results, kept, saved = _forward(name, graph, inputs, options, seed, True)
        ctx.save_for_backward(seed, *kept, *saved)
        ctx.name, ctx.graph, ctx.options = name, graph, options
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> Any:
        refuse_twice()
        operator, graph, options = OPERATORS[ctx.name], ctx.graph, ctx.options
        seed, *tensors = ctx.saved_tensors
        count = len(operator.inputs._fields)
        inputs, saved = operator.inputs(*tensors[:count]), operator.saved(*tensors[count:])
        grads = operator.grads(saved, *given)
        csr = graph.edges_by_row(options.backend, options.dropout)
        call = operator.call(csr, inputs, options.scoring(seed))
        needs = operator.inputs(*ctx.needs_input_grad[4:])
        found = _BACKWARDS[ctx.name](graph, call, saved, grads, needs, options.backend)
        return None, None, None, None, *found


def refuse_twice() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "ShardedGraph: a backward over processes cannot be differentiated again "
            "(create_graph=True); use a gatkernels.Graph in one process"
        )


class _Sending:
    """Rows of destinations, and of edges that were cut, on their way to sources."""

    def __init__(self, name: str, graph: Sharded, call: Any, grads: Any) -> None:
        """Begins with what is known before destinations have computed."""
        self._graph, self._call, self._grads = graph, call, grads
        self._travel, self._of_results = _TRAVEL[name], [f for f in grads._fields if f != "alpha"]
        rows = [getattr(grads, field) for field in self._of_results]
        rows += [getattr(call.inputs, field) for field in self._travel.destinations]
        self._rows = self._halo(graph.shard.destinations, rows, "backward")
        edges = [getattr(call.inputs, self._travel.edges), grads.alpha]
        self._edges = None
        if any(t is not None for t in edges):
            self._edges = self._halo(graph.shard.edges, edges, "edges")

    def _halo(self, route: Route, tensors: list[Tensor | None], op: str) -> Halo:
        return Halo(self._graph.peers, route, tensors, self._graph.traffic, op)

    def wait(self, fields: Tensor) -> tuple[Any, Tensor, Any]:
        """The call, fields ``[own, ...]`` and gradients as sources find them: rows of destinations
        with their halo, and of edges with those of edges that were cut. Once."""
        late = self._halo(self._graph.shard.destinations, [fields], "backward")
        wide, inputs = iter(self._rows.wait()), self._call.inputs
        grads = self._grads._replace(**{field: next(wide) for field in self._of_results})
        inputs = inputs._replace(**{field: next(wide) for field in self._travel.destinations})
        edge, alpha = (None, None) if self._edges is None else self._edges.wait()
        inputs, grads = inputs._replace(**{self._travel.edges: edge}), grads._replace(alpha=alpha)
        (fields_of_all,) = late.wait()
        assert fields_of_all is not None
        return self._call._replace(inputs=inputs), fields_of_all, grads


def _gat_backward(
    graph: Sharded, call: Any, saved: Any, grads: Any, needs: Any, backend: str
) -> tuple[Tensor | None, ...]:
    run, (x, _, _, edge_score, att_src, att_dst) = kernels(backend), call.inputs
    own = len(x)
    sending = _Sending("gat", graph, call, grads)
    found = run.gat_destinations(call, saved, grads)
    call, fields, grads = sending.wait(found.fields)
    call = call._replace(inputs=call.inputs._replace(score_src=call.inputs.score_src[:own]))
    csc = graph.edges_by_column(backend, call.scoring.dropout)
    found = GatDestinationGrads(found.dst, fields)
    x, src, edge, att = run.gat_sources(call, csc, found, grads, needs.edge_score)
    return (
        x,
        src if att_src is None else None,
        found.dst if att_dst is None else None,
        None if edge is None else _home(graph, edge, len(edge_score)),
        None if att_src is None else att[:1],
        None if att_dst is None else att[1:],
    )


def _home(graph: Sharded, grad: Tensor, count: int) -> Tensor:
    """``[count, H]``: gradients of edges where their destinations are, made where sources are."""
    own, cut = grad[:count], grad[count:]
    route = graph.shard.edges
    transfer = Transfer(graph.peers, route.back(), [cut], graph.traffic, "edges")
    come = cut.new_empty(len(route.places), *cut.shape[1:])
    transfer.into([come])
    return own.index_copy(0, route.places, come)


def _rowwise_backward(
    graph: Sharded, call: Any, saved: Any, grads: Any, needs: Any, backend: str
) -> tuple[Tensor | None, ...]:
    run, own = kernels(backend), len(call.inputs.x_dst)
    sending = _Sending("gatv2", graph, call, grads)
    dst, att, edge, fields = run.rowwise_destinations(call, saved, grads, needs.edge)
    call, fields, grads = sending.wait(fields)
    inputs = call.inputs._replace(x_src=call.inputs.x_src[:own])
    call = call._replace(inputs=inputs)
    src = run.rowwise_sources(
        call, graph.edges_by_column(backend, call.scoring.dropout), fields, grads
    )
    return src, dst, att, edge


def _dot_backward(
    graph: Sharded, call: Any, saved: Any, grads: Any, needs: Any, backend: str
) -> tuple[Tensor | None, ...]:
    run, own = kernels(backend), len(call.inputs.q)
    sending = _Sending("dot", graph, call, grads)
    q, edge, edge_query, fields = run.dot_destinations(call, saved, grads, needs.edge)
    call, fields, grads = sending.wait(fields)
    inputs = call.inputs._replace(k=call.inputs.k[:own], v=call.inputs.v[:own])
    call = call._replace(inputs=inputs)
    k, v = run.dot_sources(
        call, graph.edges_by_column(backend, call.scoring.dropout), fields, grads
    )
    return q, k, v, edge, edge_query


_BACKWARDS = {"gat": _gat_backward, "gatv2": _rowwise_backward, "dot": _dot_backward}
