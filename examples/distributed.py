"""From an edge list to a trained GAT, on a graph that several processes share.

torchrun --nproc-per-node 2 examples/distributed.py
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from gatkernels.distributed import ShardedGraph
from gatkernels.models import GAT

NODES, CLASSES, FEATURES = 4000, 4, 16
dist.init_process_group("gloo")  # "nccl" where every process has a GPU of its own

# Each process reads some of the edges, no matter which: here 20,000 that it draws, most of them
# between nodes of one class, and its part of a self loop for every node.
draw = torch.Generator().manual_seed(dist.get_rank())
src = torch.randint(NODES, (20_000,), generator=draw)
near = (src + CLASSES * torch.randint(-20, 20, src.shape, generator=draw)) % NODES
far = torch.randint(NODES, src.shape, generator=draw)
dst = torch.where(torch.rand(src.shape, generator=draw) < 0.8, near, far)
loops = torch.arange(dist.get_rank(), NODES, dist.get_world_size())
edges = torch.cat([torch.stack([src, dst]), loops.expand(2, -1)], dim=1)
graph = ShardedGraph.from_edge_index(edges, NODES)

# Features and labels of its own nodes, in the order of its rows; every third node is for the test.
y = graph.nodes % CLASSES
x = 0.5 * F.one_hot(y, FEATURES) + torch.randn(len(y), FEATURES, generator=draw)
test = graph.nodes % 3 == 0
count = int((torch.arange(NODES) % 3 != 0).sum())  # of training nodes, of all processes

torch.manual_seed(0)
model = DistributedDataParallel(GAT(FEATURES, 8, CLASSES, heads=4, dropout=0.2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(60):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x, graph)[~test], y[~test], reduction="sum") / count
    (loss * dist.get_world_size()).backward()  # DistributedDataParallel averages, the loss is a sum
    optimizer.step()

model.eval()
with torch.no_grad():
    right = (model(x, graph).argmax(1) == y)[test].sum()
dist.all_reduce(right)
if dist.get_rank() == 0:
    print(graph)
    print(f"test accuracy {int(right) / (NODES - count):.1%}")
dist.destroy_process_group()
