"""Training on sampled neighbourhoods: every batch is a small graph, built within its step."""

import torch
import torch.nn.functional as F
from communities import communities
from torch import Tensor

from gatkernels.nn import GATConv


def sample(edges: Tensor, seeds: Tensor, hops: int, fan_out: int) -> tuple[Tensor, Tensor]:
    """Nodes around `seeds` (these first) and the edges among them, at most `fan_out` into each."""
    nodes, kept = seeds, []
    for _ in range(hops):
        into = edges[:, torch.isin(edges[1], nodes)]
        into = into[:, torch.randperm(into.shape[1])]
        into = into[:, into[1].argsort(stable=True)]
        first = torch.searchsorted(into[1].contiguous(), into[1].contiguous())
        kept.append(into[:, torch.arange(into.shape[1]) - first < fan_out])
        new = kept[-1][0]
        nodes = torch.cat([nodes, new[~torch.isin(new, nodes)].unique()])
    place = torch.full((int(edges.max()) + 1,), -1)
    place[nodes] = torch.arange(len(nodes))
    return nodes, place[torch.cat(kept, 1).unique(dim=1)]


def main() -> float:
    x, edges, label = communities(nodes=2000)
    first, second = GATConv(16, 8, heads=4), GATConv(32, 4, heads=1)
    model, train = torch.nn.ModuleList([first, second]), torch.arange(400)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(4):
        for seeds in train[torch.randperm(len(train))].split(64):
            nodes, batch = sample(edges, seeds, hops=2, fan_out=5)
            optimizer.zero_grad()
            logits = second(F.elu(first(x[nodes], batch)), batch)[: len(seeds)]
            F.cross_entropy(logits, label[seeds]).backward()
            optimizer.step()
    with torch.no_grad():
        guess = second(F.elu(first(x, edges)), edges).argmax(1)
    accuracy = (guess == label)[400:].float().mean().item()
    print(f"accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
