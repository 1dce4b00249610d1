"""Full-graph training with early stopping: the loop behind every experiment."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatkernels.experiments.datasets import Dataset
from gatkernels.experiments.presets import Preset

Inputs = tuple[Tensor, Any]
ModelFactory = Callable[[Preset, Dataset, str], nn.Module]
OnEpoch = Callable[[int, float, float, int], None]

CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class RunResult:
    """One training run; ``state`` holds the best weights, on the CPU."""

    seed: int
    test_accuracy: float
    test_loss: float
    val_accuracy: float
    best_epoch: int
    epochs: int
    seconds: float
    ms_per_epoch: float
    stop: str
    curves: dict[str, list[float]]
    state: dict[str, Tensor]

    @property
    def interrupted(self) -> bool:
        return self.stop == "interrupted"


class EarlyStopping:
    """Counts epochs without a new best; ``update`` says whether to keep the weights.

    ``acc_or_loss`` is the rule of the paper's code: reaching the best accuracy or the best loss
    restarts the count, and weights are kept where both are reached at once.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        self.monitor = monitor
        self.patience = patience
        self.waited = 0
        self.best_accuracy = float("-inf")
        self.best_loss = float("inf")

    def update(self, accuracy: float, loss: float) -> bool:
        acc_reached, loss_reached = accuracy >= self.best_accuracy, loss <= self.best_loss
        if self.monitor == "acc_or_loss":
            progress, keep = acc_reached or loss_reached, acc_reached and loss_reached
            self.best_accuracy = max(accuracy, self.best_accuracy)
            self.best_loss = min(loss, self.best_loss)
        else:
            if self.monitor == "loss":
                keep = loss < self.best_loss
            else:  # the loss decides between equal accuracies
                keep = (accuracy, -loss) > (self.best_accuracy, -self.best_loss)
            progress = keep
            if keep:
                self.best_accuracy, self.best_loss = accuracy, loss
        self.waited = 0 if progress else self.waited + 1
        return keep

    @property
    def exhausted(self) -> bool:
        return self.waited >= self.patience


def build_gat(preset: Preset, dataset: Dataset, backend: str) -> nn.Module:
    """The paper's network; its inputs are those of :func:`build_inputs`."""
    from gatkernels.models import GAT

    return GAT(
        dataset.num_features,
        preset.hidden,
        dataset.num_classes,
        heads=preset.heads,
        out_heads=preset.out_heads,
        dropout=preset.dropout,
        negative_slope=preset.negative_slope,
        backend=backend,
    )


def build_inputs(dataset: Dataset) -> Inputs:
    """Sparse features, and the graph with self loops, built once."""
    from gatkernels import Graph

    return dataset.x, Graph.from_edge_index(dataset.edge_index, dataset.num_nodes, self_loops=True)


def train(
    preset: Preset,
    dataset: Dataset,
    seed: int = 0,
    device: torch.device | str = "cpu",
    backend: str = "auto",
    *,
    model_factory: ModelFactory = build_gat,
    inputs: Inputs | None = None,
    on_epoch: OnEpoch | None = None,
) -> RunResult:
    """Train until validation stops improving; test the best weights once.

    Args:
        preset: Hyper-parameters.
        dataset: Nodes, labels and split; moved to ``device``.
        seed: Seeds torch's generators before the model is built.
        backend: Passed to ``model_factory``.
        model_factory: Builds the module; its forward takes the two ``inputs`` and returns logits
            ``[N, num_classes]``.
        inputs: What the model is called with, on ``device`` already; default
            :func:`build_inputs`.
        on_epoch: Called after each epoch, outside the measured time, with its number, training
            loss, validation accuracy, and the epochs waited for a better one.

    Ctrl-C ends the run early and keeps the best weights so far; before the first epoch is done it
    propagates.
    """
    device = torch.device(device)
    data = dataset.to(device)
    torch.manual_seed(seed)
    x, graph = inputs or build_inputs(data)
    model = model_factory(preset, data, backend).to(device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=preset.lr, weight_decay=preset.weight_decay, fused=True
    )
    nodes = [mask.nonzero().squeeze(1) for mask in (data.train_mask, data.val_mask, data.test_mask)]
    labels = [data.y[index] for index in nodes]

    weights = list(model.state_dict().values())
    best = [weight.clone() for weight in weights]
    stopping = EarlyStopping(preset.monitor, preset.patience)
    rows: list[list[float]] = []
    times: list[float] = []
    best_epoch, stop = 0, "epochs"
    start = time.perf_counter()
    try:
        for epoch in range(1, preset.epochs + 1):
            tick = time.perf_counter()
            model.train()
            optimizer.zero_grad()
            train_loss = F.cross_entropy(model(x, graph)[nodes[0]], labels[0])
            torch.autograd.backward(train_loss)
            optimizer.step()
            train_accuracy, (val_loss, val_accuracy) = _validate(model, x, graph, nodes, labels)
            # One transfer for all four, so that a device is waited for once an epoch.
            row = torch.stack([train_loss.detach(), train_accuracy, val_loss, val_accuracy])
            rows.append(row.tolist())
            if stopping.update(accuracy=rows[-1][3], loss=rows[-1][2]):
                torch._foreach_copy_(best, weights)
                best_epoch = epoch
            times.append(time.perf_counter() - tick)
            if on_epoch is not None:
                on_epoch(epoch, rows[-1][0], rows[-1][3], stopping.waited)
            if stopping.exhausted:
                stop = "patience"
                break
    except KeyboardInterrupt:
        if not times:
            raise
        stop = "interrupted"
    seconds = time.perf_counter() - start

    torch._foreach_copy_(weights, best)
    model.eval()
    with torch.no_grad():
        test_loss, test_accuracy = _score(model(x, graph)[nodes[2]], labels[2])
    warm = times[5:] or times
    return RunResult(
        seed=seed,
        test_accuracy=float(test_accuracy),
        test_loss=float(test_loss),
        val_accuracy=rows[best_epoch - 1][3],
        best_epoch=best_epoch,
        epochs=len(rows),
        seconds=seconds,
        ms_per_epoch=1e3 * statistics.median(warm),
        stop=stop,
        curves={name: [row[i] for row in rows] for i, name in enumerate(CURVES)},
        state={name: value.cpu() for name, value in model.state_dict().items()},
    )


def _score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    accuracy = (logits.argmax(1) == labels).float().mean()
    return F.cross_entropy(logits, labels), accuracy


@torch.no_grad()
def _validate(
    model: nn.Module, x: Tensor, graph: Any, nodes: list[Tensor], labels: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Accuracy on the training nodes, loss and accuracy on the validation nodes."""
    model.eval()
    logits = model(x, graph)
    train_accuracy = (logits[nodes[0]].argmax(1) == labels[0]).float().mean()
    return train_accuracy, _score(logits[nodes[1]], labels[1])
