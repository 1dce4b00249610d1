"""The compiled kernels: tensors are made fit for them, and their results allocated."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from gatkernels.ops import philox
from gatkernels.ops.call import (
    DotCall,
    DotDestinationGrads,
    DotGrads,
    DotInputs,
    DotSaved,
    DotScoring,
    DotSourceGrads,
    Edges,
    GatCall,
    GatDestinationGrads,
    GatInputs,
    GatSaved,
    GatSourceGrads,
    OutGrads,
    RowwiseCall,
    RowwiseDestinationGrads,
    RowwiseInputs,
    RowwiseSaved,
    Scoring,
)
from gatkernels.ops.checks import DTYPE_CODES, SUM_DTYPES

_cpu: Any = None
#: Why the compiled CPU module cannot be used; None where it can.
cpu_missing: str | None = None
try:  # torch is imported first, so that both share one OpenMP runtime
    _cpu = importlib.import_module("gatkernels._cpu")
except ModuleNotFoundError:
    cpu_missing = (
        "the compiled module gatkernels._cpu is missing; "
        "install from source with a C++ compiler: pip install ."
    )
except ImportError as error:
    cpu_missing = f"the compiled module gatkernels._cpu cannot be loaded: {error}"


def cpu_module() -> Any:
    if _cpu is None:
        raise RuntimeError(f"gatkernels: {cpu_missing}")
    return _cpu


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _rows(tensor: Tensor) -> Tensor:
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


LARGE = 1 << 22  # bytes from which large pages are worth asking for


def empty(like: Tensor, *size: int) -> Tensor:
    """Uninitialised memory of the dtype and device of ``like`` for a kernel to write."""
    tensor = like.new_empty(size)
    if tensor.nbytes >= LARGE and tensor.device.type == "cpu":
        cpu_module().want_large_pages(tensor, tensor.nbytes)
    return tensor


def build_csr(
    row: Tensor, other: Tensor, num_rows: int, num_others: int, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """CSR of edges grouped by ``row``, and the place of an id out of range (-1: none)."""
    (rowptr, col, eid), bad = _build((row, other), (num_rows, num_others), self_loops, both=False)
    return rowptr, col, eid, bad


def build_graph(
    edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool
) -> tuple[tuple[Tensor, ...], int]:
    """CSR by destination and CSC, and the place of an id out of range (-1: none)."""
    src, dst = edge_index.unbind()
    return _build((dst, src), (num_dst, num_src), self_loops, both=True)


def _build(
    ends: tuple[Tensor, Tensor], counts: tuple[int, int], self_loops: bool, both: bool
) -> tuple[tuple[Tensor, ...], int]:
    row, other = ends[0].contiguous(), ends[1].contiguous()
    edges = row.shape[0]
    places = edges + (min(counts) if self_loops else 0)
    sides: list[tuple[Tensor, ...] | None] = []
    for count in counts if both else counts[:1]:
        ids = (torch.empty(places, dtype=torch.int32) for _ in range(2))
        sides.append((torch.empty(count + 1, dtype=torch.int64), *ids))
    if not both:
        sides.append(None)
    bad = cpu_module().build_graph(
        row,
        other,
        row.dtype == torch.int64,
        edges,
        *counts,
        self_loops,
        torch.get_num_threads(),
        *sides,
    )
    return tuple(array for side in sides for array in side or ()), bad


def floats_on_cpu(x: Tensor) -> bool:
    """Whether kernels take it that are the CPU's alone, for float32 and float64."""
    on_cpu = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    return on_cpu and cpu_missing is None


def sparse_product(
    rowptr: Tensor, col: Tensor, order: Tensor | None, values: Tensor, dense: Tensor
) -> Tensor:
    dense, values = _rows(dense), values.contiguous()
    rows, width = rowptr.shape[0] - 1, dense.shape[1]
    out = empty(dense, rows, width)
    cpu_module().sparse_product(
        _code(dense), torch.get_num_threads(), rowptr, col, order, rows, width, values, dense, out
    )
    return out


def sparse_transposed_product(
    crow: Tensor, col: Tensor, values: Tensor, dense: Tensor, columns: int
) -> Tensor:
    dense, values = _rows(dense), values.contiguous()
    rows, width = dense.shape
    out = empty(dense, columns, width)
    cpu_module().sparse_transposed_product(
        _code(dense), torch.get_num_threads(), crow, col, rows, columns, width, values, dense, out
    )
    return out


#: What is done to features besides dropout, as numbered in the kernels.
NONE, ELU, ELU_GRAD = range(3)


def feature_dropout(
    x: Tensor, p: float, seed: Tensor | None, activation: int = NONE, grad: Tensor | None = None
) -> Tensor:
    x, grad = x.contiguous(), _contiguous(grad)
    out = empty(x, *x.shape)
    cpu_module().feature_dropout(
        _code(x),
        torch.get_num_threads(),
        x.numel(),
        seed,
        philox.threshold(p),
        philox.scale(p),
        activation,
        x,
        grad,
        out,
    )
    return out


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
        return torch.get_num_threads(), None

    def node_scores(self, call: GatCall) -> tuple[Tensor, Tensor | None]:
        x, _, _, _, att_src, att_dst = inputs = fit(call.inputs)
        assert att_src is not None
        rows, heads, _ = x.shape
        score_src = att_src.new_empty(rows, heads)
        score_dst = None if att_dst is None else att_src.new_empty(rows, heads)
        context, _alive = self._context(call.csr, att_src)
        self._module().node_scores(_code(x), context, inputs, score_src, score_dst)
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
        self._module().gat_forward(_code(x), context, csr, inputs, how, out, out_pos, stats)
        return out, out_pos, stats

    def gat_alpha(self, call: GatCall, stats: Tensor) -> Tensor:
        csr, inputs, scoring = call
        how = rule(scoring)
        alpha = stats.new_zeros(csr.col.shape[0], stats.shape[2])
        context, _alive = self._context(csr, stats)
        self._module().gat_alpha(_code(stats), context, csr, fit(inputs), how, stats, alpha)
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
        self._module().gat_destinations(_code(x), context, csr, inputs, how, saved, grads, results)
        return results

    def gat_sources(
        self, call: GatCall, csc: Edges, found: GatDestinationGrads, grads: OutGrads
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
            grad_of_edges(edge),
            src.new_empty(vectors, *x.shape[1:]),
        )
        context, _alive = self._context(csc, src, grads.out, 1, vectors)
        self._module().gat_sources(_code(x), context, csc, inputs, how, grads, found, results)
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
        self._module().rowwise_forward(_code(x), context, scorer, csr, inputs, how, out, stats)
        return out, stats

    def rowwise_alpha(self, call: RowwiseCall, stats: Tensor) -> Tensor:
        scorer, csr, inputs, scoring = call
        how = rule(scoring)
        inputs = fit_rows(inputs)
        alpha = stats.new_zeros(csr.col.shape[0], stats.shape[2])
        context, _alive = self._context(csr, stats, inputs.x_src)
        code = _code(inputs.x_src)
        self._module().rowwise_alpha(code, context, scorer, csr, inputs, how, stats, alpha)
        return alpha

    def rowwise_destinations(
        self, call: RowwiseCall, saved: RowwiseSaved, grads: OutGrads
    ) -> RowwiseDestinationGrads:
        scorer, csr, inputs, scoring = call
        how = rule(scoring)
        x, x_dst, att, edge = inputs = fit_rows(inputs)
        grads = fit_grads(grads)
        results = RowwiseDestinationGrads(
            empty(x, *x_dst.shape),
            att.new_empty(att.shape),
            grad_of_edges(edge),
            empty(saved.stats, x_dst.shape[0], 4 * x.shape[1]),
        )
        context, _alive = self._context(csr, att, x, 1, 1)
        self._module().rowwise_destinations(
            _code(x), context, scorer, csr, inputs, how, saved, grads, results
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
            _code(x), context, scorer, csc, inputs, how, grads, fields, grad_x
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
        self._module().dot_forward(_code(q), context, csr, inputs, how, out, edge_out, stats)
        return out, edge_out, stats

    def dot_alpha(self, call: DotCall, stats: Tensor) -> Tensor:
        csr, inputs, scoring = call
        how = rule(scoring)
        inputs = fit_dot(inputs)
        alpha = stats.new_zeros(csr.col.shape[0], stats.shape[2])
        context, _alive = self._context(csr, stats, inputs.k)
        self._module().dot_alpha(_code(inputs.q), context, csr, inputs, how, stats, alpha)
        return alpha

    def dot_destinations(
        self, call: DotCall, saved: DotSaved, grads: DotGrads
    ) -> DotDestinationGrads:
        csr, inputs, scoring = call
        how = rule(scoring)
        q, _, v, edge, edge_query = inputs = fit_dot(inputs)
        grads = fit_dot_grads(grads)
        results = DotDestinationGrads(
            empty(q, *q.shape),
            grad_of_edges(edge),
            None if edge_query is None else empty(q, *edge_query.shape),
            empty(saved.stats, q.shape[0], 4 * q.shape[1]),
        )
        context, _alive = self._context(
            csr,
            saved.stats,
            v,
            2,
            channels=q.shape[2] + _channels(edge_query),
            terms=0 if edge is None else 2,
        )
        self._module().dot_destinations(_code(q), context, csr, inputs, how, saved, grads, results)
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
        self._module().dot_sources(_code(q), context, csc, inputs, how, grads, fields, results)
        return results


def _sums(x: Tensor) -> Tensor:
    """Nothing, in the dtype of sums."""
    return x.new_empty(0, dtype=SUM_DTYPES[x.dtype])


def _channels(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.shape[2]


def _code(x: Tensor) -> int:
    return DTYPE_CODES[x.dtype]


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
        _rows(x),
        None if src is None else _rows(src),
        None if dst is None else _rows(dst),
        _contiguous(edge),
        _contiguous(att_src),
        _contiguous(att_dst),
    )


def fit_rows(inputs: RowwiseInputs) -> RowwiseInputs:
    if _contiguous_all(inputs):
        return inputs
    x, x_dst, att, edge = inputs
    return RowwiseInputs(_rows(x), _rows(x_dst), att.contiguous(), _contiguous(edge))


def fit_dot(inputs: DotInputs) -> DotInputs:
    if _contiguous_all(inputs):
        return inputs
    q, k, v, edge, edge_query = inputs
    query = None if edge_query is None else _rows(edge_query)
    return DotInputs(_rows(q), _rows(k), _rows(v), _contiguous(edge), query)


def rule(scoring: Scoring | DotScoring) -> tuple[float, Tensor | None, int, float]:
    """Slope or scale, seed, and what dropout does: times the last where a word reaches the third,
    the threshold."""
    number, p, seed = scoring
    if p == 0.0:
        return number, None, 0, 1.0
    return number, seed, philox.threshold(p), philox.scale(p)


def fit_grads(grads: OutGrads) -> OutGrads:
    if _contiguous_all(grads):
        return grads
    return OutGrads(_rows(grads.out), _contiguous(grads.alpha))


def fit_dot_grads(grads: DotGrads) -> DotGrads:
    if _contiguous_all(grads):
        return grads
    out, edge_out, alpha = grads
    return DotGrads(_rows(out), None if edge_out is None else _rows(edge_out), _contiguous(alpha))


def grad_of_edges(edge: Tensor | None) -> Tensor | None:
    """Zeros: a removed self loop has a place here, but no edge."""
    return None if edge is None else edge.new_zeros(edge.shape)


CPU = Compiled()
