"""Attention by dot products: a block of a graph transformer, with norms and a feed-forward part."""

import torch
import torch.nn.functional as F
from communities import communities
from torch import Tensor, nn

from gatkernels import Graph
from gatkernels.nn import TransformerConv


class Block(nn.Module):
    def __init__(self, width: int, heads: int, edge_dim: int) -> None:
        super().__init__()
        self.attend = TransformerConv(width, width // heads, heads, edge_dim=edge_dim)
        self.think = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x: Tensor, graph: Graph, edge_attr: Tensor) -> Tensor:
        x = x + self.attend(self.norms[0](x), graph, edge_attr)
        return x + self.think(self.norms[1](x))


def main() -> float:
    x, edges, label = communities()
    edge_attr = (label[edges[0]] == label[edges[1]]).float()[:, None] + torch.randn(len(edges.T), 2)
    graph = Graph.from_edge_index(edges, len(x))
    into, out = nn.Linear(16, 32), nn.Linear(32, 4)
    blocks = nn.ModuleList(Block(32, 4, edge_attr.shape[1]) for _ in range(2))
    model, train = nn.ModuleList([into, blocks, out]), torch.arange(len(x)) < 100
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(40):
        optimizer.zero_grad()
        h = into(x)
        for block in blocks:
            h = block(h, graph, edge_attr)
        logits = out(h)
        F.cross_entropy(logits[train], label[train]).backward()
        optimizer.step()
    accuracy = (logits.argmax(1) == label)[~train].float().mean().item()
    print(f"accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
