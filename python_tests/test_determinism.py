"""The same bits for every run and every number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from graphs import CHUNKS_OF_HUB, DEVICE, INTERPRETED, ON_GPU, THREADS, random_inputs
from tolerance import BACKEND, DTYPES, Options, Results, by_kernel
from torch import Tensor

from gatkernels import Graph, dot_attention
from gatkernels.models import GAT

SEED = torch.tensor([31337], device=DEVICE)
NODES = 60 if ON_GPU else 3000


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _graph() -> Graph:
    """Enough rows for many tasks, with a hub among the destinations and one among the sources."""
    generator = torch.Generator().manual_seed(1)
    edges = 3 * CHUNKS_OF_HUB
    src = torch.randint(0, NODES, (edges,), generator=generator)
    dst = torch.randint(0, NODES, (edges,), generator=generator)
    dst[:CHUNKS_OF_HUB] = 17
    src[CHUNKS_OF_HUB : 2 * CHUNKS_OF_HUB] = NODES - 1
    order = torch.randperm(edges, generator=generator)
    edge_index = torch.stack([src, dst])[:, order].to(DEVICE)
    return Graph.from_edge_index(edge_index, NODES, self_loops=True)


GRAPH = _graph()


def assert_same(got: Results, expected: Results, why: str) -> None:
    for name, value in expected.items():
        assert torch.equal(got[name], value), f"{name} differs {why}"


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("shape", [(1, 16), (3, 5), (8, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits(dtype: torch.dtype, shape: tuple[int, int], everything: bool) -> None:
    inputs = random_inputs(GRAPH, *shape, dtype, edge_score=everything, attention=everything)
    options = Options(0.2, 0.6 if everything else 0.0, SEED)
    torch.set_num_threads(THREADS[0])
    expected = by_kernel(GRAPH, inputs, options)
    for threads in THREADS[1:]:
        torch.set_num_threads(threads)
        assert_same(by_kernel(GRAPH, inputs, options), expected, f"with {threads} threads")


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("sizes", [(1, 16, 16, 8), (3, 5, 4, 2), (8, 8, 16, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_of_dot_products(
    dtype: torch.dtype, sizes: tuple[int, int, int, int], everything: bool
) -> None:
    heads, channels, values, features = sizes
    widths = [channels, channels, values] + [features] * everything
    leaves = [torch.randn(NODES, heads, width) for width in widths]
    if everything:
        leaves.insert(3, torch.randn(GRAPH.num_edges, features))
    leaves = [t.to(DEVICE, dtype).requires_grad_() for t in leaves]

    def run() -> Results:
        torch.manual_seed(1)
        dropout = 0.6 if everything else 0.0
        out = dot_attention(
            GRAPH, *leaves, dropout=dropout, return_attention=everything, backend=BACKEND
        )
        results = list(out) if isinstance(out, tuple) else [out]
        grads = torch.autograd.grad(results, leaves, [t.detach() for t in results])
        return {str(place): t for place, t in enumerate((*results, *grads))}

    torch.set_num_threads(THREADS[0])
    expected = run()
    for threads in THREADS[1:]:
        torch.set_num_threads(threads)
        assert_same(run(), expected, f"with {threads} threads")


@pytest.mark.parametrize("self_loops", [False, True])
def test_graph_build(self_loops: bool) -> None:
    edge_index = torch.randint(0, 9000, (2, 200_000)).to(DEVICE)
    torch.set_num_threads(1)
    expected = Graph.from_edge_index(edge_index, 9000, self_loops)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        graph = Graph.from_edge_index(edge_index, 9000, self_loops)
        for name in ("rowptr", "col", "eid", "colptr", "row", "ceid"):
            assert torch.equal(getattr(graph, name), getattr(expected, name)), (name, threads)


def test_training() -> None:
    """Whole training steps repeat, dropout included."""
    x = torch.randn(NODES, 12).to(DEVICE)

    def train() -> list[Tensor]:
        torch.manual_seed(3)
        model = GAT(12, 4, 3, heads=4, backend=BACKEND).to(DEVICE)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(1 if INTERPRETED else 3):
            optimizer.zero_grad()
            model(x, GRAPH).square().mean().backward()
            optimizer.step()
        return list(model.state_dict().values())

    assert all(map(torch.equal, train(), train()))
