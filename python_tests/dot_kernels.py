"""What a backend's kernels for dot products compute, in torch, pass by pass.

A backend under test that has none yet is given these, so that all that is around kernels is tested.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels import reference
from gatkernels.ops.call import DotCall, DotDestinationGrads, DotGrads, DotSaved, Edges
from gatkernels.ops.checks import SUM_DTYPES


class _Rows(NamedTuple):
    """Used edges by row, in the order of ``edges``, and dropout's factor of each."""

    here: Tensor
    there: Tensor
    eid: Tensor
    keep: Tensor  # [used, H]


def _rows(call: DotCall, edges: Edges) -> _Rows:
    used, heads = int(edges.rowptr[-1]), call.inputs.q.shape[1]
    counts = edges.rowptr.diff()
    here = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    there, eid = edges.col[:used].long(), edges.eid[:used].long()
    _, dropout, seed = call.scoring
    keep = torch.ones(used, heads, device=eid.device, dtype=torch.float64)
    if dropout > 0.0:
        assert seed is not None
        keep = reference.dropout_scale(edges.eid.shape[0], heads, dropout, seed)[eid]
    return _Rows(here, there, eid, keep.to(SUM_DTYPES[call.inputs.q.dtype]))


def _wide(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.to(SUM_DTYPES[t.dtype]) for t in tensors]


def _logits(call: DotCall, dst: Tensor, src: Tensor, eid: Tensor) -> Tensor:
    q, k, _, edge, edge_query = _wide(*call.inputs)
    found: Tensor = (q[dst] * k[src]).sum(-1)
    if edge is not None:
        found = found + (edge_query[dst] * edge[eid][:, None]).sum(-1)
    return call.scoring.scale * found


def _sum(rows: Tensor, index: Tensor, count: int) -> Tensor:
    return rows.new_zeros(count, *rows.shape[1:]).index_add(0, index, rows)


class Kernels:
    """Those of a backend, and these."""

    def __init__(self, others: Any) -> None:
        self.others = others

    def __getattr__(self, name: str) -> Any:
        return getattr(self.others, name)

    def dot_forward(self, call: DotCall, statistics: bool) -> tuple[Tensor | None, ...]:
        q, (_, _, v, edge, _) = call.inputs.q, _wide(*call.inputs)
        nodes, heads, _ = q.shape
        dst, src, eid, keep = _rows(call, call.csr)
        logits = _logits(call, dst, src, eid)
        top = logits.new_full((nodes, heads), -torch.inf)
        top = top.scatter_reduce(0, dst[:, None].expand_as(logits), logits, "amax")
        weight = torch.exp(logits - top[dst])
        inverse = 1.0 / _sum(weight, dst, nodes)
        weight = (weight * inverse[dst] * keep)[..., None]
        edge_out = None
        if edge is not None:
            edge_out = _sum(weight * edge[eid][:, None], dst, nodes).to(q.dtype)
        stats = torch.stack([top, inverse, torch.zeros_like(top)], 1)
        out = _sum(weight * v[src], dst, nodes).to(q.dtype)
        return out, edge_out, stats if statistics else None

    def dot_alpha(self, call: DotCall, stats: Tensor) -> Tensor:
        dst, src, eid, keep = _rows(call, call.csr)
        alpha = torch.exp(_logits(call, dst, src, eid) - stats[dst, 0]) * stats[dst, 1]
        return stats.new_zeros(call.csr.col.shape[0], stats.shape[2]).index_add(
            0, eid, alpha * keep
        )

    def _pass(self, call: DotCall, rows: _Rows, dst: Tensor, src: Tensor, *given: Any) -> Any:
        """Of each edge and head: alpha, and the gain ``m <dO_i, v_j> + ...`` before delta."""
        top, inverse, grads = given
        _, _, v, edge, _ = _wide(*call.inputs)
        out, edge_out, alpha = _wide(*grads)
        gain = (out[dst] * v[src]).sum(-1)
        if edge is not None:
            gain = gain + (edge_out[dst] * edge[rows.eid][:, None]).sum(-1)
        if alpha is not None:
            gain = gain + alpha[rows.eid]
        weight = torch.exp(_logits(call, dst, src, rows.eid) - top[dst]) * inverse[dst]
        return weight, gain * rows.keep

    def dot_destinations(
        self, call: DotCall, saved: DotSaved, grads: DotGrads
    ) -> DotDestinationGrads:
        q, (_, k, _, edge, edge_query) = call.inputs.q, _wide(*call.inputs)
        nodes = q.shape[0]
        rows = _rows(call, call.csr)
        dst, src, eid, keep = rows
        top, inverse, _ = saved.stats.unbind(1)
        weight, gain = self._pass(call, rows, dst, src, top, inverse, grads)
        delta = _sum(weight * gain, dst, nodes)
        slope = (call.scoring.scale * weight * (gain - delta[dst]))[..., None]
        fields = torch.stack([top, inverse, delta, torch.zeros_like(delta)], 1)
        grad_q = _sum(slope * k[src], dst, nodes).to(q.dtype)
        if edge is None:
            return DotDestinationGrads(grad_q, None, None, fields)
        grad_query = _sum(slope * edge[eid][:, None], dst, nodes).to(q.dtype)
        (grad_edge_out,) = _wide(grads.edge_out)
        terms = slope * edge_query[dst] + (weight * keep)[..., None] * grad_edge_out[dst]
        grad_edge = _sum(terms.sum(1), eid, len(edge)).to(q.dtype)
        return DotDestinationGrads(grad_q, grad_edge, grad_query, fields)

    def dot_sources(
        self, call: DotCall, csc: Edges, fields: Tensor, grads: DotGrads
    ) -> tuple[Tensor, Tensor]:
        q, v = _wide(call.inputs.q, call.inputs.v)
        rows = _rows(call, csc)
        src, dst, _, keep = rows
        top, inverse, delta, _ = fields.unbind(1)
        weight, gain = self._pass(call, rows, dst, src, top, inverse, grads)
        slope = (call.scoring.scale * weight * (gain - delta[dst]))[..., None]
        (grad_out,) = _wide(grads.out)
        grad_k = _sum(slope * q[dst], src, len(v))
        grad_v = _sum((weight * keep)[..., None] * grad_out[dst], src, len(v))
        dtype = call.inputs.q.dtype
        return grad_k.to(dtype), grad_v.to(dtype)
