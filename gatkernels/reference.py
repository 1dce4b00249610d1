"""The formulas as the papers write them, in plain differentiable torch.

This is the truth that every kernel is tested against and the baseline of the benchmarks. It runs
on any device and in any floating dtype, is differentiable any number of times, and materialises
``[E, H, C]`` messages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels.graph import Graph
from gatkernels.ops.philox import scale, threshold

_MASK32 = 0xFFFFFFFF
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


def _mul32(value: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of ``value * factor`` for 32-bit unsigned values held in int64."""
    low = value * (factor & 0xFFFF)
    high = value * (factor >> 16)
    product_low = (low + ((high & 0xFFFF) << 16)) & _MASK32
    carry = ((low >> 16) + (high & 0xFFFF)) >> 16
    return ((high >> 16) + carry) & _MASK32, product_low


def philox(seed: Tensor, edge_id: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., 2011): four uint32 words, held in int64, per counter.

    The key is the 64-bit ``seed``, the 128-bit counter is ``(edge_id, group)``, 64 bits each.
    """
    c0, c1 = edge_id & _MASK32, (edge_id >> 32) & _MASK32
    c2, c3 = group & _MASK32, (group >> 32) & _MASK32
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(10):
        high0, low0 = _mul32(c0, _PHILOX_MULTIPLIERS[0])
        high1, low1 = _mul32(c2, _PHILOX_MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _PHILOX_WEYL[0]) & _MASK32
        k1 = (k1 + _PHILOX_WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def dropout_scale(
    num_edges: int, heads: int, dropout: float, seed: Tensor, first_head: int = 0
) -> Tensor:
    """The factor ``m`` per edge and head, 0 or ``1 / (1 - dropout)``, as float64 ``[E, H]``."""
    last_head = first_head + heads
    groups = (last_head + 3) // 4
    edge_id = torch.arange(num_edges, device=seed.device)[:, None].expand(-1, groups)
    group = torch.arange(groups, device=seed.device).expand(num_edges, -1)
    words = torch.stack(philox(seed, edge_id, group), dim=-1).reshape(num_edges, 4 * groups)
    return (words[:, first_head:last_head] >= threshold(dropout)).double() * scale(dropout)


def _softmax(logits: Tensor, dst: Tensor, num_rows: int) -> Tensor:
    """Softmax of ``logits [E, H]`` over the edges of each row."""
    index = dst[:, None].expand_as(logits)
    top = logits.new_full((num_rows, logits.shape[1]), float("-inf"))
    top = top.scatter_reduce(0, index, logits.detach(), "amax")
    weight = torch.exp(logits - top[dst])
    total = weight.new_zeros(top.shape).index_add(0, dst, weight)
    return weight / total[dst]


def gat_attention(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    first_head: int = 0,
) -> tuple[Tensor, Tensor]:
    """Graph attention of Velickovic et al. (2018): ``out [Nd, H, C]`` and ``alpha [E, H]``.

    Takes what :func:`gatkernels.gat_attention` takes; ``seed`` is a one-element int64 tensor and
    needed where ``dropout > 0``; ``first_head`` is what head 0 is to its draws.
    """
    src, dst, edge_id = graph.csr_edges()
    score = score_src[src]  # [E, H]
    if score_dst is not None:
        score = score + _with_spare_row(score_dst)[dst]
    if edge_score is not None:
        score = score + edge_score[edge_id]
    alpha = _softmax(F.leaky_relu(score, negative_slope), dst, graph.num_dst + 1)
    return _aggregate(graph, alpha, x, dropout, seed, first_head)


def gatv2_attention(
    graph: Graph,
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None = None,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    first_head: int = 0,
) -> tuple[Tensor, Tensor]:
    """GATv2 of Brody et al. (2022): ``out [Nd, H, C]`` and ``alpha [E, H]``."""
    src, dst, edge_id = graph.csr_edges()
    total = x_src[src] + _with_spare_row(x_dst)[dst]
    if edge is not None:
        total = total + edge[edge_id]
    logits = (att * F.leaky_relu(total, negative_slope)).sum(-1)  # [E, H]
    alpha = _softmax(logits, dst, graph.num_dst + 1)
    return _aggregate(graph, alpha, x_src, dropout, seed, first_head)


def dot_attention(
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge: Tensor | None = None,
    edge_query: Tensor | None = None,
    *,
    scale: float,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    first_head: int = 0,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Dot products: ``out [Nd, H, D]``, ``edge_out [Nd, H, F]`` or None, and ``alpha [E, H]``."""
    src, dst, edge_id = graph.csr_edges()
    logits = (_with_spare_row(q)[dst] * k[src]).sum(-1)  # [E, H]
    if edge is not None:
        assert edge_query is not None
        logits = logits + (_with_spare_row(edge_query)[dst] * edge[edge_id][:, None]).sum(-1)
    alpha = _softmax(scale * logits, dst, graph.num_dst + 1)
    alpha = _dropped(graph, alpha, dropout, seed, first_head)
    edge_out = None if edge is None else _sums(graph, alpha, edge[edge_id][:, None])
    return _sums(graph, alpha, v[src]), edge_out, _in_users_order(graph, alpha)


def _with_spare_row(x: Tensor) -> Tensor:
    """Of destinations, for the unused places of a graph with self loops."""
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])])


def _aggregate(
    graph: Graph, alpha: Tensor, x: Tensor, dropout: float, seed: Tensor | None, first_head: int
) -> tuple[Tensor, Tensor]:
    """Drop, sum the neighbours' rows, and bring ``alpha`` into the user's edge order."""
    alpha = _dropped(graph, alpha, dropout, seed, first_head)
    return _sums(graph, alpha, x[graph.csr_edges()[0]]), _in_users_order(graph, alpha)


def _dropped(
    graph: Graph, alpha: Tensor, dropout: float, seed: Tensor | None, first_head: int
) -> Tensor:
    if dropout == 0.0:
        return alpha
    if seed is None:
        raise ValueError("reference: 'seed' is needed where dropout > 0")
    mask = dropout_scale(graph.num_edges, alpha.shape[1], dropout, seed, first_head)
    return alpha * mask.to(alpha.dtype)[graph.csr_edges()[2]]


def _sums(graph: Graph, alpha: Tensor, rows: Tensor) -> Tensor:
    """``sum_e alpha[e] rows[e]`` of each destination, for ``rows [E, H or 1, C]``.

    Unused places of a graph with self loops belong to the extra row ``num_dst``, cut off here.
    """
    message = alpha[:, :, None] * rows  # [E, H, C]
    out = message.new_zeros(graph.num_dst + 1, *message.shape[1:])
    return out.index_add(0, graph.csr_edges()[1], message)[: graph.num_dst]


def _in_users_order(graph: Graph, alpha: Tensor) -> Tensor:
    _, dst, edge_id = graph.csr_edges()
    used = (dst < graph.num_dst)[:, None]
    return torch.zeros_like(alpha).index_add(0, edge_id, torch.where(used, alpha, 0.0))
