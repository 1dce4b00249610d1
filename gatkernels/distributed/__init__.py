"""Graphs that outgrew one machine: attention over ``torch.distributed``."""

from gatkernels.distributed.graph import ShardedGraph
from gatkernels.distributed.peers import RankError
from gatkernels.distributed.share import Share

__all__ = ["RankError", "ShardedGraph", "Share"]
