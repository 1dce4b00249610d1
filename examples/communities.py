"""A small data set for the examples: communities whose members mostly link with each other."""

import torch
from torch import Tensor


def communities(
    nodes: int = 600, classes: int = 4, links: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy features ``[N, 16]``, edges ``[2, E]`` both ways, and the community of each node."""
    torch.manual_seed(0)
    label = torch.arange(nodes) % classes
    src = torch.arange(nodes).repeat_interleave(links)
    near = torch.randint(nodes // classes, src.shape) * classes + label[src]
    dst = torch.where(torch.rand(src.shape) < 0.8, near, torch.randint(nodes, src.shape))
    edges = torch.stack([torch.cat([src, dst]), torch.cat([dst, src])])
    x = torch.nn.functional.one_hot(label, 16) + 2.0 * torch.randn(nodes, 16)
    return x, edges, label
