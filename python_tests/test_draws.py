"""What shards ask of kernels: dropout by ids that are no places, and of some of the heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import CHUNKS_OF_HUB, DEVICE, GRAPHS
from tolerance import BACKEND
from torch import Tensor

from gatkernels import Graph, reference
from gatkernels.distributed.whole import WholeGraph
from gatkernels.ops import autograd
from gatkernels.ops.autograd import OPERATORS, DotOptions, Options

SEED = torch.tensor([0x0123_4567_89AB_CDEF], device=DEVICE)
OPTIONS = Options(0.2, 0.5, True, BACKEND)


def places_mixed(graph: Graph, offset: int = 0) -> tuple[WholeGraph, Tensor]:
    """A graph of the same rows whose per-edge tensors have another order, and that order."""
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(graph.num_edges, generator=generator).to(DEVICE)
    place = torch.empty_like(order)
    place[order] = torch.arange(graph.num_edges, device=DEVICE)
    csr = [graph.rowptr, graph.col, place[graph.eid.long()].int()]
    csc = [graph.colptr, graph.row, place[graph.ceid.long()].int()]
    ids = order + offset
    bits = torch.where(ids >= 2**31, ids - 2**32, ids).int()
    counts = {"nodes": [graph.num_dst], "edges": [graph.num_edges]}
    return WholeGraph(csr, csc, counts, bits), order


def hub() -> Graph:
    """Edges into one node and out of one, more than a chunk holds."""
    generator = torch.Generator().manual_seed(3)
    ends = torch.randint(30, (2, CHUNKS_OF_HUB), generator=generator)
    into, out_of = torch.full_like(ends[0], 4), torch.full_like(ends[1], 9)
    edges = torch.stack([torch.cat([ends[0], out_of]), torch.cat([into, ends[1]])])
    return Graph.from_edge_index(edges.to(DEVICE), 30)


def inputs_of(name: str, graph: Graph, heads: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(2)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(DEVICE)

    n, e, c = graph.num_src, graph.num_edges, 4
    if name == "gat":
        scores = normal(n, heads), normal(n, heads), normal(e, heads)
        given: Any = (normal(n, heads, c), *scores, None, None)
    elif name == "gatv2":
        rows = normal(n, heads, c), normal(n, heads, c)
        given = (*rows, normal(heads, c), normal(e, heads, c))
    else:
        rows = (normal(n, heads, c), normal(n, heads, c), normal(n, heads, c))
        given = (*rows, normal(e, 3), normal(n, heads, 3))
    return dict(zip(OPERATORS[name].inputs._fields, given, strict=True))


def run(name: str, graph: Graph, given: dict[str, Any], first_head: int = 0) -> dict[str, Tensor]:
    """Results, and gradients of inputs, for gradients of results that depend on the place alone."""
    leaves = {k: None if t is None else t.clone().requires_grad_() for k, t in given.items()}
    options: Any = OPTIONS if name != "dot" else DotOptions(0.3, *OPTIONS[1:])
    options = options._replace(first_head=first_head)
    outs = autograd.attend(name, graph, OPERATORS[name].inputs(**leaves), options, SEED)
    found = {f"result {k}": t for k, t in enumerate(outs) if t is not None}
    torch.autograd.backward([*found.values()], [t.detach().cos() for t in found.values()])
    grads = {f"grad of {k}": t.grad for k, t in leaves.items() if t is not None}
    return {k: t.detach() for k, t in found.items()} | grads  # type: ignore[union-attr]


def of_edges(name: str, key: str) -> bool:
    last = f"result {2 if name == 'dot' else 1}"
    return key == last or (key.startswith("grad of edge") and key != "grad of edge_query")


@pytest.mark.parametrize("name", ["gat", "gatv2", "dot"])
@pytest.mark.parametrize("kind", ["random", "hub"])
def test_dropout_draws_by_the_ids_that_it_is_given(name: str, kind: str) -> None:
    graph = GRAPHS["random"]() if kind == "random" else hub()
    mixed, order = places_mixed(graph)
    given = inputs_of(name, graph, 3)
    expected = run(name, graph, given)
    given = {
        k: t[order] if t is not None and of_edges(name, f"grad of {k}") else t
        for k, t in given.items()
    }
    for key, value in run(name, mixed, given).items():
        wanted = expected[key][order] if of_edges(name, key) else expected[key]
        assert torch.equal(value, wanted), key


@pytest.mark.parametrize("name", ["gat", "gatv2", "dot"])
@pytest.mark.parametrize(("first", "count"), [(4, 4), (1, 2), (3, 6), (5, 1), (8, 3), (2, 9)])
def test_some_of_the_heads_draw_as_all_do(name: str, first: int, count: int) -> None:
    graph, heads = GRAPHS["random"](), 11
    given = inputs_of(name, graph, heads)
    expected = run(name, graph, given)
    dims = dict(zip(given, OPERATORS[name].heads, strict=True))
    part = {
        k: t if t is None or dims[k] is None else t.narrow(dims[k] or 0, first, count)
        for k, t in given.items()
    }
    for key, value in run(name, graph, part, first).items():
        dim = dims[key.removeprefix("grad of ")] if key.startswith("grad") else 1
        if dim is not None:  # what heads share has a part of its gradient from each
            torch.testing.assert_close(value, expected[key].narrow(dim, first, count))


def test_ids_have_32_bits_without_a_sign() -> None:
    graph, offset = GRAPHS["random"](), 2**31 - 20
    mixed, order = places_mixed(graph, offset)
    x = torch.zeros(graph.num_src, 2, 1, device=DEVICE)
    given = OPERATORS["gat"].inputs(x, x[..., 0], x[..., 0], None, None, None)
    _, alpha = autograd.attend("gat", mixed, given, OPTIONS, SEED)
    ids = (order + offset)[:, None].cpu()
    words = torch.stack(reference.philox(SEED.cpu(), ids, torch.zeros_like(ids)), -1)[:, 0, :2]
    assert torch.equal((alpha != 0).cpu(), words >= 2**31)
