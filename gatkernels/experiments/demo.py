"""The demonstration's second half: a layer on a real graph, ours against the naive formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatkernels import Graph, backends
from gatkernels.bench.measure import in_turns
from gatkernels.experiments.datasets import Dataset
from gatkernels.extras import require
from gatkernels.nn import GATConv
from gatkernels.testing import assert_same_model

BACKENDS = ("reference", "cpu")


@dataclass(frozen=True)
class Comparison:
    """Median milliseconds of forward and backward of one layer, by backend."""

    layer: str
    reference: float
    ours: float

    @property
    def speedup(self) -> float:
        return self.reference / self.ours


def compare_layers(dataset: Dataset, rounds: int = 20) -> list[Comparison]:
    """Time the two layers of the paper's GAT, with dropout, on the data set's graph.

    Raises: AssertionError where the two backends disagree: no time is given for a wrong result.
    """
    graph = Graph.from_edge_index(dataset.edge_index, dataset.num_nodes, self_loops=True)
    hidden = torch.randn(dataset.num_nodes, 64, generator=torch.Generator().manual_seed(0))
    hidden.requires_grad_()
    features, classes = dataset.num_features, dataset.num_classes
    return [
        _compare(f"{features} -> 8 heads of 8", (features, 8, 8, True), dataset.x, graph, rounds),
        _compare("64 -> 8 heads of 8", (64, 8, 8, True), hidden, graph, rounds),
        _compare(f"64 -> 1 head of {classes}", (64, classes, 1, False), hidden, graph, rounds),
    ]


def _compare(
    name: str, shape: tuple[int, int, int, bool], x: Tensor, graph: Graph, rounds: int
) -> Comparison:
    inputs, channels, heads, concat = shape
    layers = {}
    for backend in BACKENDS:
        torch.manual_seed(0)
        layers[backend] = GATConv(
            inputs, channels, heads, concat, dropout=0.6, backend=backend
        ).eval()
    with torch.no_grad():
        expected, got = (layers[backend](x, graph) for backend in BACKENDS)
    assert_same_model(f"layer {name}", got, expected)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    steps = [_step(layers[backend].train(), x, graph, grad) for backend in BACKENDS]
    turns = {b: lambda step=step: step for b, step in zip(BACKENDS, steps, strict=True)}
    timings = in_turns(turns, rounds)
    return Comparison(name, *(1e3 * timings[backend].median for backend in BACKENDS))


def _step(layer: GATConv, x: Tensor, graph: Graph, grad: Tensor) -> Callable[[], None]:
    wanted = [*layer.parameters(), *([x] if x.requires_grad else [])]

    def step() -> None:
        torch.autograd.grad(layer(x, graph), wanted, grad)

    return step


def print_comparison(console: Any, dataset: Dataset) -> bool:
    """Time the layers and print the speed-ups; False where the compiled kernels are missing."""
    reasons = dict(backends.explain())
    if reasons["cpu"] is not None:
        console.print(f"no speed-up to show, the compiled kernels are missing: {reasons['cpu']}")
        return False
    rows = compare_layers(dataset)
    table = require("rich.table", "rich").Table(
        title=f"GATConv on {dataset.name}, forward + backward, "
        f"{torch.get_num_threads()} threads, {backends.isa()}"
    )
    table.add_column("layer")
    for column in ("naive reference", "gatkernels", "speed-up"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.layer, f"{row.reference:.2f} ms", f"{row.ours:.2f} ms", f"{row.speedup:.1f}x"
        )
    console.print(table)
    return True
