"""The public operators: check the inputs, choose a backend, apply."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from gatkernels import _autograd, _checks, _dispatch, _ops, reference
from gatkernels.graph import Graph


def draw_seed(device: torch.device) -> Tensor:
    """A fresh 64-bit dropout seed ``[1]`` from torch's generator of ``device``."""
    return torch.empty(1, dtype=torch.int64, device=device).random_()


@overload
def gat_attention(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor | None = ...,
    edge_score: Tensor | None = ...,
    *,
    negative_slope: float = ...,
    dropout: float = ...,
    return_attention: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def gat_attention(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor | None = ...,
    edge_score: Tensor | None = ...,
    *,
    negative_slope: float = ...,
    dropout: float = ...,
    return_attention: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...
def gat_attention(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    return_attention: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Graph attention (GAT, Velickovic et al., ICLR 2018) in one pass over the graph.

    For an edge ``e`` from ``j`` to ``i``::

        s_e     = score_src[j] + score_dst[i] + edge_score[e]
        alpha_e = softmax of leaky_relu(s_e) over the edges into i
        out_i   = sum_e alpha_e * m_e * x[j]        m_e: 0 or 1 / (1 - dropout)

    Args:
        graph: The edges, ``num_src`` sources to ``num_dst`` destinations.
        x: Features ``[num_src, heads, channels]``, float32 or float64.
        score_src: ``[num_src, heads]``, dtype of ``x``.
        score_dst: ``[num_dst, heads]``, dtype of ``x``; None stands for zeros.
        edge_score: ``[num_edges, heads]`` in the user's edge order, dtype of ``x``.
        negative_slope: Slope of the LeakyReLU for ``s_e <= 0``.
        dropout: Probability of dropping an attention weight, drawn from torch's generator.
        return_attention: Also return ``alpha``.
        backend: "auto", "cpu" or "reference".

    Returns:
        ``out [num_dst, heads, channels]``; zero rows where a node has no incoming edge. With
        ``return_attention`` also ``alpha [num_edges, heads]`` in the user's edge order, after
        dropout. Both are differentiable, twice as well.

    Raises:
        TypeError: An argument of the wrong type or dtype.
        ValueError: A wrong shape, device, probability or backend name.
        BackendUnavailable: The backend asked for cannot run here; the message says why.
    """
    op = "gat_attention"
    _checks.gat_inputs(op, graph, x, score_src, score_dst, edge_score)
    _checks.probability(op, "dropout", dropout)
    chosen = _dispatch.select(op, backend, _dispatch.Case(x.device, x.dtype))
    seed = draw_seed(x.device) if dropout > 0.0 else None
    if chosen == "reference":
        out, alpha = reference.gat_attention(
            graph,
            x,
            score_src,
            score_dst,
            edge_score,
            negative_slope=negative_slope,
            dropout=dropout,
            seed=seed,
        )
        return (out, alpha) if return_attention else out
    if score_dst is None:
        score_dst = x.new_zeros(1, x.shape[1]).expand(graph.num_dst, -1)
    options = (negative_slope, dropout)
    out, weights = _autograd.gat(
        graph, x, score_src, score_dst, edge_score, seed, options, return_attention
    )
    return out if weights is None else (out, weights)


def gat_attention_packed(
    graph: Graph,
    packed: Tensor,
    heads: int,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    return_attention: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """:func:`gat_attention` on features and scores that one projection wrote side by side.

    Args:
        graph: A graph whose sources are its destinations.
        packed: ``[N, heads * channels + 2 * heads]``: ``x``, ``score_src``, ``score_dst``.

    Returns:
        ``out [N, heads, channels]`` and ``alpha`` or None.
    """
    op = "gat_attention_packed"
    channels = packed.shape[1] // heads - 2
    parts = _ops.split_packed(packed, heads, channels)
    _checks.gat_inputs(op, graph, *parts, None)
    _checks.probability(op, "dropout", dropout)
    chosen = _dispatch.select(op, backend, _dispatch.Case(packed.device, packed.dtype))
    seed = draw_seed(packed.device) if dropout > 0.0 else None
    if chosen == "reference":
        out, alpha = reference.gat_attention(
            graph, *parts, negative_slope=negative_slope, dropout=dropout, seed=seed
        )
        return out, alpha if return_attention else None
    options = (negative_slope, dropout)
    return _autograd.gat_packed(graph, packed, (heads, channels), seed, options, return_attention)
