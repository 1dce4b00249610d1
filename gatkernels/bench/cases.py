"""A case: one layer of one shape and dtype on one graph, with its inputs and weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor

from gatkernels.bench import drawn, generate
from gatkernels.bench.graphs import GRAPHS, Edges, Unavailable, cached
from gatkernels.bench.measure import copies_for_cold_caches

SEED = 0
LAYERS = ("gat", "gatv2", "dot")
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
#: heads x channels per head; C is the graph's number of classes.
SHAPES = ("8x8", "1xC", "8x16", "1x128", "4x64", "4x256", "6x121")
#: Input width of layers that come second in their network.
HIDDEN = {"1xC": 64, "6x121": 1024}
#: With scale "auto", generated graphs are cut to so many edges and elements [E, H, C] on a CPU.
AUTO_EDGES, AUTO_ELEMENTS = 4_000_000, 330_000_000

Inputs = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Spec:
    """Everything that names a case; small, so that it can be sent to another process.

    `scale` cuts a generated graph; 0 stands for what suits the device.
    """

    graph: str
    shape: str = "8x8"
    layer: str = "gat"
    dtype: str = "float32"
    device: str = "cpu"
    scale: float = 0.0

    @property
    def name(self) -> str:
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.graph} {self.layer} {self.shape}{dtype}"

    @property
    def graph_scale(self) -> float:
        """The scale taken: a power of two below 1 where "auto" has to cut the graph."""
        known = GRAPHS.get(self.graph)
        if self.scale or known is None or not known.generated or self.device != "cpu":
            return self.scale or 1.0
        return auto_scale(known.num_edges, math.prod(parse_shape(self.shape, known.classes)))

    @property
    def elements(self) -> float:
        """About how many elements a message per edge, head and channel has."""
        known = GRAPHS.get(self.graph)
        if known is None:
            return 0.0
        width = math.prod(parse_shape(self.shape, known.classes))
        return known.num_edges * self.graph_scale * width


@dataclass(frozen=True)
class Case:
    """One layer on one graph. No self loops are added; inputs are data and need no gradient."""

    spec: Spec
    edges: Edges
    in_channels: int
    heads: int
    channels: int

    @property
    def width(self) -> int:
        return self.heads * self.channels

    @property
    def num_edges(self) -> int:
        return self.edges.edge_index.shape[1]

    @property
    def bipartite(self) -> bool:
        return self.edges.num_src != self.edges.num_dst

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.spec.dtype]

    @cached_property
    def edge_index(self) -> Tensor:
        """`[2, E]` int64 on the case's device."""
        return self.edges.edge_index.to(self.spec.device)

    def random(self, rows: int, columns: int, seed: int) -> Tensor:
        """Standard normal values, the same for every peer and in every process."""
        generator = torch.Generator(self.spec.device).manual_seed(SEED + seed)
        values = torch.randn(rows, columns, generator=generator, device=self.spec.device)
        return values.to(self.dtype)

    @cached_property
    def x(self) -> Inputs:
        """`[N, in_channels]`, or the pair for sources and destinations."""
        source = self.random(self.edges.num_src, self.in_channels, 1)
        if not self.bipartite:
            return source
        return source, self.random(self.edges.num_dst, self.in_channels, 2)

    @cached_property
    def grad_out(self) -> Tensor:
        """Gradient of the layer's output, `[num_dst, width]`."""
        return self.random(self.edges.num_dst, self.width, 3)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Seeded weights of unit-variance features, the same for every peer, by name.

        GAT has `lin [H*C, F]`, `att_src`, `att_dst` `[1, H, C]` and `bias [H*C]`; GATv2 has
        `lin_src`, `lin_dst` and `att`, without biases, because DGL's layer has no output bias;
        dot products have `lin_query`, `lin_key`, `lin_value` and `lin_skip`, without biases.
        """
        heads, channels = self.heads, self.channels
        lin, lin_dst, *more = (
            self.random(self.width, self.in_channels, seed) / self.in_channels**0.5
            for seed in ((4, 5, 9, 10) if self.spec.layer == "dot" else (4, 5))
        )
        if self.spec.layer == "dot":
            names = ("lin_query", "lin_key", "lin_value", "lin_skip")
            return dict(zip(names, (lin, lin_dst, *more), strict=True))
        att, att_dst = (
            self.random(heads, channels, seed).view(1, heads, channels) / channels**0.5
            for seed in (6, 7)
        )
        if self.spec.layer == "gat":
            bias = self.random(1, self.width, 8).view(-1)
            return {"lin": lin, "att_src": att, "att_dst": att_dst, "bias": bias}
        return {"lin_src": lin, "lin_dst": lin_dst, "att": att}

    @cached_property
    def rotation(self) -> list[tuple[Inputs, Tensor]]:
        """Inputs and output gradients in as many copies as make every timed run meet cold ones."""
        tensors = [*(self.x if isinstance(self.x, tuple) else [self.x]), self.grad_out]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        turned = [(self.x, self.grad_out)]
        for turn in range(1, copies_for_cold_caches(size, torch.device(self.spec.device))):
            *x, grad = (tensor.roll(turn, 0) for tensor in tensors)
            turned.append((tuple(x) if self.bipartite else x[0], grad))
        return turned

    def describe(self) -> str:
        return f"{self.in_channels} -> {self.heads}x{self.channels}"


def auto_scale(num_edges: int, width: int) -> float:
    """The power of two by which a CPU cuts a graph that is to carry rows of `width` elements."""
    scale = 1.0
    while num_edges * scale > min(AUTO_EDGES, AUTO_ELEMENTS / width):
        scale /= 2
    return scale


def tiny_edges(num_dst: int = 64) -> Edges:
    """For tests: parallel edges, self loops, a hub and isolated nodes; 64 sources."""
    rng = np.random.default_rng(SEED)
    edges = rng.integers(0, 60, size=(2, 400))
    edges[1, :100] = 7
    edges[:, 100:110] = edges[:, :10]
    return Edges(torch.from_numpy(edges[:, np.argsort(edges[0])]), 64, num_dst, "random")


def curve_edges(num_edges: int) -> Edges:
    """A power-law graph with 16 edges per node, for curves against the number of edges."""
    nodes = max(num_edges // 16, 64)

    def draw() -> generate.IntArray:
        return generate.power_law(nodes, num_edges // 2 * 2, max(nodes // 10, 32))

    edges = torch.from_numpy(cached(f"power-law-{num_edges}", draw))
    return Edges(edges, nodes, nodes, "generated, 16 edges per node")


def build(spec: Spec) -> Case:
    """The case of `spec`. Raises: Unavailable when its graph cannot be had here."""
    kind, _, size = spec.graph.partition(":")
    if kind == "tiny":
        return Case(spec, tiny_edges(int(size or 64)), 12, *parse_shape(spec.shape, 5))
    if kind == "power-law":
        return Case(spec, curve_edges(int(size)), 64, *parse_shape(spec.shape, 8))
    if kind == "drawn":
        edges = drawn.draw(size, spec.graph_scale, spec.device)
        edges = replace(edges, edge_index=edges.edge_index.cpu())
        in_channels = GRAPHS[size].in_channels if size in GRAPHS else 64
        return Case(spec, edges, in_channels, *parse_shape(spec.shape, 8))
    if spec.graph not in GRAPHS:
        raise Unavailable(f"no graph '{spec.graph}'; known: {', '.join(GRAPHS)}")
    known = GRAPHS[spec.graph]
    in_channels = HIDDEN.get(spec.shape, known.in_channels)
    shape = parse_shape(spec.shape, known.classes)
    return Case(spec, known.load(spec.graph_scale), in_channels, *shape)


def parse_shape(shape: str, classes: int) -> tuple[int, int]:
    """Heads and channels of e.g. "8x16" or "1xC". Raises: ValueError."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*|C)", shape)
    if found is None:
        raise ValueError(f"a shape is heads x channels, such as 8x16 or 1xC, got '{shape}'")
    return int(found[1]), classes if found[2] == "C" else int(found[2])


QUICK = [
    Spec("cora"),
    Spec("pubmed"),
    Spec("arxiv", scale=0.25),
    Spec("arxiv", layer="gatv2", scale=0.25),
    Spec("arxiv", layer="dot", scale=0.25),
]
#: The cases of a full run in which every peer takes part; the naive formulas and torch.sparse take
#: 20 times as long as our layers, so that half of arxiv is what there is time for.
CORE = [
    Spec("cora"),
    Spec("pubmed"),
    Spec("arxiv", "8x16", scale=0.5),
    Spec("arxiv", "8x16", "gatv2", scale=0.5),
    Spec("arxiv", "8x16", "dot", scale=0.5),
]
FULL = [
    *CORE,
    *(Spec(graph) for graph in GRAPHS if graph not in ("cora", "pubmed", "ppi")),
    *(Spec("ppi", shape) for shape in ("4x256", "6x121")),
    Spec("arxiv", "1x128", scale=0.5),
    Spec("arxiv", "1xC"),
    *(Spec("cora", shape, layer) for shape, layer in (("1xC", "gat"), ("8x8", "gatv2"))),
    Spec("physics", "4x64"),
    *(Spec("arxiv", dtype=dtype, scale=0.5) for dtype in DTYPES if dtype != "float32"),
]


def choose(
    defaults: Sequence[Spec],
    graphs: Sequence[str] | None = None,
    shapes: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    *,
    device: str = "cpu",
    scale: float = 0.0,
) -> list[Spec]:
    """The default cases, or every combination of what is named (8x8, gat, float32 else)."""
    specs: Sequence[Spec] = defaults
    if graphs or shapes or layers or dtypes:
        axes = (graphs or ["arxiv"], shapes or ["8x8"], layers or ["gat"], dtypes or ["float32"])
        specs = [Spec(*combination) for combination in product(*axes)]
    return [replace(spec, device=device, scale=scale or spec.scale) for spec in specs]


__all__ = ["Case", "Inputs", "Spec", "Unavailable", "build", "choose", "parse_shape"]
