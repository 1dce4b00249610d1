"""What a training step sees: a graph, the nodes of it that count, and their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels import Graph
from gatkernels.experiments.datasets import Dataset
from gatkernels.experiments.presets import Preset


class Batch(NamedTuple):
    """A graph and the nodes of it that count: all where ``nodes`` is None.

    ``exact`` leaves out labels that are estimates, where there are any. Of a graph that several
    processes share, all rows are this process's own, and ``total`` is the length of everybody's
    ``y``.
    """

    x: Tensor
    graph: Any
    y: Tensor
    nodes: Tensor | None
    exact: Tensor | None = None
    total: int | None = None

    def loss(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the counts whose quotient is the score; of a share, what it adds to both
        (for the loss of all is a mean over everybody's nodes)."""
        logits = logits.float() if self.nodes is None else logits[self.nodes].float()
        several = self.y.dim() == 2
        function = F.binary_cross_entropy_with_logits if several else F.cross_entropy
        if self.total is None:
            loss = function(logits, self.y)
        else:
            count = self.total * (self.y.shape[1] if several else 1)
            loss = function(logits, self.y, reduction="sum") / count
        if several:
            return loss, f1_counts(logits, self.y)
        right = (logits.argmax(1) == self.y).sum()
        return loss, torch.stack([right, torch.full_like(right, self.y.numel())])


def f1_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Twice the true positives, and predicted plus actual positives: micro-F1's two counts."""
    guess, truth = logits > 0, labels > 0.5
    return torch.stack([2 * (guess & truth).sum(), guess.sum() + truth.sum()])


def build_graph(edge_index: Tensor, num_nodes: int) -> Graph:
    """The graph the networks train on: with self loops, built once."""
    return Graph.from_edge_index(edge_index, num_nodes, self_loops=True)


class Batches:
    """The batches of a data set: one graph and three sets of nodes, or groups of graphs.

    Where a data set has several graphs, a training epoch visits them all in random order, in
    groups of ``preset.batch``.

    Args:
        preset, data: Whose batches.
        build: Makes the model's second input from edge index and number of nodes.
        own: What of a batch is this process's.
        agree: The order of graphs that all processes take.
    """

    def __init__(
        self,
        preset: Preset,
        data: Dataset,
        build: Callable[[Tensor, int], Any],
        own: Callable[[Batch], Batch] = lambda batch: batch,
        agree: Callable[[Any], Any] = lambda order: order,
    ) -> None:
        self._data, self._build, self._size = data, build, preset.batch
        self._own, self._agree = own, agree
        masks = {"train": data.train_mask, "val": data.val_mask, "test": data.test_mask}
        if data.node_ptr is None:
            graph = build(data.edge_index, data.num_nodes)
            nodes = {part: mask.nonzero().squeeze(1) for part, mask in masks.items()}
            parts = {
                part: own(Batch(data.x, graph, data.y[index], index))
                for part, index in nodes.items()
            }
            x = parts["train"].x  # the same rows for all
            self._parts = {part: batch._replace(x=x) for part, batch in parts.items()}
        else:
            self._graphs = data.graphs_of(data.train_mask)
            self._parts = {
                part: self._join(data.graphs_of(masks[part])) for part in ("val", "test")
            }

    def _join(self, graphs: list[int]) -> Batch:
        edges, x, y, exact, count = [], [], [], [], 0
        for number in graphs:
            nodes, pairs = self._data.graph_range(number, number + 1)
            edges.append(pairs + count)
            x.append(self._data.x[nodes])
            y.append(self._data.y[nodes])
            if self._data.exact_mask is not None:
                exact.append(self._data.exact_mask[nodes])
            count += nodes.stop - nodes.start
        graph = self._build(torch.cat(edges, 1), count)
        right = torch.cat(exact) if exact else None
        return self._own(Batch(torch.cat(x), graph, torch.cat(y), None, right))

    def training(self) -> Iterator[Batch]:
        if self._data.node_ptr is None:
            yield self._parts["train"]
            return
        places = self._agree(torch.randperm(len(self._graphs)).tolist())
        order = [self._graphs[place] for place in places]
        for first in range(0, len(order), self._size):
            yield self._join(order[first : first + self._size])

    def part(self, name: str) -> Batch:
        return self._parts[name]
