"""Numbers at the edge: denormals, a row of 50 million edges, tensors of more than 2^31 elements."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from gatkernels import Graph, dot_attention, gat_attention, gatv2_attention
from gatkernels.fuzz import EdgeSpec, OperatorCase

huge = pytest.mark.skipif(
    os.environ.get("GATKERNELS_HUGE") != "1",
    reason="takes minutes and up to 20 GB of memory: set GATKERNELS_HUGE=1",
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("operator", ["gat", "gatv2", "dot"])
def test_denormals(operator: str, dtype: str) -> None:
    OperatorCase(
        operator=operator,
        edges=EdgeSpec(num_src=20, num_dst=20, num_edges=300),
        heads=3,
        channels=9,
        value_channels=9,
        features=5,
        dtype=dtype,
        size=torch.finfo(getattr(torch, dtype)).tiny / 4,
        number=0.2,
        with_edge=True,
        attention=True,
    ).check()


@huge
def test_a_row_of_fifty_million_edges() -> None:
    """Every source has 50,000 of them, so that a row of a thousand knows the result."""
    sources, edges = 1000, 50_000_000
    src = torch.arange(edges, dtype=torch.int32) % sources
    graph = Graph.from_edge_index(torch.stack([src, torch.zeros_like(src)]), (sources, 2))
    x = torch.randn(sources, 1, 4, requires_grad=True)
    score = torch.randn(sources, 1)
    out, alpha = gat_attention(graph, x, score, return_attention=True)
    weight = torch.nn.functional.leaky_relu(score.double(), 0.2).softmax(0)
    (grad,) = torch.autograd.grad(out[0].sum(), x)
    for found, expected in (
        (out[0], (weight[..., None] * x).sum(0)),
        (alpha[:sources] * (edges // sources), weight),
        (grad, weight[..., None].expand_as(grad)),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


NODES, HEADS, CHANNELS = 2**22 + 3, 8, 64
LAST = 200


def _large() -> tuple[Graph, Graph, Tensor]:
    """A loop at each node and edges among the last ones; those alone; ``x [nodes, H, C]``."""
    few = torch.randint(LAST, (2, 2000))
    loops = torch.arange(NODES).expand(2, -1)
    graph = Graph.from_edge_index(torch.cat([loops, few + NODES - LAST], 1), NODES)
    part = Graph.from_edge_index(torch.cat([torch.arange(LAST).expand(2, -1), few], 1), LAST)
    x = torch.randn(4099, HEADS, CHANNELS).bfloat16().repeat(1024, 1, 1)[:NODES]
    assert x.numel() > 2**31
    return graph, part, x


@huge
def test_rows_past_two_to_the_31_elements() -> None:
    """Forward alone: with what it saves, a backward takes more than 22 GB."""
    graph, part, x = _large()
    att, scores = torch.randn(HEADS, CHANNELS).bfloat16(), torch.randn(NODES, HEADS).bfloat16()
    for call in (
        lambda edges, rows: gat_attention(edges, rows, *[scores[-len(rows) :]] * 2),
        lambda edges, rows: gatv2_attention(edges, rows, rows, att),
        lambda edges, rows: dot_attention(edges, rows, rows, rows),
    ):
        assert torch.equal(call(graph, x)[-LAST:], call(part, x[-LAST:]))


@pytest.mark.parametrize(
    ("operator", "wanted"),
    [(gat_attention, 3), (gatv2_attention, 1), (dot_attention, 0)],
)
def test_gradients_of_weights_add_up_exactly(operator: Any, wanted: int) -> None:
    """One gradient for all weights of a row moves no score. Each is 1 / 2048, all else exact:
    what is left is the error of adding 2,048 small terms to a large one."""
    graph = Graph.from_edge_index(torch.zeros(2, 2048, dtype=torch.int64), 1)
    scores = (torch.ones(1, 1), torch.ones(1, 1))
    rows = (torch.ones(1, 1, 1), torch.ones(1, 1, 1))
    inputs = {
        gat_attention: (torch.ones(1, 1, 1), *scores, torch.zeros(2048, 1)),
        gatv2_attention: (*rows, torch.ones(1, 1)),
        dot_attention: (*rows, torch.ones(1, 1, 1)),
    }[operator]
    leaf = inputs[wanted].requires_grad_()
    out, alpha = operator(graph, *inputs, return_attention=True, backend="cpu")
    assert torch.equal(alpha, torch.full_like(alpha, 1 / 2048))
    (gradient,) = torch.autograd.grad((-2.0 * out + 0.1856 * alpha.sum()).sum(), leaf)
    assert gradient.sum().abs().item() < 1e-6
