"""Networks: GAT, the graph transformer, and the GCN and MLP they are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatkernels.functional import gat_attention
from gatkernels.graph import Graph, cached_graph
from gatkernels.layers.shared import Features, product
from gatkernels.nn import GATConv, GATv2Conv, TransformerConv
from gatkernels.ops import dense
from gatkernels.ops.sparse import SparseRows


def dropout(x: Features, p: float, training: bool) -> Features:
    """Dropout of dense features, or of the stored values of sparse ones."""
    if isinstance(x, Tensor) and x.layout == torch.sparse_csr:
        x = SparseRows.of(x)
    if isinstance(x, SparseRows):
        return x.dropout(p, training)
    return dense.dropout(x, p) if training and p > 0.0 else x


class GAT(nn.Module):
    """Graph attention layers: heads concatenated, in the last layer averaged.

    Velickovic et al. (ICLR 2018), or with ``version=2`` Brody et al. (ICLR 2022). ELU follows all
    layers but the last. Dropout acts on the input of every layer and on the attention weights.
    ``forward`` takes ``x [N, in_channels]``, dense or sparse CSR, and an ``edge_index`` or a
    :class:`gatkernels.Graph`, and returns logits ``[N, out_channels]``.

    Args:
        in_channels: Size of each input feature.
        hidden_channels: Channels per head of all layers but the last.
        out_channels: Number of logits.
        heads: Heads of all layers but the last, concatenated.
        out_heads: Heads of the last layer, averaged.
        dropout: Probability, while training.
        layers: Number of layers, at least 2.
        version: 1 for GAT, 2 for GATv2.
        residual: Add to the output of every layer a learned projection of its input.
        feature_dropout: Of GAT's projected features, as in the paper's own code.
        negative_slope: Slope of the LeakyReLU.
        add_self_loops: Remove the self loops of an ``edge_index`` and add one per node; a Graph
            is used as it is.
        backend: "auto" or the name of one, see ``gatkernels info``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.6,
        *,
        layers: int = 2,
        version: int = 1,
        residual: bool = False,
        feature_dropout: float = 0.0,
        negative_slope: float = 0.2,
        add_self_loops: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"GAT: 'layers' must be at least 2, got {layers}")
        if version == 2 and feature_dropout:
            raise ValueError("GAT: 'feature_dropout' is GAT's alone, not GATv2's")
        if version not in (1, 2):
            raise ValueError(f"GAT: 'version' must be 1 or 2, got {version}")
        self.dropout = dropout
        layer: Callable[..., Any] = GATConv if version == 1 else GATv2Conv
        width = hidden_channels * heads
        options: dict[str, Any] = {
            "negative_slope": negative_slope,
            "dropout": dropout,
            "add_self_loops": add_self_loops,
            "residual": residual,
            "backend": backend,
        }
        if feature_dropout:
            options["feature_dropout"] = feature_dropout
        self.convs = nn.ModuleList(
            layer(in_channels if place == 0 else width, hidden_channels, heads, **options)
            for place in range(layers - 1)
        )
        self.convs.append(layer(width, out_channels, out_heads, False, **options))

    def reset_parameters(self) -> None:
        for conv in self.convs:
            assert isinstance(conv, GATConv | GATv2Conv)
            conv.reset_parameters()

    def forward(self, x: Features, edge_index: Tensor | Graph) -> Tensor:
        first, *others = self.convs
        out: Tensor = first(dropout(x, self.dropout, self.training), edge_index)
        for conv in others:
            inputs = dense.elu_dropout(out, self.dropout if self.training else 0.0)
            out = conv(inputs, edge_index)
        return out


class GraphTransformer(nn.Module):
    """Layers of dot-product attention, mixed with a projection of their input by a learned gate.

    Shi et al. (IJCAI 2021). A layer norm and a ReLU follow all layers but the last, whose heads are
    averaged. Dropout, and ``forward``, are as in :class:`GAT`; no self loop is added or removed.

    Args:
        in_channels, hidden_channels, out_channels, heads, out_heads, dropout, backend: As in
            :class:`GAT`.
        layers: Number of layers, at least 2.
        residual: Mix in the projection; otherwise layers are attention alone.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.6,
        *,
        layers: int = 2,
        residual: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"GraphTransformer: 'layers' must be at least 2, got {layers}")
        self.dropout = dropout
        width = hidden_channels * heads
        options: dict[str, Any] = {
            "beta": residual,
            "root_weight": residual,
            "dropout": dropout,
            "backend": backend,
        }
        self.convs = nn.ModuleList(
            TransformerConv(in_channels if place == 0 else width, hidden_channels, heads, **options)
            for place in range(layers - 1)
        )
        self.convs.append(TransformerConv(width, out_channels, out_heads, False, **options))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers - 1))

    def reset_parameters(self) -> None:
        for part in (*self.convs, *self.norms):
            assert isinstance(part, TransformerConv | nn.LayerNorm)
            part.reset_parameters()

    def forward(self, x: Features, edge_index: Tensor | Graph) -> Tensor:
        first, *others = self.convs
        out: Tensor = first(dropout(x, self.dropout, self.training), edge_index)
        for norm, conv in zip(self.norms, others, strict=True):
            inputs = dropout(F.relu(norm(out)), self.dropout, self.training)
            out = conv(inputs, edge_index)
        return out


class GCN(nn.Module):
    """Graph convolutions ``D^-1/2 (A + I) D^-1/2 x W`` with ReLU (Kipf and Welling, ICLR 2017).

    Arguments and results as in :class:`GAT`; dropout acts on the input of every layer.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        dropout: float = 0.5,
        *,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lins = nn.ModuleList(linears(in_channels, hidden_channels, out_channels, layers))

    def forward(self, x: Features, edge_index: Tensor | Graph) -> Tensor:
        graph = edge_index
        if not isinstance(graph, Graph):
            graph = cached_graph(graph, x.shape[0], self_loops=True)
        for place, lin in enumerate(self.lins):
            assert isinstance(lin, Linear)
            inputs = dropout(x, self.dropout, self.training)
            out: Tensor = normalised_sum(graph, lin.project(inputs)) + lin.bias
            x = out if place == len(self.lins) - 1 else F.relu(out)
        return out


class MLP(nn.Module):
    """Linear layers with ReLU: what the features say without the graph.

    Arguments and results as in :class:`GCN`; the graph is ignored.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        dropout: float = 0.5,
        *,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lins = nn.ModuleList(linears(in_channels, hidden_channels, out_channels, layers))

    def forward(self, x: Features, edge_index: Tensor | Graph | None = None) -> Tensor:
        for place, lin in enumerate(self.lins):
            inputs = dropout(x, self.dropout, self.training)
            out: Tensor = lin(inputs)
            x = out if place == len(self.lins) - 1 else F.relu(out)
        return out


class Linear(nn.Linear):
    """``nn.Linear`` with Glorot weights and a zero bias, for dense or sparse features."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def project(self, x: Features) -> Tensor:
        """The product without the bias."""
        return product(x, self.weight)

    def forward(self, x: Features) -> Tensor:
        return self.project(x) + self.bias


def linears(in_channels: int, hidden: int, out_channels: int, layers: int) -> list[Linear]:
    """The projections of a network of so many layers. Raises: ValueError without a layer."""
    if layers < 1:
        raise ValueError(f"'layers' must be at least 1, got {layers}")
    sizes = [in_channels, *[hidden] * (layers - 1), out_channels]
    return [Linear(into, out) for into, out in itertools.pairwise(sizes)]


def normalised_sum(graph: Graph, x: Tensor) -> Tensor:
    """``D^-1/2 A D^-1/2 x`` with ``D`` the in-degrees, for ``x [N, C]``."""
    if graph.attend is None:
        return normalised_adjacency(graph).matmul(x)
    # Of shards: a mean over neighbours, which is attention with equal scores, times the degree.
    root = graph.rowptr.diff().clamp(min=1).to(x.dtype).sqrt()[:, None]
    rows = (x / root).unsqueeze(1)
    mean: Tensor = gat_attention(graph, rows, rows.new_zeros(len(x), 1))
    return mean.squeeze(1) * root


def normalised_adjacency(graph: Graph) -> SparseRows:
    """``D^-1/2 A D^-1/2`` with ``D`` the in-degrees, remembered while the graph lives."""
    found: SparseRows | None = _adjacencies.get(graph)
    if found is None:
        used = int(graph.rowptr[-1])
        source, target, eid = (part[:used] for part in graph.csr_edges())
        scale = graph.rowptr.diff().float().rsqrt()
        values = scale[source] * scale[target]
        place = torch.empty(graph.num_edges, dtype=torch.long, device=graph.device)
        place[eid] = torch.arange(used, device=graph.device)
        found = _adjacencies[graph] = SparseRows(
            graph.rowptr,
            graph.col[:used],
            values,
            (graph.num_dst, graph.num_src),
            graph.colptr,
            graph.row[:used],
            place[graph.ceid[:used].long()].int(),
        )
    return found


_adjacencies: Any = WeakKeyDictionary()
