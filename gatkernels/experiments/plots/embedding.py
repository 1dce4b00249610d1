"""Nodes as points of the plane: t-SNE of what a network made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatkernels.experiments.attention import Attention
from gatkernels.experiments.plots.style import GREY, axes_or_new, bare, scatter_classes
from gatkernels.extras import require


def project(features: Tensor, seed: int = 0) -> Any:
    """t-SNE of ``features [N, F]`` (van der Maaten and Hinton, 2008) by scikit-learn, ``[N, 2]``.

    Raises: ValueError for fewer than 4 nodes, or features that are not finite.
    """
    if len(features) < 4:
        raise ValueError(f"project: 'features' must have at least 4 rows, got {len(features)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("project: 'features' must be finite")
    model = require("sklearn.manifold", "scikit-learn").TSNE(
        perplexity=min(30.0, (len(features) - 1) / 3),
        init="pca" if features.shape[1] > 1 else "random",
        max_iter=500,
        angle=0.8,
        random_state=seed,
        n_jobs=-1,
    )
    return model.fit_transform(features.float().numpy())


def tsne(
    points: Any,
    labels: Tensor,
    axes: Any = None,
    *,
    names: Sequence[str] | None = None,
    edges: Tensor | None = None,
) -> Any:
    """Points coloured by class, optionally with edges between them.

    Args:
        points: ``[N, 2]``, from :func:`project`.
        labels: Classes ``[N]``, -1 for no class (grey).
        axes: Where to draw; a new figure's if None.
        names: Of the classes.
        edges: ``[2, K]``, such as :func:`strongest` finds.
    """
    axes = axes_or_new(axes, 4.6, 4.4)
    points = np.asarray(points)
    if edges is not None:
        ends = points[edges.T.numpy()]
        lines = require("matplotlib.collections", "matplotlib").LineCollection(
            ends, colors=GREY, linewidths=0.6, alpha=0.55, zorder=1, rasterized=True
        )
        axes.add_collection(lines)
    scatter_classes(axes, points, labels, names, size=7, zorder=2, rasterized=True)
    axes.set_aspect("equal", adjustable="datalim")
    bare(axes)
    return axes


def strongest(attention: Attention, count: int) -> Tensor:
    """The ``count`` edges with most attention over uniform, averaged over heads, ``[2, count]``.

    The attention itself would pick the nodes with fewest neighbours; self loops are left out.
    """
    value = attention.relative().mean(1).masked_fill(attention.src == attention.dst, -1.0)
    found = torch.argsort(value, descending=True, stable=True)[:count]
    return attention.edge_index[:, found[value[found] >= 0]]
