"""Attention-weighted sums of edge features beside the plain formula."""

from __future__ import annotations

import pytest
import torch
from graphs import GRAPHS
from torch import Tensor

from gatkernels import Graph
from gatkernels.layers.edge_sum import edge_sum, groups_of


def plain(graph: Graph, alpha: Tensor, features: Tensor) -> Tensor:
    used = int(graph.rowptr[-1])
    _, dst, eid = (t[:used] for t in graph.csr_edges())
    message = alpha[eid][:, :, None] * features[eid][:, None]  # [E, H, D]
    return message.new_zeros(graph.num_dst, *message.shape[1:]).index_add(0, dst, message)


@pytest.mark.parametrize("name", GRAPHS)
def test_sums_and_gradients(name: str) -> None:
    graph = GRAPHS[name]()
    alpha = torch.rand(graph.num_edges, 3, dtype=torch.float64).requires_grad_()
    features = torch.randn(graph.num_edges, 5, dtype=torch.float64).requires_grad_()
    grad = torch.randn(graph.num_dst, 3, 5, dtype=torch.float64)
    out = edge_sum(alpha, features, groups_of(graph), graph.num_dst)
    expected = plain(graph, alpha, features)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(out, (alpha, features), grad)
    for got, want in zip(
        found, torch.autograd.grad(expected, (alpha, features), grad), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_one_not_finite_feature_reaches_its_destination_alone() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 2, 0], [1, 1, 1, 2]]), 3)
    features = torch.ones(4, 2)
    features[3] = float("inf")
    out = edge_sum(torch.ones(4, 1), features, groups_of(graph), 3)
    assert out[:, 0, 0].tolist() == [0.0, 3.0, float("inf")]
