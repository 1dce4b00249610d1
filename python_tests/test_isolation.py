"""A node whose values are huge or not finite changes no bit of what it does not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import DEVICE
from tolerance import BACKEND
from torch import Tensor

from gatkernels import Graph, dot_attention, gat_attention, gatv2_attention
from gatkernels.ops import checks

NODES, EDGES = 30, 90
VALUES = (torch.nan, torch.inf, -torch.inf, 1e30, -1e30)
#: The operators' inputs, and which of them are of destinations.
OPERATORS: dict[str, tuple[Any, int]] = {
    "gat": (gat_attention, 2),
    "gatv2": (gatv2_attention, 1),
    "dot": (dot_attention, 0),
}


def _inputs(kind: str, heads: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(heads + channels)
    rows, scores = (NODES, heads, channels), (NODES, heads)
    sizes = {"gat": [rows, scores, scores], "gatv2": [rows, rows], "dot": [rows, rows, rows]}[kind]
    return [torch.randn(size, generator=generator).to(dtype).to(DEVICE) for size in sizes]


def _results(kind: str, graph: Graph, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    att = ()
    if kind == "gatv2":
        att = (torch.linspace(-1, 1, leaves[0][0].numel(), device=DEVICE).view_as(leaves[0][0]),)
    extra = [t.to(leaves[0].dtype) for t in att]
    out = OPERATORS[kind][0](graph, *leaves, *extra, backend=BACKEND)
    return out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 8), (3, 40)], ids=str)
@pytest.mark.parametrize("dtype", list(checks.DTYPE_CODES), ids=str)
@pytest.mark.parametrize("kind", list(OPERATORS))
def test_what_it_does_not_reach(
    kind: str, dtype: torch.dtype, shape: tuple[int, int], value: float
) -> None:
    generator = torch.Generator().manual_seed(int(shape[1]))
    edges = torch.randint(0, NODES, (2, EDGES), generator=generator)
    graph, bad = Graph.from_edge_index(edges.to(DEVICE), NODES), int(edges[0, 0])
    inputs = _inputs(kind, *shape, dtype)
    before = _results(kind, graph, inputs)
    for t in inputs:
        t[bad] = value
    after = _results(kind, graph, inputs)

    src, dst = edges
    reached = torch.zeros(NODES, dtype=torch.bool)  # destinations, and it itself
    reached[dst[src == bad]] = reached[bad] = True
    touched = torch.zeros(NODES, dtype=torch.bool)  # sources of these, and it itself
    touched[src[reached[dst]]] = touched[bad] = True
    assert int((~touched).sum()) > 5
    of_destinations = OPERATORS[kind][1]
    for place, (one, other) in enumerate(zip(before, after, strict=True)):
        by_destination = place == 0 or place - 1 == of_destinations
        kept = (~reached if by_destination else ~touched).to(DEVICE)
        assert torch.equal(one[kept], other[kept])
