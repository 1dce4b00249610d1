"""PyG's GAT model on the fused layers."""

from __future__ import annotations

from typing import Any

from torch_geometric.nn import models

from gatkernels.layers.dropin import drop_ins
from gatkernels.pyg.layers import GATConv, GATv2Conv

_OURS = drop_ins(GATConv, GATv2Conv)


class GAT(models.GAT):  # type: ignore[misc]
    """``torch_geometric.nn.models.GAT`` on fused layers; every argument is PyG's.

    ``forward`` takes a :class:`gatkernels.Graph`, too, as :class:`GATConv` does: its own self loops
    decide, not ``add_self_loops``.
    """

    def init_conv(
        self, in_channels: int | tuple[int, int], out_channels: int, **kwargs: Any
    ) -> Any:
        conv = super().init_conv(in_channels, out_channels, **kwargs)
        conv.__class__ = _OURS[type(conv)]
        return conv
