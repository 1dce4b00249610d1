"""Networks: the two-layer GAT of the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatkernels.graph import Graph
from gatkernels.nn import Features, GATConv
from gatkernels.sparse import SparseRows


class GAT(nn.Module):
    """Two graph attention layers: heads concatenated, then averaged (Velickovic et al., 2018).

    Dropout acts on the input of both layers and on the attention weights. ``forward`` takes
    ``x [N, in_channels]``, dense or sparse CSR, and an ``edge_index`` or a
    :class:`gatkernels.Graph`, and returns logits ``[N, out_channels]``.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.6,
        negative_slope: float = 0.2,
        add_self_loops: bool = True,
        residual: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = GATConv(
            in_channels,
            hidden_channels,
            heads,
            True,
            negative_slope,
            dropout,
            add_self_loops,
            residual=residual,
            backend=backend,
        )
        self.conv2 = GATConv(
            hidden_channels * heads,
            out_channels,
            out_heads,
            False,
            negative_slope,
            dropout,
            add_self_loops,
            residual=residual,
            backend=backend,
        )

    def reset_parameters(self) -> None:
        self.conv1.reset_parameters()
        self.conv2.reset_parameters()

    def forward(self, x: Features, edge_index: Tensor | Graph) -> Tensor:
        if isinstance(x, SparseRows) or x.layout == torch.sparse_csr:
            sparse = x if isinstance(x, SparseRows) else SparseRows.of(x)
            x = sparse.dropout(self.dropout, self.training)
        else:
            x = F.dropout(x, self.dropout, self.training)
        hidden = F.elu(self.conv1(x, edge_index))
        hidden = F.dropout(hidden, self.dropout, self.training)
        logits: Tensor = self.conv2(hidden, edge_index)
        return logits
