"""What all plots share: axes without pyplot, so that no display is needed, colours, and looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gatkernels.extras import require

# Okabe and Ito's palette, told apart with any colour vision.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
GREY = "#555555"
CLASS_COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", VERMILION, "#000000", "#F0E442")
CLASS_MARKERS = ("o", "^", "s")  # a second and third round of the colours
DPI = 150


def new_figure(width: float, height: float) -> Any:
    """An empty figure of ``width`` by ``height`` inches whose layout keeps labels apart."""
    figure = require("matplotlib.figure", "matplotlib").Figure
    return figure(figsize=(width, height), dpi=DPI, layout="constrained")


def axes_or_new(axes: Any, width: float = 5.0, height: float = 3.6) -> Any:
    """``axes``, or those of a new figure of this size in inches."""
    return new_figure(width, height).subplots() if axes is None else axes


def plain(axes: Any, grid: str = "both") -> None:
    """Only the spines that carry numbers, and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    small(axes)


def small(axes: Any) -> None:
    """Labels of 9 points, numbers of 8."""
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_size(9)


def colour_bar(picture: Any, axes: Any, label: str, extend: str = "neither") -> None:
    bar = axes.figure.colorbar(picture, ax=axes, shrink=0.75, label=label, extend=extend)
    bar.outline.set_visible(False)
    small(bar.ax)


def bare(axes: Any) -> None:
    """No ticks and no frame, for pictures whose coordinates mean nothing."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=9)


def say(axes: Any, text: str) -> Any:
    """Words in place of a plot that has nothing to show."""
    bare(axes)
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9)
    return axes


def class_name(c: int, names: Sequence[str] | None = None) -> str:
    return names[c] if names is not None and c < len(names) else f"class {c}"


def class_style(c: int) -> dict[str, Any]:
    """Colour and marker of a class: eight colours, then the same with another marker."""
    turn, colour = divmod(c, len(CLASS_COLOURS))
    return {
        "color": CLASS_COLOURS[colour],
        "marker": CLASS_MARKERS[turn % len(CLASS_MARKERS)],
    }


def scatter_classes(
    axes: Any,
    points: Any,
    labels: Any,
    names: Sequence[str] | None = None,
    size: Any = 9.0,
    **options: Any,
) -> None:
    """Dots at ``points [N, 2]`` in the colour and marker of their class, one legend entry each.

    ``size`` is the dots' area in square points, one for all or ``[N]``; a label of -1 is grey and
    has no entry.
    """
    points, labels = np.asarray(points), np.asarray(labels)
    size = np.broadcast_to(np.asarray(size, dtype=float), labels.shape)
    for c in np.unique(labels):
        here = labels == c
        look: dict[str, Any] = {"color": "#999999"} if c < 0 else class_style(int(c))
        axes.scatter(
            points[here, 0],
            points[here, 1],
            s=size[here],
            label=None if c < 0 else class_name(int(c), names),
            **{"linewidths": 0, **look, **options},
        )


def class_legend(target: Any, labels: Any, names: Sequence[str] | None = None, **where: Any) -> Any:
    """A legend of the classes in ``labels`` on a figure or axes."""
    line = require("matplotlib.lines", "matplotlib").Line2D
    classes = [int(c) for c in np.unique(np.asarray(labels)) if c >= 0]
    handles = [
        line([], [], linestyle="none", markersize=6, label=class_name(c, names), **class_style(c))
        for c in classes
    ]
    return target.legend(handles=handles, frameon=False, fontsize=8, **where)


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format of ``path``'s suffix, the same bytes every time."""
    rc_context = require("matplotlib", "matplotlib").rc_context
    with rc_context({"svg.hashsalt": "gatkernels"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
