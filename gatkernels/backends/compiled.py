"""The compiled attentions: tensors are made fit for them, and their results allocated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gatkernels.backends import threads
from gatkernels.backends.fit import (
    fit,
    fit_dot,
    fit_dot_grads,
    fit_grads,
    fit_rows,
    grad_of_edges,
    rule,
)
from gatkernels.backends.native import code, cpu_module, empty
from gatkernels.ops.call import (
    DotCall,
    DotDestinationGrads,
    DotGrads,
    DotSaved,
    DotSourceGrads,
    Edges,
    GatCall,
    GatDestinationGrads,
    GatSaved,
    GatSourceGrads,
    OutGrads,
    RowwiseCall,
    RowwiseDestinationGrads,
    RowwiseSaved,
)
from gatkernels.ops.checks import SUM_DTYPES


class Compiled:
    """The kernels of a compiled module: the CPU's, or of a subclass that says what it needs more.

    Its functions are those of :class:`gatkernels.backends.protocol.Kernels`.
    """

    # On a small graph this takes longer than the kernels: plain statements, few calls.

    def _module(self) -> Any:
        return cpu_module()

    def _context(
        self,
        edges: Edges,
        sums: Tensor,
        rows: Tensor | None = None,
        matrices: int = 1,
        vectors: int = 0,
        channels: int | None = None,
        terms: int = 0,
    ) -> Any:
        """What kernels need besides the records, and what must live until they have run.

        For edges that gather from so many matrices like ``rows [nodes, H, C]``, and gradients of so
        many attention vectors; ``sums`` has their dtype. The results of a row have so many
        ``channels`` per head, two C where nothing is said; so many ``terms`` of an edge and head
        go from one kernel to the next.
        """
        return threads.count(), None

    def node_scores(self, call: GatCall) -> tuple[Tensor, Tensor | None]:
        x, _, _, _, att_src, att_dst = inputs = fit(call.inputs)
        assert att_src is not None
        rows, heads, _ = x.shape
        score_src = att_src.new_empty(rows, heads)
        score_dst = None if att_dst is None else att_src.new_empty(rows, heads)
        context, _alive = self._context(call.csr, att_src)
        self._module().node_scores(code(x), context, inputs, score_src, score_dst)
        return score_src, score_dst

    def gat_forward(
        self, call: GatCall, training: bool, statistics: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        csr, inputs, scoring = call
        how = rule(scoring)
        x, src, *_ = inputs = fit(inputs)
        assert src is not None
        rows, (_, heads, channels) = csr.rowptr.shape[0] - 1, x.shape
        out = empty(x, rows, heads, channels)
        # src: in the dtype of sums
        out_pos = empty(src, rows, heads, channels) if training else None
        stats = empty(src, rows, 3, heads) if statistics else None
        context, _alive = self._context(csr, src, x)
        self._module().gat_forward(code(x), context, csr, inputs, how, out, out_pos, stats)
        return out, out_pos, stats

    def gat_alpha(self, call: GatCall, stats: Tensor) -> Tensor:
        csr, inputs, scoring = call
        how = rule(scoring)
        alpha = stats.new_zeros(csr.col.shape[0], stats.shape[2])
        context, _alive = self._context(csr, stats)
        self._module().gat_alpha(code(stats), context, csr, fit(inputs), how, stats, alpha)
        return alpha

    def gat_destinations(
        self, call: GatCall, saved: GatSaved, grads: OutGrads
    ) -> GatDestinationGrads:
        csr, inputs, scoring = call
        how, stats = rule(scoring), saved.stats
        x, _, dst, *_ = inputs = fit(inputs)
        grads = fit_grads(grads)
        assert dst is not None
        fields = empty(stats, csr.rowptr.shape[0] - 1, 4 * x.shape[1])
        results = GatDestinationGrads(stats.new_empty(dst.shape), fields)
        context, _alive = self._context(csr, stats)
        self._module().gat_destinations(code(x), context, csr, inputs, how, saved, grads, results)
        return results

    def gat_sources(
        self,
        call: GatCall,
        csc: Edges,
        found: GatDestinationGrads,
        grads: OutGrads,
        of_edges: bool,
    ) -> GatSourceGrads:
        _, inputs, scoring = call
        how = rule(scoring)
        x, src, _, edge, att_src, att_dst = inputs = fit(inputs)
        grads = fit_grads(grads)
        assert src is not None
        vectors = (att_src is not None) + (att_dst is not None)
        results = GatSourceGrads(
            empty(x, *x.shape),
            src.new_empty(src.shape),
            grad_of_edges(edge, of_edges),
            src.new_empty(vectors, *x.shape[1:]),
        )
        context, _alive = self._context(csc, src, grads.out, 1, vectors)
        self._module().gat_sources(code(x), context, csc, inputs, how, grads, found, results)
        return results

    def rowwise_forward(self, call: RowwiseCall, statistics: bool) -> tuple[Tensor, Tensor | None]:
        scorer, csr, inputs, scoring = call
        how = rule(scoring)
        x, _, att, _ = inputs = fit_rows(inputs)
        rows, (_, heads, channels) = csr.rowptr.shape[0] - 1, x.shape
        out = empty(x, rows, heads, channels)
        # att: in the dtype of sums
        stats = empty(att, rows, 3, heads) if statistics else None
        context, _alive = self._context(csr, att, x)
        self._module().rowwise_forward(code(x), context, scorer, csr, inputs, how, out, stats)
        return out, stats

    def rowwise_alpha(self, call: RowwiseCall, stats: Tensor) -> Tensor:
        scorer, csr, inputs, scoring = call
        how = rule(scoring)
        inputs = fit_rows(inputs)
        alpha = stats.new_zeros(csr.col.shape[0], stats.shape[2])
        context, _alive = self._context(csr, stats, inputs.x_src)
        self._module().rowwise_alpha(
            code(inputs.x_src), context, scorer, csr, inputs, how, stats, alpha
        )
        return alpha

    def rowwise_destinations(
        self, call: RowwiseCall, saved: RowwiseSaved, grads: OutGrads, of_edges: bool
    ) -> RowwiseDestinationGrads:
        scorer, csr, inputs, scoring = call
        how = rule(scoring)
        x, x_dst, att, edge = inputs = fit_rows(inputs)
        grads = fit_grads(grads)
        results = RowwiseDestinationGrads(
            empty(x, *x_dst.shape),
            att.new_empty(att.shape),
            grad_of_edges(edge, of_edges),
            empty(saved.stats, x_dst.shape[0], 4 * x.shape[1]),
        )
        context, _alive = self._context(csr, att, x, 1, 1)
        self._module().rowwise_destinations(
            code(x), context, scorer, csr, inputs, how, saved, grads, results
        )
        return results

    def rowwise_sources(
        self, call: RowwiseCall, csc: Edges, fields: Tensor, grads: OutGrads
    ) -> Tensor:
        scorer, _, inputs, scoring = call
        how = rule(scoring)
        x, _, att, _ = inputs = fit_rows(inputs)
        grads = fit_grads(grads)
        grad_x = empty(x, *x.shape)
        context, _alive = self._context(csc, att, grads.out, 2)
        self._module().rowwise_sources(
            code(x), context, scorer, csc, inputs, how, grads, fields, grad_x
        )
        return grad_x

    def dot_forward(
        self, call: DotCall, statistics: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        csr, inputs, scoring = call
        how = rule(scoring)
        q, _, v, _, edge_query = inputs = fit_dot(inputs)
        rows, heads, _ = q.shape
        out = empty(v, rows, heads, v.shape[2])
        edge_out = None if edge_query is None else empty(q, *edge_query.shape)
        sums = _sums(q)
        stats = empty(sums, rows, 3, heads) if statistics else None
        results = v.shape[2] + _channels(edge_query)
        context, _alive = self._context(csr, sums, v, 2, channels=results)
        self._module().dot_forward(code(q), context, csr, inputs, how, out, edge_out, stats)
        return out, edge_out, stats

    def dot_alpha(self, call: DotCall, stats: Tensor) -> Tensor:
        csr, inputs, scoring = call
        how = rule(scoring)
        inputs = fit_dot(inputs)
        alpha = stats.new_zeros(csr.col.shape[0], stats.shape[2])
        context, _alive = self._context(csr, stats, inputs.k)
        self._module().dot_alpha(code(inputs.q), context, csr, inputs, how, stats, alpha)
        return alpha

    def dot_destinations(
        self, call: DotCall, saved: DotSaved, grads: DotGrads, of_edges: bool
    ) -> DotDestinationGrads:
        csr, inputs, scoring = call
        how = rule(scoring)
        q, _, v, edge, edge_query = inputs = fit_dot(inputs)
        grads = fit_dot_grads(grads)
        results = DotDestinationGrads(
            empty(q, *q.shape),
            grad_of_edges(edge, of_edges),
            None if edge_query is None else empty(q, *edge_query.shape),
            empty(saved.stats, q.shape[0], 4 * q.shape[1]),
        )
        context, _alive = self._context(
            csr,
            saved.stats,
            v,
            2,
            channels=q.shape[2] + _channels(edge_query),
            terms=0 if results.edge is None else 2,
        )
        self._module().dot_destinations(code(q), context, csr, inputs, how, saved, grads, results)
        return results

    def dot_sources(
        self, call: DotCall, csc: Edges, fields: Tensor, grads: DotGrads
    ) -> DotSourceGrads:
        _, inputs, scoring = call
        how = rule(scoring)
        q, k, v, *_ = inputs = fit_dot(inputs)
        grads = fit_dot_grads(grads)
        results = DotSourceGrads(empty(k, *k.shape), empty(v, *v.shape))
        context, _alive = self._context(csc, fields, grads.out, 2, channels=k.shape[2] + v.shape[2])
        self._module().dot_sources(code(q), context, csc, inputs, how, grads, fields, results)
        return results


def _sums(x: Tensor) -> Tensor:
    """Nothing, in the dtype of sums."""
    return x.new_empty(0, dtype=SUM_DTYPES[x.dtype])


def _channels(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.shape[2]


CPU = Compiled()
