"""What every GAT layer shares, whoever owns its parameters: projection, scores, attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gatkernels import _transforms
from gatkernels._dropin import own, plain_tensors, runs
from gatkernels._large import add_bias, dropout, linear
from gatkernels.functional import gat_attention, gat_attention_packed
from gatkernels.graph import Graph
from gatkernels.sparse import SparseRows

Features = Tensor | SparseRows

#: Classes whose forward is ``x @ weight.T + bias`` and nothing else, with that forward.
LINEAR_TYPES: dict[type[nn.Module], Any] = {nn.Linear: own(nn.Linear, "forward")}


class Side(NamedTuple):
    """One side of the edges: features ``[N, F]``, projection ``[H*C, F]``, scores ``[1, H, C]``."""

    x: Features
    lin: Any
    att: Tensor

    @property
    def heads(self) -> int:
        return self.att.shape[1]

    def project(self) -> Tensor:
        """``x W``, ``[N, H, C]``."""
        projected: Tensor = project(self.x, self.lin).unflatten(1, tuple(self.att.shape[1:]))
        return projected


def carried(weight: Tensor, *atts: Tensor) -> Tensor:
    """``W a`` per head, ``[H, F]`` below each other, of ``weight [H*C, F]``, ``att [1, H, C]``."""
    att = torch.cat(atts) if len(atts) > 1 else atts[0]
    per_head = weight.unflatten(0, tuple(att.shape[1:]))  # [H, C, F]
    columns: Tensor = (att.transpose(0, 1) @ per_head).transpose(0, 1).flatten(0, 1)
    return columns


class _WithScores(torch.autograd.Function):
    """``weight`` and :func:`carried` below each other, as one step of autograd's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *atts: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *atts)
        return torch.cat([weight, carried(weight, *atts)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, *atts = ctx.saved_tensors
        _, heads, channels = atts[0].shape
        width, count = weight.shape[0], len(atts)
        per_head = weight.unflatten(0, (heads, channels))  # [H, C, F]
        scores = grad[width:].unflatten(0, (count, heads)).transpose(0, 1)  # [H, S, F]
        att = torch.cat(atts).transpose(0, 1)  # [H, S, C]
        grad_weight = grad_atts = None
        if ctx.needs_input_grad[0]:
            grad_weight = grad[:width] + (att.transpose(1, 2) @ scores).flatten(0, 1)
        if any(ctx.needs_input_grad[1:]):
            grad_atts = scores @ per_head.transpose(1, 2)
        split = [None] * count if grad_atts is None else grad_atts.transpose(0, 1).split(1)
        return grad_weight, *split


def with_scores(weight: Tensor, *atts: Tensor) -> Tensor:
    """``[H*C + S*H, F]``: the projection, and below it what it makes of each ``att``."""
    if torch.compiler.is_compiling() or _transforms.active():
        return torch.cat([weight, carried(weight, *atts)])
    joined: Tensor = _WithScores.apply(weight, *atts)  # type: ignore[no-untyped-call]
    return joined


def product(x: Features, weight: Tensor) -> Tensor:
    """``x @ weight.T`` for dense, sparse CSR, or prepared sparse features."""
    if isinstance(x, SparseRows):
        return x.linear(weight)
    if x.layout == torch.sparse_csr:
        return SparseRows.of(x).linear(weight)
    return linear(x, weight)


def is_plain(lin: Any) -> bool:
    """Whether calling ``lin`` does no more than its weight and bias say.

    Not where hooks watch it (so initialise lazy layers), nor where it or its forward was replaced
    (an adapter, a quantised, offloaded or parametrised one); then the layer itself must be called.
    """
    forward = LINEAR_TYPES.get(type(lin))
    if forward is None or not runs(lin, forward):
        return False
    return plain_tensors(*lin._parameters.values())


def project(x: Features, lin: Any) -> Tensor:
    """``lin(x)``, large results in large pages."""
    if not is_plain(lin):
        result: Tensor = lin(x)
        return result
    projected = product(x, lin.weight)
    return projected if lin.bias is None else add_bias(projected, lin.bias)


def mean_of_heads(out: Tensor) -> Tensor:
    """``[N, H, C]`` to ``[N, C]``; torch's own mean over a middle dimension has a slow backward.

    16-bit values are summed in float32: their mean may be finite where their sum is not.
    """
    total = out.sum(dim=1, dtype=torch.promote_types(out.dtype, torch.float32))
    return (total / out.shape[1]).to(out.dtype)


def autocast(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def _carries(source: Side, target: Side | None) -> bool:
    """Whether the projection is to carry the scores.

    Not under autocast, which wants float32 scores; nor where the input is so wide that two
    more columns per head cost more than a pass over the projected features.
    """
    for side in (source, target):
        if side is not None and not (is_plain(side.lin) and side.lin.bias is None):
            return False
    if autocast(source.att.device):
        return False
    if isinstance(source.x, SparseRows) or source.x.layout != torch.strided:
        return True
    return source.x.shape[-1] <= 32 * source.att.shape[2]


def attend(
    graph: Graph,
    source: Side,
    target: Side | None,
    edge_score: Tensor | None = None,
    feature_dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """GAT from the layer's inputs.

    Where it pays, the projection carries the scores: ``score_src = (x W) a_src = x (W a_src)``,
    so one matrix product with ``2 * heads`` more columns gives features and scores.

    Args:
        graph: The edges, from the source side to the target side.
        source: What messages are made of.
        target: What they are sent to; None where scores come from the sources alone.
        edge_score: ``[num_edges, heads]``.
        feature_dropout: Dropout of the projected features, after the scores were taken of them.
        options: As :func:`gatkernels.gat_attention`.

    Returns:
        ``[num_dst, heads, channels]``, and ``alpha [num_edges, heads]`` or None.
    """
    same = target is not None and target.x is source.x and target.lin is source.lin
    score_dst = None
    if not _carries(source, target):
        x = source.project()
        score_src = (x * source.att).sum(-1)
        if target is not None:
            score_dst = ((x if same else target.project()) * target.att).sum(-1)
    else:
        weight, atts = source.lin.weight, [source.att]
        if target is not None and same:
            atts.append(target.att)
        elif target is not None:
            score_dst = product(target.x, carried(target.lin.weight, target.att))
        packed = product(source.x, with_scores(weight, *atts))
        if same and edge_score is None and feature_dropout == 0.0:
            return gat_attention_packed(graph, packed, source.heads, **options)
        width, heads = weight.shape[0], source.heads
        x = packed[:, :width].unflatten(1, tuple(source.att.shape[1:]))
        score_src = packed[:, width : width + heads]
        if same:
            score_dst = packed[:, width + heads :]
    if feature_dropout > 0.0:
        x = dropout(x, feature_dropout)
    result = gat_attention(graph, x, score_src, score_dst, edge_score, **options)
    return result if options.get("return_attention") else (result, None)
