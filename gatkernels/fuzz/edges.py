"""Edges of a random case, from a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gatkernels.graph import Graph

#: All edges anywhere; among a few nodes; into one node; out of one; a few of them over and over;
#: loops alone.
KINDS = ("random", "crowded", "hub", "fan", "parallel", "loops")


@dataclass(frozen=True)
class EdgeSpec:
    """``num_edges`` edges of one of :data:`KINDS`, drawn by ``seed``."""

    kind: str = "random"
    num_src: int = 1
    num_dst: int = 1
    num_edges: int = 0
    self_loops: bool = False
    index_dtype: str = "int64"
    seed: int = 0

    def edge_index(self) -> Tensor:
        """``[2, num_edges]``; no edges where there are no nodes on a side."""
        count = self.num_edges if self.num_src and self.num_dst else 0
        generator = torch.Generator().manual_seed(self.seed)

        def ends(nodes: int, few: bool = False) -> Tensor:
            least = nodes - min(nodes, 3) if few else 0
            return torch.randint(least, max(nodes, 1), (count,), generator=generator)

        src, dst = ends(self.num_src), ends(self.num_dst)
        if self.kind == "crowded":
            src, dst = ends(self.num_src, few=True), ends(self.num_dst, few=True)
        elif self.kind == "hub":
            dst.fill_(self.num_dst // 2)
        elif self.kind == "fan":
            src.fill_(self.num_src // 2)
        elif self.kind == "parallel":
            src, dst = (t[:2].repeat(count // 2 + 1)[:count] for t in (src, dst))
        elif self.kind == "loops":
            src = dst = src % max(min(self.num_src, self.num_dst), 1)
        return torch.stack([src, dst]).to(getattr(torch, self.index_dtype))

    def graph(self, device: str = "cpu") -> Graph:
        counts = self.num_src, self.num_dst
        return Graph.from_edge_index(self.edge_index().to(device), counts, self.self_loops)
