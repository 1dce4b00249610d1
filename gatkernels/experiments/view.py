"""A run opened for looking: its network run once over the graph that the plots show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments.attention import Attention, Layer, entropy, watch
from gatkernels.experiments.batches import build_graph
from gatkernels.experiments.plots.curves import model_title
from gatkernels.experiments.runs import Run

# In the order of the public files' labels; the numbers of nodes per class tell which is which.
CLASS_NAMES = {
    "cora": (
        "theory", "reinforcement learning", "genetic algorithms", "neural networks",
        "probabilistic methods", "case based", "rule learning",
    ),
    "citeseer": ("AI", "machine learning", "information retrieval", "databases", "agents", "HCI"),
    "pubmed": ("experimental diabetes", "type 1 diabetes", "type 2 diabetes"),
}  # fmt: skip


class LookError(ValueError):
    """The run has nothing of the kind that was asked for."""


@dataclass(frozen=True)
class View:
    """What the plots of a run show: all nodes of its graph, or those of the test graphs.

    ``x [N, F]``, ``edge_index [2, E]``, ``y`` and ``test_mask`` are of these nodes, on the CPU;
    ``logits [N, C]`` and ``layers`` come from one pass without dropout. ``layers`` is empty for a
    network without attention.
    """

    run: Run
    x: Tensor
    edge_index: Tensor
    y: Tensor
    test_mask: Tensor
    logits: Tensor
    layers: list[Layer]

    @classmethod
    def of(cls, run: Run) -> View:
        data = run.dataset
        x, edges, y, mask = data.x, data.edge_index, data.y, data.test_mask
        if data.node_ptr is not None:  # the test graphs lie one after the other
            graphs = data.graphs_of(mask)
            nodes, edges = data.graph_range(graphs[0], graphs[-1] + 1)
            x, y, mask = x[nodes], y[nodes], mask[nodes]
        logits, layers = watch(run.model, x, build_graph(edges, y.shape[0]))
        if not bool(torch.isfinite(logits).all()):
            raise LookError(f"{run.folder}: the network's output is not finite")
        return cls(run, x, edges.cpu(), y.cpu(), mask.cpu(), logits, layers)

    @property
    def num_nodes(self) -> int:
        return self.y.shape[0]

    @property
    def attentions(self) -> list[Attention]:
        """One per layer. Raises: LookError for a network without."""
        if not self.layers:
            raise LookError(
                f"{self.run.folder}: {model_title(self.run.preset.model)} has no attention to show"
            )
        return [layer.attention for layer in self.layers]

    def embedding(self, trained: bool = True) -> Tensor:
        """What the last attention layer gets ``[N, F]``, or the logits of a network without."""
        logits, layers = self.logits, self.layers
        if not trained:
            graph = build_graph(self.edge_index.to(self.x.device), self.num_nodes)
            logits, layers = watch(self.run.untrained_model().to(self.x.device), self.x, graph)
        inputs: Tensor = layers[-1].inputs.cpu() if layers else logits
        return inputs

    @cached_property
    def groups(self) -> tuple[Tensor, Sequence[str] | None]:
        """What colours the nodes, int64 ``[N]``, and its names.

        The class; where a node may have many labels, a quarter of the nodes by number of labels.
        """
        if self.y.dim() == 1:
            known = self.run.dataset.public_split
            return self.y, CLASS_NAMES.get(self.run.dataset.name) if known else None
        count = (self.y > 0.5).sum(1)
        ends = [int(end) for end in np.quantile(count.numpy(), [0.25, 0.5, 0.75])]
        group = torch.bucketize(count, torch.tensor(ends))
        starts = [0, *(end + 1 for end in ends)]
        stops = [*ends, int(count.max())]
        names = [f"{a} to {b} labels" for a, b in zip(starts, stops, strict=True)]
        return group, names

    def node_scores(self) -> tuple[Tensor, str]:
        """Score of each node ``[N]``, and its name: 1 or 0, or F1 where nodes have many labels."""
        if self.y.dim() == 1:
            return (self.logits.argmax(1) == self.y).double(), "test accuracy"
        guess, truth = self.logits > 0, self.y > 0.5
        found, total = 2 * (guess & truth).sum(1), guess.sum(1) + truth.sum(1)
        return torch.where(total > 0, found / total.clamp(min=1), 1.0), "test F1 per node"

    def most_selective(self) -> tuple[int, int]:
        """Layer and head with the lowest mean entropy; all heads see the same neighbourhoods."""
        mean = [entropy(attention).mean(0) for attention in self.attentions]
        layer = min(range(len(mean)), key=lambda k: float(mean[k].min()))
        return layer, int(mean[layer].argmin())


def layer_name(layer: int) -> str:
    return f"layer {layer + 1}"


def describe(run: Run) -> dict[str, Any]:
    """The facts at the head of a report, in the order a reader wants them."""
    metrics, history = run.metrics, run.history
    data, summary = metrics["dataset"], metrics["summary"]
    weights = sum(weight.numel() for weight in run.model.parameters())
    facts = {
        "Network": f"{model_title(run.preset.model)}, {weights:,} weights",
        "Data": data["source"],
        f"Test {data['metric']}": f"{history['test_score']:.2%} "
        f"(seed {run.seed}; validation {history['val_score']:.2%})",
        "Epochs": f"best {history['best_epoch']} of {history['epochs']}, "
        f"{history['ms_per_epoch']:.1f} ms each",
    }
    if history["test_score_exact"] is not None:
        facts["On exact labels"] = f"{history['test_score_exact']:.2%}"
    if summary["test_score_std"] is not None:
        facts["All seeds"] = (
            f"{summary['test_score_mean']:.2%} ± {summary['test_score_std']:.2%} "
            f"over {summary['seeds']}; the plots show the one best on validation"
        )
    return facts
