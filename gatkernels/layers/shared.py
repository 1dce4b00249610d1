"""What every GAT layer shares, whoever owns its parameters: projection, scores, attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gatkernels.functional import gat_attention, gat_attention_of_features
from gatkernels.graph import Graph
from gatkernels.layers.dropin import own, plain_tensors, runs
from gatkernels.ops.dense import add_bias, dropout, linear
from gatkernels.ops.sparse import SparseRows

Features = Tensor | SparseRows

#: Classes whose forward is ``x @ weight.T + bias`` and nothing else, with that forward.
LINEAR_TYPES: dict[type[nn.Module], Any] = {nn.Linear: own(nn.Linear, "forward")}


class Side(NamedTuple):
    """One side of the edges: features ``[N, F]``, projection ``[H*C, F]``, scores ``[1, H, C]``."""

    x: Features
    lin: Any
    att: Tensor

    def project(self) -> Tensor:
        """``x W``, ``[N, H, C]``."""
        projected: Tensor = project(self.x, self.lin).unflatten(1, tuple(self.att.shape[1:]))
        return projected


def carried(weight: Tensor, att: Tensor) -> Tensor:
    """``W a`` per head, ``[H, F]``, of ``weight [H*C, F]`` and ``att [1, H, C]``."""
    per_head = weight.unflatten(0, tuple(att.shape[1:]))  # [H, C, F]
    columns: Tensor = (att.transpose(0, 1) @ per_head).squeeze(1)
    return columns


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
    return affine(x, lin.weight, lin.bias)


def affine(x: Features, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``."""
    if isinstance(x, Tensor) and x.layout == torch.strided:
        return linear(x, weight, bias)
    projected = product(x, weight)
    return projected if bias is None else add_bias(projected, bias)


def mean_of_heads(out: Tensor) -> Tensor:
    """``[N, H, C]`` to ``[N, C]``; torch's own mean over a middle dimension has a slow backward.

    16-bit values are summed in float32: their mean may be finite where their sum is not.
    """
    total = out.sum(dim=1, dtype=torch.promote_types(out.dtype, torch.float32))
    return (total / out.shape[1]).to(out.dtype)


def autocast(device: torch.device) -> bool:
    return device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)


def _score(side: Side) -> Tensor:
    """``[N, H]``, without projected features where the projection alone can say it."""
    plain = is_plain(side.lin) and side.lin.bias is None
    if plain and not autocast(side.att.device):  # which wants float32 scores
        return product(side.x, carried(side.lin.weight, side.att))
    return (side.project() * side.att).sum(-1)


def attend(
    graph: Graph,
    source: Side,
    target: Side | None,
    edge_score: Tensor | None = None,
    feature_dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """GAT from the layer's inputs: a projection, and one operator on what it gives.

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
    x = source.project()
    att_dst = target.att if target is not None and same else None
    score_dst = _score(target) if target is not None and not same else None
    if feature_dropout == 0.0:
        atts = (source.att, att_dst)
        return gat_attention_of_features(graph, x, *atts, score_dst, edge_score, **options)
    score_src = (x * source.att).sum(-1)
    if att_dst is not None:
        score_dst = (x * att_dst).sum(-1)
    x = dropout(x, feature_dropout)
    result = gat_attention(graph, x, score_src, score_dst, edge_score, **options)
    return result if options.get("return_attention") else (result, None)
