"""Imports every library a child may need; imported once, by the server that forks the children."""

from __future__ import annotations

import os

# A process that has asked CUDA for its devices cannot be forked; asking the driver's library can.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from gatkernels.backends import threads
from gatkernels.bench import adapters, run
from gatkernels.bench.peers import import_failure

for _library in ("torch_geometric.nn", "dgl.nn.pytorch"):
    import_failure(_library)
threads.nothing_ran()  # so that kernels have all their threads in the children

__all__ = ["adapters", "run"]
