"""The same with mini-batches: a model of PyG's, accelerated, and a sampler for each process.

torchrun --nproc-per-node 2 examples/distributed_minibatch.py

Every process has all edges and features in its memory and trains on batches of its own;
DistributedDataParallel averages their gradients. (PyG's NeighborLoader does as well as the sampler
below, where pyg-lib is installed: give it ``input_nodes=mine`` and take ``batch.edge_index``.)
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.nn import GAT

import gatkernels

NODES, CLASSES, FEATURES, BATCH, FAN_OUT = 4000, 4, 16, 256, (10, 10)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()

draw = torch.Generator().manual_seed(0)  # the same graph on all
src = torch.randint(NODES, (40_000,), generator=draw)
near = (src + CLASSES * torch.randint(-20, 20, src.shape, generator=draw)) % NODES
far = torch.randint(NODES, src.shape, generator=draw)
dst = torch.where(torch.rand(src.shape, generator=draw) < 0.8, near, far)
y = torch.arange(NODES) % CLASSES
x = 0.5 * F.one_hot(y, FEATURES) + torch.randn(NODES, FEATURES, generator=draw)
train = torch.arange(NODES)[torch.arange(NODES) % 3 != 0]
test = torch.arange(NODES)[torch.arange(NODES) % 3 == 0]

neighbours = src[dst.argsort(stable=True)]
ends = torch.bincount(dst, minlength=NODES).cumsum(0)


def sample(seeds: Tensor) -> tuple[Tensor, Tensor]:
    """The nodes of a batch, seeds first, and its edges: of each node some incoming ones per hop."""
    nodes, frontier, found = seeds, seeds, []
    for fan_out in FAN_OUT:
        degree = (ends - F.pad(ends, (1, 0))[:-1])[frontier]
        linked = frontier[degree > 0].repeat_interleave(fan_out)
        start = ends[linked] - degree[degree > 0].repeat_interleave(fan_out)
        place = start + (torch.rand(len(start)) * (ends[linked] - start)).long()
        found.append(torch.stack([neighbours[place], linked]))
        frontier = neighbours[place].unique()
        nodes = torch.cat([nodes, frontier[~torch.isin(frontier, nodes)]])
    number = torch.empty(NODES, dtype=torch.long)
    number[nodes] = torch.arange(len(nodes))
    return nodes, number[torch.cat(found, dim=1)]


torch.manual_seed(0)
model = GAT(FEATURES, 32, num_layers=2, out_channels=CLASSES, heads=4, dropout=0.2)
report = gatkernels.accelerate(model)  # in place; it remains PyG's model
parallel = DistributedDataParallel(model)
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
torch.manual_seed(1 + rank)  # batches and dropout of its own
for _ in range(6):
    order = train[torch.randperm(len(train), generator=draw)]  # the same on all
    for first in range(0, len(order) - size * BATCH + 1, size * BATCH):
        mine = order[first + rank * BATCH :][:BATCH]
        nodes, edges = sample(mine)
        optimizer.zero_grad()
        F.cross_entropy(parallel(x[nodes], edges)[: len(mine)], y[mine]).backward()
        optimizer.step()

model.eval()
with torch.no_grad():
    mine = test[rank::size]
    nodes, edges = sample(mine)
    right = (model(x[nodes], edges)[: len(mine)].argmax(1) == y[mine]).sum()
dist.all_reduce(right)
if rank == 0:
    print(report)
    print(f"test accuracy {int(right) / len(test):.1%}")
dist.destroy_process_group()
