"""Graph attention layers on torch alone, with PyG's parameter names and initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gatkernels._large import add_bias, linear
from gatkernels.functional import gat_attention, gat_attention_packed, gatv2_attention
from gatkernels.graph import Graph, cached_graph
from gatkernels.sparse import SparseRows

Features = Tensor | SparseRows


def _project(x: Features, weight: Tensor) -> Tensor:
    """``x @ weight.T`` for dense, sparse CSR, or prepared sparse features."""
    if isinstance(x, SparseRows):
        return x.linear(weight)
    if x.layout == torch.sparse_csr:
        return SparseRows.of(x).linear(weight)
    return linear(x, weight)


def _glorot_(weight: Tensor) -> None:
    bound = math.sqrt(6.0 / (weight.shape[-2] + weight.shape[-1]))
    nn.init.uniform_(weight, -bound, bound)


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

    Where it pays, the projection carries the scores: ``score_src = (x W) a_src = x (W a_src)``,
    so one matrix product with ``2 * heads`` more columns gives features and scores.

    Args:
        in_channels: Size of each input feature, or ``(source, destination)`` sizes.
        out_channels: Size of each output feature per head.
        heads: Number of attention heads.
        concat: Concatenate the heads, ``[N, heads * out_channels]``, or average them.
        negative_slope: Slope of the LeakyReLU for scores ``<= 0``.
        dropout: Probability of dropping an attention weight while training.
        add_self_loops: Remove given self loops and add one per node.
        bias: Learn an additive bias.
        residual: Add a learned projection of the destination's input.
        backend: "auto", "cpu" or "reference".
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
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.negative_slope = negative_slope
        self.dropout = dropout
        self.add_self_loops = add_self_loops
        self.residual = residual
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
        graph = _graph_of("GATConv", x, edge_index, size, self.add_self_loops)
        dropout = self.dropout if self.training else 0.0
        out, alpha = self._attend(x, graph, dropout, return_attention_weights)
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        if self.res is not None:
            target = x[1] if isinstance(x, tuple) and not isinstance(x, SparseRows) else x
            if target is not None:
                out = out + _project(target, self.res.weight)
        if self.bias is not None:
            out = add_bias(out, self.bias)
        if alpha is None:
            return out
        return out, (graph.edge_index, alpha[graph.used_edge_ids()])

    def _attend(
        self,
        x: Features | tuple[Features, Features | None],
        graph: Graph,
        dropout: float,
        return_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        slope, backend, heads = self.negative_slope, self.backend, self.heads
        if not self._carries(x):
            return self._attend_projected(x, graph, dropout, return_attention)
        if isinstance(x, SparseRows) or not isinstance(x, tuple):
            if self.lin is not None:
                weight = self.lin.weight
                columns = [weight, self._carried(weight, self.att_src)]
                packed = _project(x, torch.cat([*columns, self._carried(weight, self.att_dst)]))
                return gat_attention_packed(
                    graph,
                    packed,
                    heads,
                    negative_slope=slope,
                    dropout=dropout,
                    return_attention=return_attention,
                    backend=backend,
                )
            x = (x, x)
        x_src, x_dst = x
        lin_src, lin_dst = self.lin_src or self.lin, self.lin_dst or self.lin
        assert lin_src is not None
        assert lin_dst is not None
        weight = lin_src.weight
        packed = _project(x_src, torch.cat([weight, self._carried(weight, self.att_src)]))
        width = heads * self.out_channels
        features = packed[:, :width].unflatten(1, (heads, self.out_channels))
        score_dst = None
        if x_dst is not None:
            score_dst = _project(x_dst, self._carried(lin_dst.weight, self.att_dst))
        result = gat_attention(
            graph,
            features,
            packed[:, width:],
            score_dst,
            negative_slope=slope,
            dropout=dropout,
            return_attention=return_attention,
            backend=backend,
        )
        return result if return_attention else (result, None)

    def _carries(self, x: Features | tuple[Features, Features | None]) -> bool:
        """Whether the projection is to carry the scores.

        Not under autocast, which wants float32 scores; nor where the input is so wide that two
        more columns per head cost more than a pass over the projected features.
        """
        device = self.att_src.device.type
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            return False
        first = x if isinstance(x, SparseRows) or not isinstance(x, tuple) else x[0]
        if isinstance(first, SparseRows) or first.layout != torch.strided:
            return True
        return first.shape[-1] <= 32 * self.out_channels

    def _attend_projected(
        self,
        x: Features | tuple[Features, Features | None],
        graph: Graph,
        dropout: float,
        return_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Scores from the projected features, as the paper writes it."""
        x_src, x_dst = (x, x) if isinstance(x, SparseRows) or not isinstance(x, tuple) else x

        def project(features: Features, layer: nn.Linear | None) -> Tensor:
            assert layer is not None
            result: Tensor = _project(features, layer.weight).unflatten(
                1, (self.heads, self.out_channels)
            )
            return result

        source = project(x_src, self.lin_src or self.lin)
        target = source if self.lin is not None and x_dst is x_src else None
        if x_dst is not None and target is None:
            target = project(x_dst, self.lin_dst or self.lin)
        result = gat_attention(
            graph,
            source,
            (source * self.att_src).sum(-1),
            None if target is None else (target * self.att_dst).sum(-1),
            negative_slope=self.negative_slope,
            dropout=dropout,
            return_attention=return_attention,
            backend=self.backend,
        )
        return result if return_attention else (result, None)

    def _carried(self, weight: Tensor, att: Tensor) -> Tensor:
        """``W a`` per head, ``[heads, in_channels]``: the projection's columns for one score."""
        per_head = weight.unflatten(0, (self.heads, self.out_channels))  # [H, C, F]
        columns: Tensor = (att[0, :, None, :] @ per_head)[:, 0]
        return columns

    def __repr__(self) -> str:
        return f"GATConv({self.in_channels}, {self.out_channels}, heads={self.heads})"


class GATv2Conv(nn.Module):
    r"""GATv2 layer (Brody, Alon, Yahav, ICLR 2022), as ``torch_geometric.nn.GATv2Conv``.

    Args:
        in_channels: Size of each input feature, or ``(source, destination)`` sizes.
        out_channels: Size of each output feature per head.
        heads: Number of attention heads.
        concat: Concatenate the heads, ``[N, heads * out_channels]``, or average them.
        negative_slope: Slope of the LeakyReLU.
        dropout: Probability of dropping an attention weight while training.
        add_self_loops: Remove given self loops and add one per node.
        bias: Learn additive biases, of both projections and of the output.
        share_weights: One projection for sources and destinations.
        residual: Add a learned projection of the destination's input.
        backend: "auto", "cpu" or "reference".
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
        """Attend over the edges; arguments and results as in :meth:`GATConv.forward`."""
        x_src, x_dst = (x, x) if isinstance(x, SparseRows) or not isinstance(x, tuple) else x
        graph = _graph_of("GATv2Conv", (x_src, x_dst), edge_index, None, self.add_self_loops)
        source = self._project(x_src, self.lin_l)
        shared = self.lin_r is self.lin_l and x_dst is x_src
        target = source if shared else self._project(x_dst, self.lin_r)
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
        out = out.flatten(1) if self.concat else out.mean(dim=1)
        if self.res is not None:
            out = out + _project(x_dst, self.res.weight)
        if self.bias is not None:
            out = add_bias(out, self.bias)
        if alpha is None:
            result: Tensor = out
            return result
        return out, (graph.edge_index, alpha[graph.used_edge_ids()])

    def _project(self, x: Features, layer: nn.Linear) -> Tensor:
        projected = _project(x, layer.weight)
        if layer.bias is not None:
            projected = add_bias(projected, layer.bias)
        result: Tensor = projected.unflatten(1, (self.heads, self.out_channels))
        return result

    def __repr__(self) -> str:
        return f"GATv2Conv({self.in_channels}, {self.out_channels}, heads={self.heads})"
