"""Graph attention layers on torch alone, with PyG's parameter names and initialisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gatkernels.functional import gatv2_attention
from gatkernels.graph import Graph, cached_graph
from gatkernels.layers import transformer
from gatkernels.layers.shared import Features, Side, attend, mean_of_heads, project
from gatkernels.ops import checks
from gatkernels.ops.dense import add_bias
from gatkernels.ops.sparse import SparseRows


def _glorot_(weight: Tensor) -> None:
    bound = math.sqrt(6.0 / (weight.shape[-2] + weight.shape[-1]))
    nn.init.uniform_(weight, -bound, bound)


def _check_features(
    layer: GATConv | GATv2Conv | TransformerConv, x: Any, edge_index: Tensor | Graph
) -> None:
    """``x`` has the layer's sizes: one tensor or two, of which GATConv's second may be None."""
    name, sizes = type(layer).__name__, layer.in_channels
    nodes: tuple[int | None, int | None] = (None, None)
    if isinstance(edge_index, Graph):
        nodes = edge_index.num_src, edge_index.num_dst
    pair = isinstance(x, tuple) and not isinstance(x, SparseRows)
    if pair and len(x) != 2:
        raise ValueError(f"{name}: 'x' must be a tensor or (x_src, x_dst), got {len(x)} of them")
    for i, side in enumerate(x if pair else (x,)):
        if isinstance(side, SparseRows) or (i == 1 and side is None and name == "GATConv"):
            continue
        what = f"x[{i}]" if pair else "x"
        size = sizes if isinstance(sizes, int) else sizes[i]
        checks.tensor(name, what, side)
        checks.shape(name, what, side, num_nodes=nodes[i], in_channels=size)


def _graph_of(
    layer: str,
    x: Features | tuple[Features, Features | None],
    edge_index: Tensor | Graph,
    size: tuple[int, int] | None,
    self_loops: bool,
) -> Graph:
    if isinstance(edge_index, Graph):
        return edge_index
    counts: int | tuple[int, int]
    if size is not None:
        counts = size
    elif isinstance(x, tuple) and not isinstance(x, SparseRows):
        if x[1] is None:
            raise ValueError(f"{layer}: 'size' must be given where x is (x_src, None)")
        counts = (x[0].shape[0], x[1].shape[0])
    else:
        counts = x.shape[0]
    return cached_graph(edge_index, counts, self_loops)


class GATConv(nn.Module):
    r"""Graph attention layer (Velickovic et al., ICLR 2018), as ``torch_geometric.nn.GATConv``.

    Without edge features: those of ``gatkernels.pyg`` and of the operators have them.

    Args:
        in_channels: Size of each input feature, or ``(source, destination)`` sizes.
        out_channels: Size of each output feature per head.
        heads: Number of attention heads.
        concat: Concatenate the heads, ``[N, heads * out_channels]``, or average them.
        negative_slope: Slope of the LeakyReLU for scores ``<= 0``.
        dropout: Probability of dropping an attention weight while training.
        add_self_loops: Remove the self loops of an ``edge_index`` and add one per node; a Graph
            is used as it is.
        bias: Learn an additive bias.
        residual: Add a learned projection of the destination's input.
        feature_dropout: Probability of dropping a projected feature while training, after the
            scores were taken of it: the third dropout of the paper's own code.
        backend: "auto" or the name of one, see ``gatkernels info``.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        *,
        bias: bool = True,
        residual: bool = False,
        feature_dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        checks.layer_sizes("GATConv", in_channels, out_channels=out_channels, heads=heads)
        checks.probability("GATConv", dropout)
        checks.probability("GATConv", feature_dropout, "feature_dropout")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.negative_slope = negative_slope
        self.dropout = dropout
        self.add_self_loops = add_self_loops
        self.residual = residual
        self.feature_dropout = feature_dropout
        self.backend = backend

        width = heads * out_channels
        total = width if concat else out_channels
        self.lin = self.lin_src = self.lin_dst = None
        if isinstance(in_channels, int):
            self.lin = nn.Linear(in_channels, width, bias=False)
        else:
            self.lin_src = nn.Linear(in_channels[0], width, bias=False)
            self.lin_dst = nn.Linear(in_channels[1], width, bias=False)
        into = in_channels if isinstance(in_channels, int) else in_channels[1]
        self.res = nn.Linear(into, total, bias=False) if residual else None
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        self.bias = nn.Parameter(torch.empty(total)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.lin, self.lin_src, self.lin_dst, self.res):
            if layer is not None:
                _glorot_(layer.weight)
        _glorot_(self.att_src)
        _glorot_(self.att_dst)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Features | tuple[Features, Features | None],
        edge_index: Tensor | Graph,
        *,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend over the edges.

        Args:
            x: ``[N, in_channels]``, dense or sparse CSR, or a pair for sources and destinations
                (the second may be None: scores come from the sources alone).
            edge_index: ``[2, E]``, or a :class:`gatkernels.Graph`, which is used as it is: its
                own ``self_loops`` decide, not the layer's.
            size: ``(num_src, num_dst)``, needed where ``x`` has no destinations.
            return_attention_weights: Also return ``(edge_index, alpha [E, heads])``, self loops
                included, after dropout.

        Returns:
            ``[num_dst, heads * out_channels]``, or ``[num_dst, out_channels]`` without ``concat``.
        """
        _check_features(self, x, edge_index)
        graph = _graph_of("GATConv", x, edge_index, size, self.add_self_loops)
        x_src, x_dst = (x, x) if isinstance(x, SparseRows) or not isinstance(x, tuple) else x
        lin_src, lin_dst = self.lin_src or self.lin, self.lin_dst or self.lin
        out, alpha = attend(
            graph,
            Side(x_src, lin_src, self.att_src),
            None if x_dst is None else Side(x_dst, lin_dst, self.att_dst),
            feature_dropout=self.feature_dropout if self.training else 0.0,
            negative_slope=self.negative_slope,
            dropout=self.dropout if self.training else 0.0,
            return_attention=return_attention_weights,
            backend=self.backend,
        )
        out = out.flatten(1) if self.concat else mean_of_heads(out)
        if self.res is not None and x_dst is not None:
            out = out + project(x_dst, self.res)
        if self.bias is not None:
            out = add_bias(out, self.bias)
        if alpha is None:
            return out
        return out, (graph.edge_index, alpha[graph.used_edge_ids()])

    def __repr__(self) -> str:
        return f"GATConv({self.in_channels}, {self.out_channels}, heads={self.heads})"


class GATv2Conv(nn.Module):
    r"""GATv2 layer (Brody, Alon, Yahav, ICLR 2022), as ``torch_geometric.nn.GATv2Conv``.

    Without edge features, as :class:`GATConv`.

    Args:
        in_channels: Size of each input feature, or ``(source, destination)`` sizes.
        out_channels: Size of each output feature per head.
        heads: Number of attention heads.
        concat: Concatenate the heads, ``[N, heads * out_channels]``, or average them.
        negative_slope: Slope of the LeakyReLU.
        dropout: Probability of dropping an attention weight while training.
        add_self_loops: Remove the self loops of an ``edge_index`` and add one per node; a Graph
            is used as it is.
        bias: Learn additive biases, of both projections and of the output.
        share_weights: One projection for sources and destinations.
        residual: Add a learned projection of the destination's input.
        backend: "auto" or the name of one, see ``gatkernels info``.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        *,
        bias: bool = True,
        share_weights: bool = False,
        residual: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        checks.layer_sizes("GATv2Conv", in_channels, out_channels=out_channels, heads=heads)
        checks.probability("GATv2Conv", dropout)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.negative_slope = negative_slope
        self.dropout = dropout
        self.add_self_loops = add_self_loops
        self.share_weights = share_weights
        self.residual = residual
        self.backend = backend

        sizes = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        width = heads * out_channels
        total = width if concat else out_channels
        self.lin_l = nn.Linear(sizes[0], width, bias=bias)
        self.lin_r = self.lin_l if share_weights else nn.Linear(sizes[1], width, bias=bias)
        self.res = nn.Linear(sizes[1], total, bias=False) if residual else None
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        self.bias = nn.Parameter(torch.empty(total)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.lin_l, self.lin_r):
            _glorot_(layer.weight)
            if layer.bias is not None:
                bound = 1.0 / math.sqrt(layer.in_features) if layer.in_features else 0.0
                nn.init.uniform_(layer.bias, -bound, bound)
        if self.res is not None:
            _glorot_(self.res.weight)
        _glorot_(self.att)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        x: Features | tuple[Features, Features],
        edge_index: Tensor | Graph,
        *,
        return_attention_weights: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend over the edges, as :meth:`GATConv.forward`; both sides of a pair are needed."""
        _check_features(self, x, edge_index)
        x_src, x_dst = (x, x) if isinstance(x, SparseRows) or not isinstance(x, tuple) else x
        graph = _graph_of("GATv2Conv", (x_src, x_dst), edge_index, None, self.add_self_loops)
        shape = (self.heads, self.out_channels)
        source = project(x_src, self.lin_l).unflatten(1, shape)
        shared = self.lin_r is self.lin_l and x_dst is x_src
        target = source if shared else project(x_dst, self.lin_r).unflatten(1, shape)
        out = gatv2_attention(
            graph,
            source,
            target,
            self.att[0],
            negative_slope=self.negative_slope,
            dropout=self.dropout if self.training else 0.0,
            return_attention=return_attention_weights,
            backend=self.backend,
        )
        alpha = None
        if return_attention_weights:
            out, alpha = out
        out = out.flatten(1) if self.concat else mean_of_heads(out)
        if self.res is not None:
            out = out + project(x_dst, self.res)
        if self.bias is not None:
            out = add_bias(out, self.bias)
        if alpha is None:
            result: Tensor = out
            return result
        return out, (graph.edge_index, alpha[graph.used_edge_ids()])

    def __repr__(self) -> str:
        return f"GATv2Conv({self.in_channels}, {self.out_channels}, heads={self.heads})"


class TransformerConv(nn.Module):
    r"""Dot-product attention (Shi et al., IJCAI 2021), as ``torch_geometric.nn.TransformerConv``.

    Args:
        in_channels: Size of each input feature, or ``(source, destination)`` sizes.
        out_channels: Size of each output feature per head.
        heads: Number of attention heads.
        concat: Concatenate the heads, ``[N, heads * out_channels]``, or average them.
        beta: Learn from both how much of the output the destination's own projection is.
        dropout: Probability of dropping an attention weight while training.
        edge_dim: Size of each edge feature, which is projected and added to keys and values.
        bias: Learn additive biases, of all projections but that of edge features.
        root_weight: Add a learned projection of the destination's input.
        backend: "auto" or the name of one, see ``gatkernels info``.
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        checks.layer_sizes("TransformerConv", in_channels, out_channels=out_channels, heads=heads)
        checks.probability("TransformerConv", dropout)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.beta = beta and root_weight
        self.dropout = dropout
        self.edge_dim = edge_dim
        self.root_weight = root_weight
        self.backend = backend

        into, target = (in_channels,) * 2 if isinstance(in_channels, int) else in_channels
        width = heads * out_channels
        total = width if concat else out_channels
        self.lin_key = nn.Linear(into, width, bias=bias)
        self.lin_query = nn.Linear(target, width, bias=bias)
        self.lin_value = nn.Linear(into, width, bias=bias)
        self.lin_edge = None if edge_dim is None else nn.Linear(edge_dim, width, bias=False)
        self.lin_skip = nn.Linear(target, total, bias=bias)
        self.lin_beta = nn.Linear(3 * total, 1, bias=False) if self.beta else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        lins = (self.lin_key, self.lin_query, self.lin_value, self.lin_edge, self.lin_skip)
        for layer in (*lins, self.lin_beta):
            if layer is not None:
                layer.reset_parameters()

    def forward(
        self,
        x: Features | tuple[Features, Features],
        edge_index: Tensor | Graph,
        edge_attr: Tensor | None = None,
        *,
        return_attention_weights: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend over the edges.

        Args:
            x, edge_index, return_attention_weights: As in :meth:`GATConv.forward`; no self loop
                is added or removed.
            edge_attr: ``[E, edge_dim]``, where the layer has an ``edge_dim``.

        Returns:
            As :meth:`GATConv.forward`.
        """
        _check_features(self, x, edge_index)
        x_src, x_dst = (x, x) if isinstance(x, SparseRows) or not isinstance(x, tuple) else x
        graph = _graph_of("TransformerConv", (x_src, x_dst), edge_index, None, False)
        if (edge_attr is None) != (self.lin_edge is None):
            raise ValueError("TransformerConv: give 'edge_attr' where there is 'edge_dim', only")
        if edge_attr is not None:
            sizes = {"num_edges": graph.num_edges, "edge_dim": self.edge_dim}
            checks.dense("TransformerConv", "edge_attr", edge_attr)
            checks.shape("TransformerConv", "edge_attr", edge_attr, **sizes)
        q, k, v, skip = transformer.queries_keys_values(self, x_src, x_dst)
        out, alpha = transformer.attend(
            graph,
            q,
            k,
            v,
            edge_attr,
            self.lin_edge,
            dropout=self.dropout if self.training else 0.0,
            return_attention=return_attention_weights,
            backend=self.backend,
        )
        out = out.flatten(1) if self.concat else mean_of_heads(out)
        if skip is not None:
            out = transformer.with_skip(out, skip, self.lin_beta)
        if alpha is None:
            return out
        return out, (graph.edge_index, alpha[graph.used_edge_ids()])

    def __repr__(self) -> str:
        return f"TransformerConv({self.in_channels}, {self.out_channels}, heads={self.heads})"
