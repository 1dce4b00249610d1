"""Attention in numbers: entropies, how alike the heads are, attention against homophily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments.attention import (
    Attention,
    overlap,
    uniform_entropy,
    with_uniform,
)
from gatkernels.experiments.attention import (
    entropy as entropy_of,
)
from gatkernels.experiments.attention import (
    homophily as homophily_of,
)
from gatkernels.experiments.plots.style import (
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    axes_or_new,
    colour_bar,
    plain,
    say,
    small,
)


def entropy(attention: Attention, head: int = 0, axes: Any = None, *, bins: int = 30) -> Any:
    """Histogram of the nodes' attention entropy beside that of uniform attention.

    Nodes with one edge have no choice and are left out. Where the two histograms coincide, the
    head weighs all neighbours the same.

    Args:
        attention: A layer's.
        head: Which of its heads.
        axes: Where to draw; a new figure's if None.
        bins: Number of bins, the same for both histograms.
    """
    axes = axes_or_new(axes)
    chooses = attention.degrees() >= 2
    learned = entropy_of(attention)[chooses, head].numpy()
    uniform = uniform_entropy(attention)[chooses].numpy()
    if not uniform.size:
        return say(axes, "no node has two edges")
    edges = np.linspace(0.0, uniform.max() * 1.001, bins + 1)
    axes.hist(uniform, edges, color=ORANGE, alpha=0.55, label="uniform attention")
    axes.hist(learned, edges, histtype="step", color=BLUE, linewidth=1.4, label="learned attention")
    axes.set(xlabel="entropy (bits)", ylabel="nodes")
    axes.set_xlim(0, edges[-1])
    axes.margins(y=0.4)  # room for the text above the bars, where axes share their heights, too
    axes.text(
        0.98, 0.96, f"mean {learned.mean():.2f}\nuniform {uniform.mean():.2f}",
        transform=axes.transAxes, ha="right", va="top", fontsize=8, color=GREY,
    )  # fmt: skip
    plain(axes)
    return axes


def head_overlap(
    attentions: Sequence[Attention], axes: Any = None, *, names: Sequence[str] | None = None
) -> Any:
    """How alike the heads are: the share of attention two heads spend on the same edges.

    Args:
        attentions: Of layers with the same edges. Uniform attention is the last row.
        axes: Where to draw; a new figure's if None.
        names: Of the layers, by default their numbers.
    """
    heads = [layer.heads for layer in attentions]
    count = sum(heads) + 1
    axes = axes_or_new(axes, 2.0 + 0.34 * count, 1.2 + 0.34 * count)
    share = overlap(with_uniform(attentions), attentions[0]).numpy()
    if np.isnan(share).any():
        return say(axes, "no node has two edges")
    low = min(np.floor(20 * share.min()) / 20, 0.95)
    picture = axes.imshow(share, cmap="cividis", vmin=low, vmax=1.0)
    for i in range(count):
        for j in range(count):
            shade = "white" if share[i, j] < (low + 1.0) / 2 else "black"
            text = f"{share[i, j]:.2f}".removeprefix("0") if share[i, j] < 0.995 else "1"
            axes.text(j, i, text, ha="center", va="center", fontsize=7, color=shade)
    names = names or [f"layer {k + 1}" for k in range(len(heads))]
    labels = [
        f"{name}, head {h + 1}" for name, n in zip(names, heads, strict=True) for h in range(n)
    ]
    axes.set_yticks(range(count), [*labels, "uniform"], fontsize=8)
    axes.set_xticks(range(count), [*(str(h + 1) for n in heads for h in range(n)), "u"], fontsize=8)
    for end in np.cumsum(heads):
        axes.axhline(end - 0.5, color="white", linewidth=2)
        axes.axvline(end - 0.5, color="white", linewidth=2)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("the same heads in the same order; u: uniform")
    small(axes)
    colour_bar(picture, axes, "attention spent on the same edges (1: all)")
    return axes


def homophily(
    attentions: Sequence[Attention],
    labels: Tensor,
    axes: Any = None,
    *,
    names: Sequence[str] | None = None,
) -> Any:
    """Attention of every head on neighbours like the node itself, beside uniform attention.

    Over the nodes whose neighbours differ; self loops are left out. The numbers on the right are
    the differences to uniform attention, with their 95 % intervals.

    Args:
        attentions: Of layers with the same edges.
        labels: Classes ``[N]``, or ``[N, L]`` of 0 and 1 (then alike is the Jaccard index).
        axes: Where to draw; a new figure's if None.
        names: Of the layers, by default their numbers.
    """
    rows = sum(layer.heads for layer in attentions)
    axes = axes_or_new(axes, 5.6, 1.2 + 0.26 * rows)
    found = [homophily_of(layer, labels) for layer in attentions]
    if any(one.nodes < 2 for one in found):
        return say(axes, "all neighbours are equally alike")
    names = names or [f"layer {k + 1}" for k in range(len(attentions))]
    learned = 100 * torch.cat([one.attention for one in found]).numpy()
    error = 100 * torch.cat([one.error for one in found]).numpy()
    uniform = 100 * np.repeat([one.uniform for one in found], [a.heads for a in attentions])
    y = np.arange(rows)
    axes.hlines(y, uniform, learned, color=BLUE, alpha=0.4, linewidth=1.5)
    axes.errorbar(
        learned, y, xerr=error, fmt="o", color=BLUE, markersize=5, capsize=2.5, linewidth=1,
        label="learned",
    )  # fmt: skip
    axes.plot(uniform, y, "|", color=VERMILION, markersize=11, markeredgewidth=2, label="uniform")
    side = axes.get_yaxis_transform()
    for at, gain, half in zip(y, learned - uniform, error, strict=True):
        text = f"{gain:+.2f} ± {half:.2f}"
        axes.text(1.02, at, text, transform=side, va="center", fontsize=8, color=GREY)
    axes.text(1.02, -0.75, "difference", transform=side, va="bottom", fontsize=8, color=GREY)
    # A difference of a tenth of a point must not look large.
    low, high = min((learned - error).min(), uniform[0]), max((learned + error).max(), uniform[0])
    room = max(1.15 * (high - low), 6.0) / 2
    axes.set_xlim((low + high) / 2 - room, (low + high) / 2 + room)
    axes.set_yticks(
        y, [f"{name}, head {h + 1}" for name, a in zip(names, attentions, strict=True)
            for h in range(a.heads)],
    )  # fmt: skip
    axes.set_ylim(rows - 0.4, -0.6)
    like = "same class" if labels.dim() == 1 else "labels in common (Jaccard)"
    axes.set_xlabel(f"attention on neighbours of the {like} (%)" if labels.dim() == 1 else
                    f"{like}, weighted by attention (%)")  # fmt: skip
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    plain(axes, grid="x")
    return axes
