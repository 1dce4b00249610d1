"""Graphs that outgrew one machine: attention over ``torch.distributed``."""

from gatkernels.distributed.share import Share

__all__ = ["Share"]
