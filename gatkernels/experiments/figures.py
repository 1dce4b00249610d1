"""The figures of ``gatkernels plot``: the plots of one run, arranged, with their numbers said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gatkernels.experiments import plots
from gatkernels.experiments.attention import (
    entropy,
    homophily,
    overlap,
    uniform_entropy,
    with_uniform,
)
from gatkernels.experiments.plots.graphs import around, choose_nodes, spread_out
from gatkernels.experiments.plots.style import class_legend, new_figure, title
from gatkernels.experiments.view import LookError, View, layer_name

TSNE_NODES = 3000  # more take minutes and hide one another
PER_ROW = 4


@dataclass(frozen=True)
class Choice:
    """What to draw: layer and head (from 0; None for the most selective head), nodes, edges.

    ``edges`` is how many of the strongest attention edges are drawn over the t-SNE.
    """

    layer: int | None = None
    head: int | None = None
    nodes: tuple[int, ...] = ()
    edges: int = 0

    @classmethod
    def of(
        cls, layer: int | None, head: int | None, nodes: Sequence[int] = (), edges: int = 0
    ) -> Choice:
        """From a user's numbers, which count layers and heads from 1. Raises: LookError."""
        for name, value in (("layer", layer), ("head", head)):
            if value is not None and value < 1:
                raise LookError(f"--{name} counts from 1, got {value}")
        if edges < 0:
            raise LookError(f"--edges must not be negative, got {edges}")
        layer, head = (None if value is None else value - 1 for value in (layer, head))
        return cls(layer, head, tuple(nodes), edges)

    def check(self, view: View) -> None:
        """Raises: LookError where the run has no such layer, head or node."""
        for node in self.nodes:
            if not 0 <= node < view.num_nodes:
                raise LookError(f"--node must be from 0 to {view.num_nodes - 1}, got {node}")
        if self.layer is None and self.head is None:
            return
        count, layer = len(view.attentions), self.layer or 0
        if layer >= count:
            raise LookError(f"--layer must be from 1 to {count}, got {layer + 1}")
        heads = view.attentions[layer].heads
        if self.head is not None and self.head >= heads:
            raise LookError(
                f"--head must be from 1 to {heads} in layer {layer + 1}, got {self.head + 1}"
            )


@dataclass(frozen=True)
class Picture:
    """A figure and what it says, in a sentence or two with the numbers."""

    figure: Any
    words: str


def curves(view: View, choice: Choice) -> Picture:
    run = view.run.history
    words = (
        f"Best validation score {run['val_score']:.1%} in epoch {run['best_epoch']} of "
        f"{run['epochs']}; those weights score {run['test_score']:.1%} on the test nodes."
    )
    return Picture(plots.curves(view.run.metrics), words)


def degrees(view: View, choice: Choice) -> Picture:
    figure = new_figure(6.4, 3.8)
    plots.degrees(view.edge_index, view.num_nodes, figure.subplots())
    links = int((view.edge_index[0] != view.edge_index[1]).sum())
    return Picture(figure, f"{view.num_nodes:,} nodes, {links:,} edges.")


def accuracy_by_degree(view: View, choice: Choice) -> Picture:
    figure = new_figure(7.6, 3.8)
    score, measure = view.node_scores()
    degree = torch.from_numpy(plots.in_degrees(view.edge_index, view.num_nodes))
    degree, score = degree[view.test_mask], score[view.test_mask]
    plots.accuracy_by_degree(degree, score, figure.subplots(), measure=measure)
    few = degree <= degree.double().median()
    words = f"{measure[0].upper()}{measure[1:]} {score.mean():.1%} over {len(score):,} test nodes"
    if 0 < int(few.sum()) < len(few):
        words += (
            f": {score[few].mean():.1%} with up to {int(degree[few].max())} neighbours, "
            f"{score[~few].mean():.1%} with more"
        )
    return Picture(figure, words + ".")


def tsne(view: View, choice: Choice) -> Picture:
    nodes = torch.arange(view.num_nodes)
    if view.num_nodes > TSNE_NODES:
        order = np.random.default_rng(0).permutation(view.num_nodes)[:TSNE_NODES]
        nodes = torch.from_numpy(np.sort(order))
    labels, names = view.groups
    figure = new_figure(10.0, 5.0)
    before, after = figure.subplots(1, 2)
    for axes, trained in ((before, False), (after, True)):
        points = plots.project(view.embedding(trained)[nodes])
        edges = _strongest_among(view, choice, nodes) if trained and choice.edges else None
        plots.tsne(points, labels[nodes], axes, names=names, edges=edges)
        title(axes, "after training" if trained else "before training")
    class_legend(figure, labels[nodes], names, loc="outside lower center", ncols=PER_ROW)
    shown = f"{len(nodes):,} of {view.num_nodes:,}" if len(nodes) < view.num_nodes else "All"
    words = f"{shown} nodes; the network describes nodes near each other alike."
    if choice.edges:
        words += f" Lines: the {choice.edges} edges with most attention over uniform."
    return Picture(figure, words)


def _strongest_among(view: View, choice: Choice, nodes: Any) -> Any:
    attention = view.attentions[-1 if choice.layer is None else choice.layer]
    edges = plots.strongest(attention, attention.alpha.shape[0])
    edges = edges[:, torch.isin(edges, nodes).all(0)][:, : choice.edges]
    return torch.searchsorted(nodes, edges.contiguous())


def entropies(view: View, choice: Choice) -> Picture:
    layers = [choice.layer] if choice.layer is not None else range(len(view.attentions))
    attentions = [view.attentions[layer] for layer in layers]
    rows = [-(-attention.heads // PER_ROW) for attention in attentions]
    columns = min(PER_ROW, max(attention.heads for attention in attentions))
    figure = new_figure(max(2.5 * columns, 5.0), 1.9 * sum(rows) + 0.5)
    grid = figure.subplots(sum(rows), columns, sharex=True, sharey="row", squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    ratios, first = [], 0
    for layer, attention, height in zip(layers, attentions, rows, strict=True):
        for head in range(attention.heads):
            row, column = first + head // PER_ROW, head % PER_ROW
            axes = grid[row, column]
            axes.set_visible(True)
            plots.entropy(attention, head, axes)
            title(axes, head_name(layer, head))
            axes.set_xlabel(""), axes.set_ylabel("")
            axes.tick_params(labelbottom=True, labelleft=column == 0)
        first += height
        chooses = attention.degrees() >= 2
        uniform = uniform_entropy(attention)[chooses].mean()
        ratios.append(entropy(attention)[chooses].mean(0) / uniform)
    figure.supxlabel("entropy of a node's attention (bits)", fontsize=9)
    figure.supylabel("nodes", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    words = "; ".join(
        f"{layer_name(layer)}: {_span(100 * ratio)} %"
        for layer, ratio in zip(layers, ratios, strict=True)
    )
    return Picture(figure, f"Mean entropy of the heads, where uniform attention is 100 %: {words}.")


def heads(view: View, choice: Choice) -> Picture:
    attentions = view.attentions
    count = sum(attention.heads for attention in attentions)
    figure = new_figure(10.0, 1.6 + 0.27 * max(count, 8))
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1.0))
    plots.head_overlap(attentions, left)
    title(left, "attention two heads spend on the same edges")
    plots.homophily(attentions, view.y, right)
    share = overlap(with_uniform(attentions), attentions[0])
    words = f"Two heads spend {_span(100 * _off_diagonal(share[:-1, :-1]))} % of their attention "
    words += f"alike, a head and uniform attention {_span(100 * share[-1, :-1])} %."
    if count == 1:
        words = f"The head and uniform attention spend {100 * share[0, 1]:.1f} % alike."
    found = [homophily(attention, view.y) for attention in attentions]
    if found[0].nodes >= 2:
        like = "Attention on same-class neighbours"
        if view.y.dim() == 2:
            like = "Labels in common with neighbours (Jaccard), weighted by attention"
        gains = "; ".join(
            f"{layer_name(k)}: {_span(100 * one.attention)} %" for k, one in enumerate(found)
        )
        words += (
            f" {like}, where a node's neighbours differ ({found[0].nodes:,} nodes): "
            f"{gains}; uniform attention: {100 * found[0].uniform:.1f} %."
        )
    return Picture(figure, words)


def neighbourhood(view: View, choice: Choice) -> Picture:
    layer, head = _layer_and_head(view, choice)
    attention = view.attentions[layer]
    nodes = choice.nodes or choose_nodes(attention)
    labels, names = view.groups
    columns = min(PER_ROW, len(nodes))
    rows = -(-len(nodes) // columns)
    figure = new_figure(max(2.5 * columns, 4.0), 2.8 * rows + 0.9)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(nodes) :]:
        axes.set_visible(False)
    seen = []
    for node, axes in zip(nodes, grid.flat, strict=False):
        plots.neighbourhood(attention, node, labels, head, axes, names=names)
        seen.append(labels[attention.src[attention.dst == node]])
    what = f"{head_name(layer, head)}: edges as wide as attention; ring: attention to itself"
    class_legend(
        figure, torch.cat(seen), names, title=what, loc="outside upper left", ncols=7,
        alignment="left", title_fontsize=9, columnspacing=1.2, handletextpad=0.2,
    )  # fmt: skip
    relative = attention.relative()[torch.isin(attention.dst, torch.tensor(nodes)), head]
    words = (
        f"{head_name(layer, head).capitalize()}: in these neighbourhoods one neighbour gets "
        f"{_span(relative, 2)} times what uniform attention would give it."
    )
    return Picture(figure, words)


def subgraph(view: View, choice: Choice) -> Picture:
    layer, head = _layer_and_head(view, choice)
    attention = view.attentions[layer]
    labels, names = view.groups
    centre = (choice.nodes or choose_nodes(attention, most=0, random=1) or [0])[0]
    nodes = around(attention, centre)
    place = spread_out(attention, nodes)
    figure = new_figure(10.0, 5.2)
    left, right = figure.subplots(1, 2)
    for axes, relative in ((left, False), (right, True)):
        plots.subgraph(attention, nodes, labels, head, axes, relative=relative, place=place)
    title(left, f"{head_name(layer, head)}: {len(nodes)} nodes around node {centre}")
    title(right, "the same, over uniform attention (1 / degree)")
    class_legend(figure, labels[nodes], names, loc="outside lower center", ncols=PER_ROW)
    inside = torch.isin(attention.edge_index, nodes).all(0)
    words = (
        f"{head_name(layer, head).capitalize()}, {len(nodes)} nodes around node {centre}: "
        f"attention is {_span(attention.relative()[inside, head], 2)} times uniform."
    )
    return Picture(figure, words)


FIGURES: dict[str, Callable[[View, Choice], Picture]] = {
    "curves": curves,
    "degrees": degrees,
    "accuracy-by-degree": accuracy_by_degree,
    "tsne": tsne,
    "entropy": entropies,
    "heads": heads,
    "neighbourhood": neighbourhood,
    "subgraph": subgraph,
}
NEED_ATTENTION = ("entropy", "heads", "neighbourhood", "subgraph")


def head_name(layer: int, head: int) -> str:
    return f"{layer_name(layer)}, head {head + 1}"


def _layer_and_head(view: View, choice: Choice) -> tuple[int, int]:
    if choice.layer is None and choice.head is None:
        return view.most_selective()
    return choice.layer or 0, choice.head or 0


def _span(values: Any, digits: int = 1) -> str:
    """The smallest and the largest value, or the one where they read the same."""
    ends = [f"{float(end):.{digits}f}" for end in (values.min(), values.max())]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _off_diagonal(square: Any) -> Any:
    return square[~torch.eye(len(square), dtype=torch.bool)]
