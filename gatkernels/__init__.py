"""Fused graph attention for PyTorch: one pass over CSR, exact, deterministic, O(N) memory."""

from gatkernels import models, nn
from gatkernels.accelerate import accelerate, restore
from gatkernels.backends import BackendUnavailable
from gatkernels.checkpoints import Loaded, load_state_dict
from gatkernels.functional import (
    attention_weights,
    dot_attention,
    gat_attention,
    gatv2_attention,
)
from gatkernels.graph import Graph

__version__ = "0.2.0"  # of the distribution, too
__all__ = [
    "BackendUnavailable",
    "Graph",
    "Loaded",
    "__version__",
    "accelerate",
    "attention_weights",
    "dot_attention",
    "gat_attention",
    "gatv2_attention",
    "load_state_dict",
    "models",
    "nn",
    "restore",
]
