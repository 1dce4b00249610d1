"""Generated graphs: seeded, sorted by source, with the size and skew of well-known ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Draw = Callable[[int], tuple[IntArray, IntArray]]
SEED = 0
#: Degrees fall off as rank^-EXPONENT, flattened at the top so that the largest is as asked for.
EXPONENT = 0.75


def distinct(keys: IntArray) -> IntArray:
    """Sorted, each once; by sorting, which takes a tenth of numpy's own `unique` on 1e8 keys."""
    keys = np.sort(keys)
    first: IntArray = keys[np.append(True, keys[1:] != keys[:-1])[: keys.size]]
    return first


def coalesce(src: IntArray, dst: IntArray, num_nodes: int, loops: bool = False) -> IntArray:
    """Edges [2, E] sorted by source, each once; self loops are dropped unless `loops`."""
    keys = src * num_nodes + dst
    keys = distinct(keys if loops else keys[src != dst])
    return np.stack([keys // num_nodes, keys % num_nodes])


def symmetric(src: IntArray, dst: IntArray, num_nodes: int) -> IntArray:
    """Both directions of every link, each once, without self loops."""
    return coalesce(np.concatenate([src, dst]), np.concatenate([dst, src]), num_nodes)


def with_loops(edges: IntArray, num_nodes: int) -> IntArray:
    """The edges and one self loop per node, sorted by source."""
    loops = np.arange(num_nodes, dtype=np.int64)
    return coalesce(
        np.concatenate([edges[0], loops]), np.concatenate([edges[1], loops]), num_nodes, loops=True
    )


class Ranks:
    """Draws node ranks 0, 1, ... with weights (rank + shift)^-EXPONENT.

    `shift` is set so that rank 0 is drawn `top` times as often as the average rank.
    """

    def __init__(self, num_nodes: int, top: float) -> None:
        self.num_nodes = num_nodes
        low, high = 1e-9, 1e9 * num_nodes
        for _ in range(200):
            shift = (low * high) ** 0.5
            first = self._integral(shift, 1.0 + shift)
            ratio = first * num_nodes / self._integral(shift, num_nodes + shift)
            low, high = (shift, high) if ratio > top else (low, shift)
        self.shift = shift

    @staticmethod
    def _integral(start: float, stop: float) -> float:
        power = 1.0 - EXPONENT
        return float(stop**power - start**power) / power

    def draw(self, rng: np.random.Generator, count: int) -> IntArray:
        power = 1.0 - EXPONENT
        start, stop = self.shift**power, (self.num_nodes + self.shift) ** power
        place = (start + rng.random(count) * (stop - start)) ** (1.0 / power) - self.shift
        ranks: IntArray = np.clip(place.astype(np.int64), 0, self.num_nodes - 1)
        return ranks


def power_law(
    num_nodes: int, num_edges: int, max_degree: int, *, seed: int = SEED, in_order: bool = False
) -> IntArray:
    """A simple graph of exactly `num_edges` arcs, both directions of each link (Chung-Lu).

    Degrees follow a power law up to about `max_degree`. Node ids are dealt at random, so that a
    degree cannot be read from an id, unless `in_order` keeps them by falling degree.
    """
    if num_edges > num_nodes * (num_nodes - 1) // 4:
        raise ValueError(f"power_law: {num_edges} edges are too many for {num_nodes} nodes")
    rng = np.random.default_rng(seed)
    ranks = Ranks(num_nodes, min(max_degree, num_nodes // 2) * num_nodes / num_edges)

    def draw(count: int) -> tuple[IntArray, IntArray]:
        return ranks.draw(rng, count), ranks.draw(rng, count)

    keys = _distinct_links(draw, num_nodes, num_edges // 2, rng)
    label = np.arange(num_nodes) if in_order else rng.permutation(num_nodes)
    return symmetric(label[keys // num_nodes], label[keys % num_nodes], num_nodes)


def communities(
    num_nodes: int, num_edges: int, max_degree: int, *, size: int = 512, seed: int = SEED
) -> IntArray:
    """Size and skew of `power_law`, nine links in ten inside blocks of `size` consecutive ids."""
    rng = np.random.default_rng(seed)
    ranks = Ranks(num_nodes, max_degree * num_nodes / num_edges)
    label = rng.permutation(num_nodes)

    def draw(count: int) -> tuple[IntArray, IntArray]:
        src, dst = label[ranks.draw(rng, count)], label[ranks.draw(rng, count)]
        inside = (src // size) * size + rng.integers(0, size, count)
        near = (rng.random(count) < 0.9) & (inside < num_nodes)
        return src, np.where(near, inside, dst)

    keys = _distinct_links(draw, num_nodes, num_edges // 2, rng)
    return symmetric(keys // num_nodes, keys % num_nodes, num_nodes)


def shuffled(edges: IntArray, num_nodes: int, seed: int = SEED) -> IntArray:
    """The same graph with its node ids dealt at random."""
    label = np.random.default_rng(seed).permutation(num_nodes)
    return coalesce(label[edges[0]], label[edges[1]], num_nodes, loops=True)


def uniform(num_nodes: int, num_edges: int, seed: int = SEED) -> IntArray:
    """Directed edges between nodes drawn alike."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> tuple[IntArray, IntArray]:
        return rng.integers(0, num_nodes, count), rng.integers(0, num_nodes, count)

    keys = _distinct_links(draw, num_nodes, num_edges, rng, directed=True)
    return coalesce(keys // num_nodes, keys % num_nodes, num_nodes)


def one_hub(num_nodes: int) -> IntArray:
    """Every other node has an edge to node 0 and one from it."""
    leaves = np.arange(1, num_nodes, dtype=np.int64)
    return symmetric(leaves, np.zeros_like(leaves), num_nodes)


def batch(count: int, num_nodes: int, num_edges: int, max_degree: int) -> IntArray:
    """`count` separate graphs of `num_nodes` nodes and `num_edges` arcs, numbered one by one."""
    parts = [
        power_law(num_nodes, num_edges, max_degree, seed=SEED + place) + place * num_nodes
        for place in range(count)
    ]
    return np.concatenate(parts, axis=1)


def _distinct_links(
    draw: Draw, num_nodes: int, count: int, rng: np.random.Generator, directed: bool = False
) -> IntArray:
    """Keys `a * num_nodes + b` of `count` different links, without self loops."""
    keys = np.empty(0, dtype=np.int64)
    while keys.size < count:
        missing = count - keys.size
        a, b = draw(missing + count // 8 + 16)  # more than needed: hubs are drawn again and again
        if not directed:
            a, b = np.minimum(a, b), np.maximum(a, b)
        keys = distinct(np.concatenate([keys, (a * num_nodes + b)[a != b]]))
    if keys.size > count:
        drop = rng.choice(keys.size, keys.size - count, replace=False, shuffle=False)
        keys = np.delete(keys, drop)
    return keys
