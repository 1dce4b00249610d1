"""GATv2 with edge features: a layer of one's own on `gatv2_attention`, on torch alone.

PyG users have it ready-made: `gatkernels.pyg.GATv2Conv(..., edge_dim=...)`.
"""

import torch
import torch.nn.functional as F
from communities import communities
from torch import Tensor, nn

from gatkernels import Graph, gatv2_attention


class EdgeGATv2(nn.Module):
    def __init__(self, inputs: int, channels: int, heads: int, edge_inputs: int) -> None:
        super().__init__()
        self.of_src, self.of_dst, self.of_edge = (
            nn.Linear(size, heads * channels, bias=False) for size in (inputs, inputs, edge_inputs)
        )
        self.att = nn.Parameter(torch.randn(heads, channels) / channels**0.5)

    def forward(self, graph: Graph, x: Tensor, edge_attr: Tensor) -> Tensor:
        src, dst, edge = (
            project(rows).unflatten(1, self.att.shape)
            for project, rows in ((self.of_src, x), (self.of_dst, x), (self.of_edge, edge_attr))
        )
        return gatv2_attention(graph, src, dst, self.att, edge).flatten(1)


def main() -> float:
    x, edges, label = communities()
    edge_attr = (label[edges[0]] == label[edges[1]]).float()[:, None] + torch.randn(len(edges.T), 2)
    graph, train = Graph.from_edge_index(edges, len(x)), torch.arange(len(x)) < 100
    first, second = EdgeGATv2(16, 8, 4, 2), EdgeGATv2(32, 4, 1, 2)
    model = nn.ModuleList([first, second])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        logits = second(graph, F.elu(first(graph, x, edge_attr)), edge_attr)
        F.cross_entropy(logits[train], label[train]).backward()
        optimizer.step()
    accuracy = (logits.argmax(1) == label)[~train].float().mean().item()
    print(f"accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
