"""Fused drop-ins for PyG's graph attention: same arguments, parameters and results.

``GATConv`` and ``GATv2Conv`` are subclasses of PyG's layers that override the computation alone.
What the fused path cannot do runs PyG's own code. With attention dropout the random stream is
gatkernels' own.
"""

try:
    import torch_geometric  # noqa: F401
except ImportError as error:
    raise ImportError(
        "gatkernels.pyg needs torch-geometric >= 2.6: pip install torch-geometric"
    ) from error

from gatkernels.pyg.layers import DROP_INS, GATConv, GATv2Conv
from gatkernels.pyg.models import GAT

__all__ = ["DROP_INS", "GAT", "GATConv", "GATv2Conv"]
