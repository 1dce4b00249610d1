"""Degrees of the graph, and how well nodes of each degree are classified."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments.plots.style import BLUE, GREY, VERMILION, axes_or_new, plain, say
from gatkernels.extras import require

# Degrees of the bins' left ends; narrow where most nodes are.
BINS = (0, 1, 2, 3, 4, 5, 7, 11, 21, 51, 101, 201, 501)
FEWEST = 10  # nodes of a range
Z = 1.96  # of a 95 % interval


def degrees(edge_index: Tensor, num_nodes: int, axes: Any = None) -> Any:
    """How many nodes have each number of neighbours, on logarithmic axes.

    Args:
        edge_index: ``[2, E]``; an edge counts where it ends, self loops do not count.
        num_nodes: ``N``.
        axes: Where to draw; a new figure's if None.
    """
    axes = axes_or_new(axes)
    degree = in_degrees(edge_index, num_nodes)
    if not degree.any():
        return say(axes, f"{num_nodes:,} nodes without edges")
    counts = np.bincount(degree)[1:]
    values = np.flatnonzero(counts) + 1
    counts = counts[values - 1]
    axes.vlines(values, 0.7, counts, color=BLUE, alpha=0.35, linewidth=1.0)
    axes.plot(values, counts, "o", color=BLUE, markersize=3.5)
    axes.axvline(degree.mean(), color=VERMILION, linestyle="--", linewidth=1.2)
    axes.set(xscale="log", yscale="log", xlabel="neighbours of a node", ylabel="nodes")
    axes.set_xlim(0.8, 1.3 * values[-1])
    axes.set_ylim(0.7, 4.0 * counts.max())
    ticker = require("matplotlib.ticker", "matplotlib")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_formatter(ticker.NullFormatter())
    facts = f"mean {degree.mean():.1f} (dashed)\nmedian {np.median(degree):.0f}"
    facts += f"\nlargest {degree.max():,}"
    if alone := int((degree == 0).sum()):
        facts += f"\n{alone:,} nodes without any"
    place = {"transform": axes.transAxes, "ha": "right", "va": "top", "fontsize": 8}
    axes.text(0.98, 0.97, facts, **place)
    plain(axes)
    return axes


def in_degrees(edge_index: Tensor, num_nodes: int) -> Any:
    """Neighbours of every node but itself, an integer array ``[N]``."""
    ends = edge_index[1, edge_index[0] != edge_index[1]]
    return torch.bincount(ends.cpu(), minlength=num_nodes).numpy()


def accuracy_by_degree(
    degree: Any, score: Any, axes: Any = None, *, measure: str = "accuracy"
) -> Any:
    """Mean score of the nodes in each range of degrees, with 95 % intervals.

    Args:
        degree: ``[N]``, neighbours of each node that counts (the test nodes).
        score: ``[N]`` between 0 and 1: 1 where the class is right, or a node's F1.
        axes: Where to draw; a new figure's if None.
        measure: What the score is called on the axis.
    """
    axes = axes_or_new(axes)
    degree, score = np.asarray(degree), np.asarray(score, dtype=float)
    if not degree.size:
        return say(axes, "no nodes to score")
    ranges, groups = _ranges(degree, score)
    means = np.array([group.mean() for group in groups])
    low, high = np.array([wilson(group.mean(), group.size) for group in groups]).T
    x = np.arange(len(groups))
    error = 100 * np.stack([means - low, high - means])
    axes.errorbar(x, 100 * means, error, fmt="o", color=BLUE, markersize=5, capsize=3, linewidth=1)
    axes.axhline(100 * score.mean(), color=VERMILION, linestyle="--", linewidth=1.2)
    axes.text(
        0.99, 0.03, f"all {score.size:,} nodes: {score.mean():.1%} (dashed); bars: 95 % intervals",
        transform=axes.transAxes, ha="right", fontsize=8, color=GREY,
    )  # fmt: skip
    axes.set_xticks(
        x, [f"{span}\nn={group.size:,}" for span, group in zip(ranges, groups, strict=True)]
    )
    axes.set(xlabel="neighbours of a node, and how many such nodes", ylabel=f"{measure} (%)")
    bottom = 10 * np.floor(10 * min(low.min(), score.mean()) - 0.5)
    axes.set_ylim(max(bottom, 0), 102)
    axes.margins(x=0.06)
    plain(axes, grid="y")
    return axes


def _ranges(degree: Any, score: Any) -> tuple[list[str], list[Any]]:
    """Scores by range of degrees; a range of few nodes is joined to the one before it."""
    place = np.searchsorted(BINS, degree, side="right") - 1
    kept: list[int] = []  # first bin of every range
    for b in np.unique(place):
        if not kept or (place >= b).sum() >= FEWEST <= (place[place < b] >= kept[-1]).sum():
            kept.append(int(b))
    which = np.searchsorted(kept, place, side="right") - 1
    ranges = []
    for k, b in enumerate(kept):
        first, last = BINS[b], int(degree[which == k].max())
        first = min(first, last)
        ranges.append(str(first) if first == last else f"{first}\N{EN DASH}{last}")
    return ranges, [score[which == k] for k in range(len(kept))]


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean of ``n`` scores of 0 or 1.

    Scores in between vary less, so for them it is wider than need be.
    """
    centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    return max(float(centre - half), 0.0), min(float(centre + half), 1.0)
