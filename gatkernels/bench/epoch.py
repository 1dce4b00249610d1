"""Time per training epoch on Cora: ours against the same network of PyG's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatkernels.bench.measure import Timing, in_turns
from gatkernels.bench.peers import import_failure, load
from gatkernels.bench.process import Tick
from gatkernels.testing import assert_same_model

SEED = 0
HIDDEN, HEADS, CLASSES, DROPOUT = 8, 8, 7, 0.6
BLOCK = 5


@dataclass(frozen=True)
class EpochResult:
    """Seconds per epoch by model; `reason` says why a time is missing."""

    timings: dict[str, Timing]
    note: str
    logit_difference: float | None = None  # of the two models with equal weights
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times longer PyG's epoch takes than ours."""
        if "pyg" not in self.timings:
            return None
        return self.timings["pyg"].median / self.timings["gatkernels"].median


def own_model(in_channels: int) -> nn.Module:
    from gatkernels.models import GAT

    return GAT(in_channels, HIDDEN, CLASSES, heads=HEADS, out_heads=1, dropout=DROPOUT)


def pyg_model(in_channels: int) -> nn.Module:
    """The paper's two layers from PyG's GATConv, as in PyG's own example."""
    from torch_geometric.nn import GATConv

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = GATConv(in_channels, HIDDEN, HEADS, dropout=DROPOUT)
            self.conv2 = GATConv(HIDDEN * HEADS, CLASSES, heads=1, concat=False, dropout=DROPOUT)

        def forward(self, x: Tensor, edge_index: Tensor) -> Any:
            x = F.dropout(x, DROPOUT, self.training)
            x = F.elu(self.conv1(x, edge_index))
            x = F.dropout(x, DROPOUT, self.training)
            return self.conv2(x, edge_index)

    return Network()


def epoch(model: nn.Module, x: Tensor, edge_index: Tensor) -> Callable[[], None]:
    """One epoch as users run it: a training step, then a forward pass for validation."""
    generator = torch.Generator().manual_seed(SEED)
    train = torch.arange(140)
    validation = torch.arange(140, 640)
    labels = torch.randint(CLASSES, (x.shape[0],), generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=5e-4)

    def run() -> None:
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x, edge_index)[train], labels[train])
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            guess = model(x, edge_index)[validation].argmax(-1)
            (guess == labels[validation]).float().mean().item()

    return run


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Run with torch's generator seeded, and put its state back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def logit_difference(ours: nn.Module, pyg: nn.Module, x: Tensor, edge_index: Tensor) -> float:
    """Copy our weights into PyG's model and compare the two in evaluation mode."""
    for suffix in ("lin.weight", "att_src", "att_dst", "bias"):
        sources = [p for name, p in ours.named_parameters() if name.endswith(suffix)]
        targets = [p for name, p in pyg.named_parameters() if name.endswith(suffix)]
        for source, target in zip(sources, targets, strict=True):
            load(target, source)
    ours.eval()
    pyg.eval()
    with torch.no_grad():
        found, expected = ours(x, edge_index), pyg(x.to_dense(), edge_index)
    return assert_same_model("logits", found, expected)


def epoch_ratio(tick: Tick, rounds: int = 10, block: int = BLOCK) -> EpochResult:
    """Seconds per epoch in interleaved blocks; PyG gets dense features, ours the same as CSR.

    Raises: MissingExtraError where the data set's reader is not installed.
    """
    from gatkernels.experiments import datasets

    tick("epoch: Cora")
    data = datasets.load("cora")
    with torch_seed(SEED):
        ours = own_model(data.num_features)
        models: dict[str, tuple[nn.Module, Tensor]] = {"gatkernels": (ours, data.x)}
        difference = None
        if (reason := import_failure("torch_geometric.nn")) is None:
            pyg = pyg_model(data.num_features)
            models["pyg"] = (pyg, data.x.to_dense())
            try:
                difference = logit_difference(ours, pyg, data.x, data.edge_index)
            except AssertionError as error:
                return EpochResult({}, data.source, None, f"FAIL: {error}")
        runs = {name: epoch(model, x, data.edge_index) for name, (model, x) in models.items()}

        def epochs(run: Callable[[], None]) -> Callable[[], None]:
            def many() -> None:
                for _ in range(block):
                    run()

            run()
            return many

        turns = {name: partial(epochs, run) for name, run in runs.items()}
        timings = in_turns(turns, rounds, lambda name: tick(f"epoch: {name}"))
    timings = {name: timing.over(block) for name, timing in timings.items()}
    return EpochResult(timings, data.source, difference, reason or "")
