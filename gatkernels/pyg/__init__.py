"""Fused drop-ins for PyG's graph attention: same arguments, parameters and results.

The layers are subclasses of PyG's that override the computation alone. What the fused path cannot
do runs PyG's own code. With attention dropout the random stream is gatkernels' own.
"""

try:
    import torch_geometric  # noqa: F401
except ImportError as error:
    raise ImportError(
        "gatkernels.pyg needs torch-geometric >= 2.6: pip install torch-geometric"
    ) from error

from gatkernels.layers.dropin import drop_ins
from gatkernels.pyg.hgt import HGTConv
from gatkernels.pyg.layers import GATConv, GATv2Conv
from gatkernels.pyg.models import GAT
from gatkernels.pyg.transformer import TransformerConv

DROP_INS = drop_ins(GATConv, GATv2Conv, TransformerConv, HGTConv)

__all__ = ["DROP_INS", "GAT", "GATConv", "GATv2Conv", "HGTConv", "TransformerConv"]
