"""A layer of one's own on the operator: edge features enter through a score per head."""

import torch
import torch.nn.functional as F
from communities import communities
from torch import Tensor, nn

from gatkernels import Graph, gat_attention


class EdgeGAT(nn.Module):
    def __init__(self, inputs: int, channels: int, heads: int, edge_inputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, heads * channels, bias=False)
        self.of_edge = nn.Linear(edge_inputs, heads, bias=False)
        self.att = nn.Parameter(torch.randn(2, heads, channels) / channels**0.5)
        self.shape = heads, channels

    def forward(self, graph: Graph, x: Tensor, edge_attr: Tensor) -> Tensor:
        h = self.project(x).unflatten(1, self.shape)  # [N, H, C]
        score_src, score_dst = ((h * att).sum(-1) for att in self.att)  # [N, H]
        return gat_attention(graph, h, score_src, score_dst, self.of_edge(edge_attr)).flatten(1)


def main() -> float:
    x, edges, label = communities()
    # What an edge knows: whether it joins two of a community, through noise.
    edge_attr = (label[edges[0]] == label[edges[1]]).float()[:, None] + torch.randn(len(edges.T), 2)
    graph = Graph.from_edge_index(edges, len(x))
    layer, train = EdgeGAT(16, 4, 4, 2), torch.arange(len(x)) < 100
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        logits = layer(graph, x, edge_attr).unflatten(1, (4, 4)).mean(1)  # heads averaged
        F.cross_entropy(logits[train], label[train]).backward()
        optimizer.step()
    accuracy = (logits.argmax(1) == label)[~train].float().mean().item()
    print(f"accuracy {accuracy:.1%}")

    few = Graph.from_edge_index(edges[:, :20], len(x))  # gradients, against differences
    inputs = x.double().requires_grad_(), edge_attr[:20].double().requires_grad_()
    double = layer.double()
    assert torch.autograd.gradcheck(lambda a, b: double(few, a, b), inputs, fast_mode=True)
    return accuracy


if __name__ == "__main__":
    main()
