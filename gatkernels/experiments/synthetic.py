"""A citation graph that can be generated anywhere: the last resort when no data can be had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """Counts of a real citation graph; ``words`` is the mean number of words of a paper."""

    class_sizes: tuple[int, ...]
    links: int
    vocabulary: int
    words: float
    homophily: float

    @property
    def nodes(self) -> int:
        return sum(self.class_sizes)


SHAPES = {
    "cora": Shape((351, 217, 418, 818, 426, 298, 180), 5278, 1433, 18.2, 0.81),
    "citeseer": Shape((264, 590, 668, 701, 596, 508), 4552, 3703, 31.6, 0.74),
    "pubmed": Shape((4103, 7739, 7875), 44324, 500, 50.1, 0.80),
}


def citation_graph(shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Generate ``(words [N, V] of 0 and 1, edge_index [2, 2 * links], y [N])``.

    Links join papers of one class with probability ``homophily`` and prefer some papers over
    others, so degrees are skewed; no paper is isolated. Words follow Zipf's law, and each class
    uses some words more often than the others do.
    """
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(shape.class_sizes)), shape.class_sizes))
    edges = _links(rng, y, shape)
    return (
        torch.from_numpy(_words(rng, y, shape)),
        torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1)),
        torch.from_numpy(y),
    )


def _links(rng: np.random.Generator, y: Ints, shape: Shape) -> Ints:
    nodes = shape.nodes
    appeal = rng.pareto(2.0, nodes) + 0.1
    members = [np.flatnonzero(y == c) for c in range(len(shape.class_sizes))]
    within = [np.cumsum(appeal[m]) for m in members]
    overall = np.cumsum(appeal)

    # A partner drawn at random is of the same class with this probability already.
    by_chance = float(np.sum((np.bincount(y) / nodes) ** 2))
    planted = (shape.homophily - by_chance) / (1.0 - by_chance)

    def partners(source: Ints) -> Ints:
        same = rng.random(source.size) < planted
        target = np.searchsorted(overall, rng.random(source.size) * overall[-1])
        for c, (member, total) in enumerate(zip(members, within, strict=True)):
            at = np.flatnonzero(same & (y[source] == c))
            target[at] = member[np.searchsorted(total, rng.random(at.size) * total[-1])]
        other = (source + rng.integers(1, nodes, source.size)) % nodes
        return np.where(target == source, other, target)

    # The first round links every paper, so none stays isolated; later rounds fill up the count.
    keys = np.empty(0, dtype=np.int64)
    source = np.arange(nodes)
    while keys.size < shape.links:
        target = partners(source)
        keys = np.append(keys, np.minimum(source, target) * nodes + np.maximum(source, target))
        first_seen = np.unique(keys, return_index=True)[1]
        keys = keys[np.sort(first_seen)][: shape.links]
        source = rng.integers(0, nodes, shape.links)
    return np.stack([keys // nodes, keys % nodes])


def _words(rng: np.random.Generator, y: Ints, shape: Shape) -> NDArray[np.float32]:
    classes = len(shape.class_sizes)
    base = rng.permutation(1.0 / (np.arange(shape.vocabulary) + 10.0))
    topical = rng.random((classes, shape.vocabulary)) < 0.08
    weight = base * np.where(topical, 5.0, 1.0)
    count = np.clip(rng.poisson(shape.words, shape.nodes), 2, shape.vocabulary)
    # The k largest of log(weight) + Gumbel noise are k words drawn without replacement.
    draw = np.log(weight)[y] - np.log(-np.log(rng.random((shape.nodes, shape.vocabulary)) + 1e-300))
    order = np.argsort(-draw, axis=1)
    chosen = np.zeros((shape.nodes, shape.vocabulary), dtype=np.float32)
    np.put_along_axis(chosen, order, np.arange(shape.vocabulary) < count[:, None], axis=1)
    return chosen
