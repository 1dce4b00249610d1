"""Attention drawn on the graph: one node with its neighbours, or a part of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments.attention import Attention
from gatkernels.experiments.plots.style import (
    BLUE,
    GREY,
    VERMILION,
    axes_or_new,
    bare,
    class_style,
    colour_bar,
    scatter_classes,
    title,
)
from gatkernels.extras import require

WIDEST, HAIR = 5.0, 0.02  # points; what is thinner is not seen
RING = 0.22


def neighbourhood(
    attention: Attention,
    node: int,
    labels: Tensor,
    head: int = 0,
    axes: Any = None,
    *,
    names: Sequence[str] | None = None,
) -> Any:
    """A node in the middle of its neighbours, edges as wide as the attention it pays them.

    Neighbours are sorted by class; the ring is the edge from the node to itself. The widest edge
    is as wide in every picture, so the title gives its weight, and the uniform one.

    Args:
        attention: A layer's.
        node: The node that attends.
        labels: Classes ``[N]``, -1 for no class (grey).
        head: Which head of the layer.
        axes: Where to draw; a new figure's if None.
        names: Of the classes.
    """
    axes = axes_or_new(axes, 4.0, 4.0)
    into = (attention.dst == node).nonzero()[:, 0]
    src, alpha = attention.src[into], attention.alpha[into, head]
    self_weight = float(alpha[src == node].sum())
    others = (src != node).nonzero()[:, 0]
    others = others[torch.argsort(labels[src[others]], stable=True)]
    src, alpha = src[others], alpha[others]
    top = max(self_weight, float(alpha.max()) if len(alpha) else 0.0)
    width = WIDEST * alpha.numpy() / max(top, 1e-30)
    angle = 2 * np.pi * np.arange(len(src)) / max(len(src), 1) + np.pi / 2
    ends = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    seen = width > HAIR
    shown = labels[src][torch.from_numpy(seen)].tolist()
    lines = require("matplotlib.collections", "matplotlib").LineCollection(
        np.stack([RING * ends, ends], axis=1)[seen],
        linewidths=width[seen],
        colors=[class_style(c)["color"] if c >= 0 else "#999999" for c in shown],
        alpha=0.65,
        zorder=1,
    )
    axes.add_collection(lines)
    if self_weight > 0:
        circle = require("matplotlib.patches", "matplotlib").Circle
        ring = circle((0, 0), RING, fill=False, edgecolor=GREY, zorder=2)
        ring.set_linewidth(WIDEST * self_weight / top)
        axes.add_patch(ring)
    small = 50 if len(src) <= 40 else 16
    scatter_classes(axes, ends, labels[src], names, size=small, zorder=3)
    scatter_classes(
        axes, [[0, 0]], labels[[node]], names, size=90, zorder=4, edgecolors="black", linewidths=1.2
    )
    axes.set_aspect("equal")
    axes.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12))
    bare(axes)
    title(
        axes,
        f"node {node}: {len(src)} neighbours\n"
        f"$\\alpha$: largest {top:.3f}, ring {self_weight:.3f},\n"
        f"uniform {1 / max(len(into), 1):.3f}",
    )
    return axes


def choose_nodes(attention: Attention, most: int = 4, random: int = 4, seed: int = 0) -> list[int]:
    """The nodes with most edges, then random ones that have two neighbours or more."""
    degree = attention.degrees()
    first = torch.argsort(degree, descending=True, stable=True)[:most]
    rest = (degree >= 3).index_fill(0, first, False).nonzero()[:, 0]
    order = np.random.default_rng(seed).permutation(len(rest))[:random]
    return [*first.tolist(), *rest[torch.from_numpy(order)].tolist()]


def around(attention: Attention, node: int, count: int = 70) -> Tensor:
    """``node`` and the nodes nearest to it by links, at most ``count``, ascending ``[M]``.

    Breadth first; of nodes equally far those with fewer neighbours come first, so that a picture
    is not filled by the neighbours of one hub.
    """
    degree = attention.degrees()
    chosen = torch.zeros(attention.num_nodes, dtype=torch.bool)
    chosen[node] = True
    while (left := count - int(chosen.sum())) > 0:
        ring = attention.src[chosen[attention.dst]].unique()
        ring = ring[~chosen[ring]]
        if not len(ring):
            break
        chosen[ring[torch.argsort(degree[ring], stable=True)[:left]]] = True
    return chosen.nonzero()[:, 0]


def spread_out(attention: Attention, nodes: Tensor) -> Any:
    """Coordinates ``[M, 2]`` for the graph among ``nodes`` (Kamada and Kawai, by networkx)."""
    nx = require("networkx", "networkx")
    graph = nx.Graph()
    graph.add_nodes_from(nodes.tolist())
    inside = torch.isin(attention.edge_index, nodes).all(0)
    graph.add_edges_from(attention.edge_index[:, inside].T.tolist())
    threads = require("threadpoolctl", "scikit-learn")
    with threads.threadpool_limits(1, "blas"):  # the vectors are short: threads only wait
        place = nx.kamada_kawai_layout(graph) if len(nodes) > 1 else {int(nodes[0]): (0.0, 0.0)}
    return np.array([place[node] for node in nodes.tolist()])


def subgraph(
    attention: Attention,
    nodes: Tensor,
    labels: Tensor,
    head: int = 0,
    axes: Any = None,
    *,
    relative: bool = False,
    place: Any = None,
) -> Any:
    """The graph among ``nodes``, each link in two halves coloured by attention.

    The half of a link next to a node is the attention of that node to the other one.

    Args:
        attention: A layer's.
        nodes: Different node numbers, ascending ``[M]``, one at least.
        labels: Classes ``[N]``, -1 for no class (grey).
        head: Which head of the layer.
        axes: Where to draw; a new figure's if None.
        relative: Colour by attention over uniform attention, instead of the attention itself.
        place: Coordinates ``[M, 2]``, by default those of :func:`spread_out`.
    """
    axes = axes_or_new(axes, 5.5, 4.8)
    place = spread_out(attention, nodes) if place is None else np.asarray(place)
    inside = torch.isin(attention.edge_index, nodes).all(0) & (attention.src != attention.dst)
    values = (attention.relative() if relative else attention.alpha)[inside, head].numpy()
    src, dst = torch.searchsorted(nodes, attention.edge_index[:, inside].contiguous()).numpy()
    halves = np.stack([place[dst], (place[src] + place[dst]) / 2], axis=1)
    order = np.argsort(values)
    # Grey, not white, at the point of rest: a white edge would not be seen.
    shades = [BLUE, "#cccccc", VERMILION] if relative else ["#d9d9d9", BLUE, "#001a2c"]
    colours = require("matplotlib.colors", "matplotlib").LinearSegmentedColormap
    lines = require("matplotlib.collections", "matplotlib").LineCollection(
        halves[order], cmap=colours.from_list("attention", shades), linewidths=2.2, zorder=1
    )
    lines.set_array(values[order])
    far = min(max(np.abs(values - 1).max(initial=0.0), 0.05), 1.0)
    lines.set_clim(*((1 - far, 1 + far) if relative else (0, max(values.max(initial=0.0), 1e-6))))
    axes.add_collection(lines)
    scatter_classes(
        axes, place, labels[nodes], size=42, zorder=2, edgecolors="white", linewidths=0.8
    )
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.04)
    bare(axes)
    label = "attention over uniform attention" if relative else r"attention $\alpha$"
    more = "max" if relative and values.max(initial=0.0) > 1 + far else "neither"
    colour_bar(lines, axes, label, extend=more)
    return axes
