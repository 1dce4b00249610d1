"""What layers of attention by dot products share: projections, edge features, the way past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatkernels.functional import dot_attention
from gatkernels.graph import Graph
from gatkernels.layers.shared import Features, affine, autocast, is_plain, project
from gatkernels.ops.dense import linears

#: Heads times features up to which one product with zeros between the heads is faster than theirs
#: (half the time for 4 x 8, on a CPU). What is not finite in one head of a node then is in all.
NARROW = 32


def project_all(x: Features, lins: Sequence[Any]) -> list[Tensor]:
    """``lin(x)`` of each: side by side, columns of one product, where their layers do no more."""
    biases = [lin.bias for lin in lins if is_plain(lin)]
    if len(biases) < len(lins) or len({bias is None for bias in biases}) > 1:
        return [project(x, lin) for lin in lins]
    weights, biases = [lin.weight for lin in lins], [b for b in biases if b is not None]
    if isinstance(x, Tensor) and x.layout == torch.strided:
        return linears(x, weights, biases)
    columns = affine(x, torch.cat(weights), torch.cat(biases) if biases else None)
    return list(columns.split([weight.shape[0] for weight in weights], 1))


def queries_keys_values(
    layer: Any, x_src: Features, x_dst: Features
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Of a layer with PyG's names: ``q``, ``k``, ``v``, ``[N, heads, channels]``, and the way past,
    ``[num_dst, channels]``, or None. What has one input is one product."""
    of_source, past = [layer.lin_key, layer.lin_value], [layer.lin_skip] * layer.root_weight
    if x_src is x_dst:
        q, k, v, *skip = project_all(x_src, [layer.lin_query, *of_source, *past])
    else:
        q, *skip = project_all(x_dst, [layer.lin_query, *past])
        k, v = project_all(x_src, of_source)
    q, k, v = (t.unflatten(1, (layer.heads, layer.out_channels)) for t in (q, k, v))
    return q, k, v, skip[0] if skip else None


def attend(
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_attr: Tensor | None,
    lin_edge: Any,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """:func:`gatkernels.dot_attention` with projected edge features added to keys and values.

    Args:
        graph: The edges.
        q, k, v: ``[num_dst or num_src, heads, channels]``.
        edge_attr: ``[num_edges, features]``, or None.
        lin_edge: Their projection to ``heads * channels``, without a bias.
        options: As :func:`gatkernels.dot_attention`.

    Returns:
        ``[num_dst, heads, channels]``, and ``alpha [num_edges, heads]`` or None.
    """
    if edge_attr is None:
        result = dot_attention(graph, q, k, v, **options)
        return result if options.get("return_attention") else (result, None)
    heads, channels = q.shape[1:]
    # The kernels read every edge's features several times: of wide ones, and where the layer does
    # more than its weight says, rather their projection, a row for all heads, each with its part.
    wide = not is_plain(lin_edge) or lin_edge.weight.shape[1] > heads * channels
    if wide:
        edge = project(edge_attr, lin_edge)
        own = torch.eye(heads, dtype=q.dtype, device=q.device)[:, :, None]
        query = (q[:, :, None] * own).flatten(2)
    else:
        edge = edge_attr.to(q.dtype) if autocast(q.device) else edge_attr
        weight = lin_edge.weight.unflatten(0, (heads, channels))  # [H, C, F]
        query = _by_head(q, weight)
    out, edge_out, *alpha = dot_attention(graph, q, k, v, edge, query, **options)
    if wide:
        of_edges = edge_out.unflatten(2, (heads, channels)).diagonal(0, 1, 2).transpose(1, 2)
    else:
        of_edges = _by_head(edge_out, weight.transpose(1, 2))
    return out + of_edges, alpha[0] if alpha else None


def _by_head(rows: Tensor, weight: Tensor) -> Tensor:
    """``[N, H, F]``: head by head ``rows [N, H, C]`` times ``weight [H, C, F]``."""
    heads, _, features = weight.shape
    if heads * min(weight.shape[1:]) > NARROW:
        return torch.einsum("nhc,hcf->nhf", rows, weight)
    product: Tensor = (rows.flatten(1) @ torch.block_diag(*weight)).unflatten(1, (heads, features))
    return product


def with_skip(out: Tensor, skip: Tensor, lin_beta: Any) -> Tensor:
    """``out + skip``, or with ``lin_beta`` between them as it finds of both."""
    if lin_beta is None:
        return out + skip
    if is_plain(lin_beta) and lin_beta.bias is None and lin_beta.weight.shape[0] == 1:
        # of [out, skip, out - skip], which need not be made
        of_out, of_skip, of_difference = lin_beta.weight.view(3, -1)
        score = (out @ (of_out + of_difference) + skip @ (of_skip - of_difference))[:, None]
    else:
        score = lin_beta(torch.cat([out, skip, out - skip], dim=-1))
    return torch.lerp(out, skip, score.sigmoid())
