"""Random graphs, shapes and options against the float64 reference."""

from __future__ import annotations

import torch
from graphs import random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import DTYPES, Options, assert_right, by_kernel

from gatkernels import Graph


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to 20 nodes a side and 200 edges, concentrated on as few nodes as the draw says."""
    num_src, num_dst = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    count = draw(st.integers(0, 200))
    sides = []
    for nodes in (num_src, num_dst):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        crowd = draw(st.integers(1, nodes))
        sides.append(torch.randint(nodes - crowd, nodes, (count,), generator=generator))
    self_loops = draw(st.booleans())
    return Graph.from_edge_index(torch.stack(sides), (num_src, num_dst), self_loops)


options = st.builds(
    Options,
    slope=st.one_of(st.sampled_from([0.0, 0.2, 1.0]), st.floats(-2.0, 2.0)),
    dropout=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 0.95)),
    seed=st.integers(-(2**63), 2**63 - 1).map(lambda seed: torch.tensor([seed])),
)


@settings(max_examples=200)
@given(
    graph=graphs(),
    heads=st.integers(1, 20),
    channels=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    edge_score=st.booleans(),
    attention=st.booleans(),
    spread=st.sampled_from([0.0, 1.0, 40.0]),
    options=options,
)
def test_results_and_gradients(
    graph: Graph,
    heads: int,
    channels: int,
    dtype: torch.dtype,
    edge_score: bool,
    attention: bool,
    spread: float,
    options: Options,
) -> None:
    inputs = random_inputs(
        graph, heads, channels, dtype, edge_score=edge_score, attention=attention, spread=spread
    )
    assert_right(graph, inputs, options)


@given(graph=graphs(), heads=st.integers(1, 9), slope=st.floats(0.0, 1.0))
def test_attention_of_a_row_sums_to_one(graph: Graph, heads: int, slope: float) -> None:
    inputs = random_inputs(graph, heads, 2, torch.float64, edge_score=True, attention=True)
    alpha = by_kernel(graph, inputs, Options(slope))["alpha"]
    assert bool((alpha >= 0).all())
    _, dst, eid = (t[: int(graph.rowptr[-1])] for t in graph.csr_edges())
    sums = torch.zeros(graph.num_dst, heads, dtype=alpha.dtype).index_add(0, dst, alpha[eid])
    expected = (graph.rowptr.diff() > 0).double()[:, None].expand_as(sums)
    torch.testing.assert_close(sums, expected)


@given(graph=graphs(), seed=st.integers(0, 2**32))
def test_order_of_edges_does_not_matter(graph: Graph, seed: int) -> None:
    """Edges given in another order take their scores and attention along."""
    inputs = random_inputs(graph, 2, 3, torch.float64, edge_score=True, attention=True)
    ids = graph.used_edge_ids()
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    sizes = (graph.num_src, graph.num_dst)
    shuffled = Graph.from_edge_index(graph.edge_index[:, order], sizes)
    assert inputs.edge_score is not None
    assert inputs.grad_alpha is not None
    moved = inputs._replace(
        edge_score=inputs.edge_score[ids][order], grad_alpha=inputs.grad_alpha[ids][order]
    )
    expected = by_kernel(graph, inputs, Options())
    for name, value in by_kernel(shuffled, moved, Options()).items():
        per_edge = name in ("alpha", "grad of edge_score")
        torch.testing.assert_close(
            value, expected[name][ids][order] if per_edge else expected[name]
        )


@given(graph=graphs())
def test_graph_round_trips(graph: Graph) -> None:
    sizes = (graph.num_src, graph.num_dst)
    again = Graph.from_edge_index(graph.edge_index, sizes)
    assert torch.equal(again.edge_index, graph.edge_index)
    assert torch.equal(again.rowptr, graph.rowptr)
    used = int(graph.rowptr[-1])
    csr = Graph.from_csr(graph.rowptr, graph.col[:used], graph.num_src)
    assert torch.equal(csr.rowptr, graph.rowptr)
    assert torch.equal(csr.col, graph.col[:used])
