"""What kernels are tested by: graphs made to break them, and how far a result may be off.

Used by the tests, by ``gatkernels verify``, and of use for kernels of your own::

    for make in adversarial_graphs().values():
        graph = make()
        ...
        assert_within("out", out, plain, truth, scale, longest_row(graph))

A result may be ``RATIO`` times as far from the float64 reference as the same formula in the
result's own dtype is, plus a few roundings on the element's own scale: the sum of the absolute
values of the terms it is made of, or where nobody worked that out, the result's largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gatkernels import reference
from gatkernels.graph import Graph
from gatkernels.ops.call import (
    DotGrads,
    DotInputs,
    DotScoring,
    GatInputs,
    OutGrads,
    RowwiseInputs,
    Scoring,
)
from gatkernels.ops.checks import DTYPE_CODES

RATIO = 2.0
#: Roundings of an element's scale allowed on top: about as many as operations in a row make it.
UNITS: dict[torch.dtype, float] = dict.fromkeys(DTYPE_CODES, 8.0)
#: The same per edge of the longest row: adding n equal terms drifts by up to n / 8 roundings, in
#: the softmax's denominator and again in the sum of rows. In float32 the plain formula drifts as
#: far, so RATIO covers most of it; in float64 the truth drifts as well and nothing else covers it.
UNITS_PER_EDGE = {d: 1 / 2 if d == torch.float64 else 1 / 32 for d in UNITS}
#: Kernels take a softmax weight below float32's normal range for 0: less than a rounding of this.
LEAST_WEIGHT = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
#: The operators' tensors by name, in the order they take them.
INPUTS = {
    "gat": ("x", "score_src", "score_dst", "edge_score"),
    "gatv2": ("x_src", "x_dst", "att", "edge"),
    "dot": ("q", "k", "v", "edge", "edge_query"),
}
#: Degrees around the sizes at which the CPU's kernels change course: vectors, blocks, chunks.
DEGREES = (0, 1, 2, 15, 16, 17, 127, 128, 129, 257, 2047, 2048, 2049, 6200)


def adversarial_graphs(
    device: torch.device | str = "cpu",
    degrees: Sequence[int] = DEGREES,
    hubs: tuple[int, int] = (700, 7000),
) -> dict[str, Callable[[], Graph]]:
    """Graphs made to break kernels, by name; each is built when it is asked for.

    Args:
        device: Where they are.
        degrees: Those that the graph "degrees" has.
        hubs: Edges of hubs of several blocks, and of several chunks.
    """
    block, chunks = hubs

    def graph(edges: Tensor, counts: int | tuple[int, int], loops: bool = False) -> Graph:
        return Graph.from_edge_index(edges.to(device), counts, loops)

    def random(num_src: int, num_dst: int, edges: int, loops: bool = False) -> Graph:
        generator = torch.Generator().manual_seed(num_src + 7 * num_dst + 31 * edges)
        src = torch.randint(0, num_src, (edges,), generator=generator)
        dst = torch.randint(0, num_dst, (edges,), generator=generator)
        return graph(torch.stack([src, dst]), (num_src, num_dst), loops)

    def empty(num_src: int, num_dst: int, loops: bool = False) -> Graph:
        return graph(torch.empty(2, 0, dtype=torch.int64), (num_src, num_dst), loops)

    def hub(spokes: int, edges: int) -> Graph:
        """Every edge into node 3, from ``spokes`` sources."""
        src = torch.arange(edges) % spokes
        return graph(torch.stack([src, torch.full_like(src, 3)]), spokes)

    def of_degrees() -> Graph:
        """One destination of each degree, the edges shuffled."""
        generator = torch.Generator().manual_seed(5)
        dst = torch.arange(len(degrees)).repeat_interleave(torch.tensor(degrees))
        dst = dst[torch.randperm(len(dst), generator=generator)]
        src = torch.randint(0, 50, dst.shape, generator=generator)
        return graph(torch.stack([src, dst]), (50, len(degrees)))

    def parallel() -> Graph:
        src = torch.tensor([0, 1]).repeat_interleave(20)
        return graph(torch.stack([src, 1 - src]), 3)

    return {
        "no_nodes": lambda: empty(0, 0),
        "no_edges": lambda: empty(5, 5),
        "no_sources": lambda: empty(0, 4),
        "no_destinations": lambda: empty(4, 0),
        "one_edge": lambda: random(1, 1, 1),
        "isolated": lambda: graph(torch.tensor([[2, 9, 2], [9, 2, 4]]), 12),
        "parallel": parallel,
        "loops": lambda: graph(torch.arange(6).expand(2, -1), 6),
        "self_loops_replaced": lambda: random(6, 6, 30, loops=True),
        "self_loops_bipartite": lambda: random(5, 8, 40, loops=True),
        "self_loops_only": lambda: empty(7, 7, loops=True),
        "bipartite": lambda: random(7, 11, 60),
        "one_destination": lambda: random(9, 1, 40),
        "one_source": lambda: random(1, 9, 40),
        "random": lambda: random(40, 40, 300),
        "hub_block": lambda: hub(37, block),
        "hub_chunks": lambda: hub(37, chunks),
        "hub_out": lambda: hub(37, chunks).reverse(),
        "degrees": of_degrees,
        "degrees_out": lambda: of_degrees().reverse(),
    }


def input_shapes(
    operator: str, graph: Graph, heads: int, channels: int, values: int = 1, features: int = 1
) -> dict[str, tuple[int, ...]]:
    """Shapes of an operator's inputs by name, with all there can be.

    Args:
        operator: One of :data:`INPUTS`.
        graph, heads, channels: What they are for.
        values: Channels of dot products' values.
        features: Of their edges.
    """
    ns, nd, edges = graph.num_src, graph.num_dst, graph.num_edges
    rows_src, rows_dst = (ns, heads, channels), (nd, heads, channels)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "gat": (rows_src, (ns, heads), (nd, heads), (edges, heads)),
        "gatv2": (rows_src, rows_dst, (heads, channels), (edges, heads, channels)),
        "dot": (rows_dst, rows_src, (ns, heads, values), (edges, features), (nd, heads, features)),
    }
    return dict(zip(INPUTS[operator], shapes[operator], strict=True))


def longest_row(graph: Graph) -> int:
    """Edges of the longest row, by destination or by source."""
    degrees = torch.cat([graph.rowptr.diff(), graph.colptr.diff()])
    return int(degrees.max()) if degrees.numel() else 0


def allowance(dtype: torch.dtype, scale: Tensor, longest: int) -> Tensor:
    """The absolute part of the rule; values below the normal range of the dtype may be flushed."""
    info = torch.finfo(dtype)
    units = UNITS[dtype] + UNITS_PER_EDGE[dtype] * longest
    floor = info.tiny * (1.0 + (float(scale.max()) if scale.numel() else 0.0))
    return units * info.eps * scale + floor


def share_of_allowed(
    value: Tensor, plain: Tensor | None, truth: Tensor, scale: Tensor, longest: int
) -> Tensor:
    """Each element's error as a share of what is allowed; NaN or above 1 where it is wrong.

    Args:
        value: What a kernel made, of any device.
        plain: The same by the reference in the dtype of ``value``, on the CPU; None as if it were
            exact, which allows less.
        truth: The same in float64.
        scale: Of each element, or of all; float64.
        longest: Edges of the graph's longest row.
    """
    limit = allowance(value.dtype, scale, longest)
    if plain is not None and truth.numel():
        limit = limit + RATIO * (plain.double() - truth).abs().max()
    return (value.cpu().double() - truth).abs() / limit


def is_within(
    value: Tensor, plain: Tensor | None, truth: Tensor, scale: Tensor, longest: int
) -> bool:
    """Whether all elements are; arguments as of :func:`share_of_allowed`."""
    if value.shape != truth.shape:
        return False
    return bool((share_of_allowed(value, plain, truth, scale, longest) <= 1.0).all())


def assert_within(
    name: str, value: Tensor, plain: Tensor, truth: Tensor, scale: Tensor, longest: int
) -> None:
    """The rule for one result; arguments as of :func:`share_of_allowed`."""
    __tracebackhide__ = True
    assert value.shape == truth.shape, name
    share = share_of_allowed(value, plain, truth, scale, longest)
    right = share <= 1.0  # False where it is NaN
    if not bool(right.all()):
        worst = int((~right).int().argmax())
        raise AssertionError(
            f"{name}: {int((~right).sum())} of {right.numel()} elements wrong, e.g. "
            f"{value.cpu().flatten()[worst]} instead of {truth.flatten()[worst]} "
            f"({share.flatten()[worst]:.3g} times the error that is allowed)"
        )


def _kept(graph: Graph, heads: int, scoring: Scoring | DotScoring) -> Tensor:
    """What dropout makes of each weight, ``[used edges, H]`` by destination."""
    eid = _used_edges(graph)[2]
    if scoring.dropout == 0.0:
        return torch.ones(eid.shape[0], heads, dtype=torch.float64)
    assert scoring.seed is not None
    return reference.dropout_scale(graph.num_edges, heads, scoring.dropout, scoring.seed)[eid]


def _used_edges(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    src, dst, eid = (t[: int(graph.rowptr[-1])] for t in graph.csr_edges())
    return src, dst, eid


def _at_the_kink(total: Tensor, size: Tensor) -> Tensor:
    """What a LeakyReLU's derivative counts for: once, and where rounding may turn the sign of a sum
    of three terms, of absolute values that add up to ``size``, so much that its jump is allowed."""
    eps = torch.finfo(torch.float32).eps
    return 1.0 + (total.abs() < eps * size) / eps


def gat_scales(
    graph: Graph, inputs: GatInputs, grads: OutGrads, scoring: Scoring
) -> dict[str, Tensor]:
    """For each element of each result the sum of its terms' absolute values, in float64.

    Results are "out", "alpha" and "grad of x", by the names of the inputs; all on the CPU.
    """
    x, score_src, score_dst, edge = (None if t is None else t.double() for t in list(inputs)[:4])
    assert x is not None
    assert score_src is not None
    assert score_dst is not None
    grad, slope = grads.out.double(), scoring.negative_slope
    _, alpha = reference.gat_attention(
        graph, x[..., :0], score_src, score_dst, edge, negative_slope=slope
    )
    src, dst, eid = _used_edges(graph)
    alpha = alpha[eid].clamp_min(LEAST_WEIGHT)  # [used edges, H]
    keep = _kept(graph, alpha.shape[1], scoring)
    weight = (alpha * keep)[..., None]
    gain = torch.einsum("ehc,ehc->eh", x.abs()[src], grad.abs()[dst])
    if grads.alpha is not None:
        gain = gain + grads.alpha.double().abs()[eid]
    gain = gain * keep
    row = torch.zeros_like(score_dst).index_add(0, dst, alpha * gain)
    # The kernels split leaky'(s) into slope + (1 - slope) [s > 0].
    score = alpha * (gain + row[dst]) * (abs(slope) + abs(1.0 - slope))
    if edge is not None:
        ends = score_src[src], score_dst[dst], edge[eid]
        score = score * _at_the_kink(ends[0] + ends[1] + ends[2], torch.stack(ends).abs().sum(0))
    found = {
        "out": torch.zeros_like(grad).index_add(0, dst, weight * x.abs()[src]),
        "alpha": alpha.new_zeros(graph.num_edges, alpha.shape[1]).index_add(0, eid, weight[..., 0]),
        "grad of x": torch.zeros_like(x).index_add(0, src, weight * grad.abs()[dst]),
        "grad of score_src": torch.zeros_like(score_src).index_add(0, src, score),
        "grad of score_dst": torch.zeros_like(score_dst).index_add(0, dst, score),
    }
    if edge is not None:
        found["grad of edge_score"] = torch.zeros_like(edge).index_add(0, eid, score)
    return found


def gatv2_scales(
    graph: Graph, inputs: RowwiseInputs, grads: OutGrads, scoring: Scoring
) -> dict[str, Tensor]:
    """The same for GATv2."""
    x_src, x_dst, att = (t.double() for t in (inputs.x_src, inputs.x_dst, inputs.att))
    edge = None if inputs.edge is None else inputs.edge.double()
    grad, slope = grads.out.double(), scoring.negative_slope
    _, alpha = reference.gatv2_attention(graph, x_src, x_dst, att, edge, negative_slope=slope)
    src, dst, eid = _used_edges(graph)
    alpha, steepest = alpha[eid].clamp_min(LEAST_WEIGHT), max(1.0, abs(slope))
    keep = _kept(graph, alpha.shape[1], scoring)

    def by_row(terms: Tensor) -> Tensor:
        return terms.new_zeros(graph.num_dst, *terms.shape[1:]).index_add(0, dst, terms)

    # A logit is a sum of channels; its error multiplies the edge's weight, and the row's sum.
    total = x_src.abs()[src] + x_dst.abs()[dst]  # [used edges, H, C]
    if edge is not None:
        total = total + edge.abs()[eid]
    logit = (att.abs() * total).sum(-1) * steepest
    alpha = alpha * (1.0 + logit + by_row(alpha * logit)[dst])
    weight = (alpha * keep)[..., None]
    gain = torch.einsum("ehc,ehc->eh", x_src.abs()[src], grad.abs()[dst])
    if grads.alpha is not None:
        gain = gain + grads.alpha.double().abs()[eid]
    gain = gain * keep
    score = (alpha * (gain + by_row(alpha * gain)[dst]))[..., None] * steepest
    slopes = score * att.abs()
    if edge is not None:
        slopes = slopes * _at_the_kink(x_src[src] + x_dst[dst] + edge[eid], total)
    found = {
        "out": by_row(weight * x_src.abs()[src]),
        "alpha": alpha.new_zeros(graph.num_edges, alpha.shape[1]).index_add(0, eid, weight[..., 0]),
        "grad of x_src": torch.zeros_like(x_src).index_add(
            0, src, slopes + weight * grad.abs()[dst]
        ),
        "grad of x_dst": by_row(slopes),
        "grad of att": (score * total).sum(0),
    }
    if edge is not None:
        found["grad of edge"] = torch.zeros_like(edge).index_add(0, eid, slopes)
    return found


def dot_scales(
    graph: Graph, inputs: DotInputs, grads: DotGrads, scoring: DotScoring
) -> dict[str, Tensor]:
    """The same for dot products."""
    q, k, v, edge, query = (None if t is None else t.double() for t in inputs)
    assert q is not None
    assert k is not None
    assert v is not None
    *_, alpha = reference.dot_attention(graph, q, k, v, edge, query, scale=scoring.scale)
    src, dst, eid = _used_edges(graph)
    alpha = alpha[eid].clamp_min(LEAST_WEIGHT)  # [used edges, H]
    keep, steepness = _kept(graph, alpha.shape[1], scoring), abs(scoring.scale)

    def by_row(terms: Tensor) -> Tensor:
        return terms.new_zeros(graph.num_dst, *terms.shape[1:]).index_add(0, dst, terms)

    def by_source(terms: Tensor) -> Tensor:
        return terms.new_zeros(graph.num_src, *terms.shape[1:]).index_add(0, src, terms)

    logit = (q.abs()[dst] * k.abs()[src]).sum(-1)
    gain = (grads.out.double().abs()[dst] * v.abs()[src]).sum(-1)
    if edge is not None:
        assert query is not None
        assert grads.edge_out is not None
        features = edge.abs()[eid][:, None]
        logit = logit + (query.abs()[dst] * features).sum(-1)
        gain = gain + (grads.edge_out.double().abs()[dst] * features).sum(-1)
    if grads.alpha is not None:
        gain = gain + grads.alpha.double().abs()[eid]
    # The error of a logit multiplies the edge's weight, and the row's sum.
    logit = steepness * logit
    alpha = alpha * (1.0 + logit + by_row(alpha * logit)[dst])
    gain = gain * keep
    weight = (alpha * keep)[..., None]
    score = steepness * (alpha * (gain + by_row(alpha * gain)[dst]))[..., None]
    found = {
        "out": by_row(weight * v.abs()[src]),
        "alpha": alpha.new_zeros(graph.num_edges, alpha.shape[1]).index_add(0, eid, weight[..., 0]),
        "grad of q": by_row(score * k.abs()[src]),
        "grad of k": by_source(score * q.abs()[dst]),
        "grad of v": by_source(weight * grads.out.double().abs()[dst]),
    }
    if edge is not None:
        assert query is not None
        assert grads.edge_out is not None
        terms = score * query.abs()[dst] + weight * grads.edge_out.double().abs()[dst]
        found["edge_out"] = by_row(weight * features)
        found["grad of edge"] = torch.zeros_like(edge).index_add(0, eid, terms.sum(1))
        found["grad of edge_query"] = by_row(score * features)
    return found


def operator_scales(
    operator: str,
    graph: Graph,
    inputs: Sequence[Tensor],
    grads: dict[str, Tensor],
    number: float,
    dropout: float,
    seed: Tensor | None,
) -> dict[str, Tensor]:
    """The same for an operator by name.

    Args:
        operator: One of :data:`INPUTS`.
        graph: The edges.
        inputs: Without edge features where there are none.
        grads: Of the results by name, "out", "edge_out" and "alpha" as far as there are any.
        number: ``negative_slope``, or ``scale``.
        dropout, seed: As the call has them.
    """
    out, edge_out, alpha = (grads.get(name) for name in ("out", "edge_out", "alpha"))
    assert out is not None
    if operator == "dot":
        rows = DotInputs(*inputs, *[None] * (5 - len(inputs)))
        how = DotScoring(number, dropout, seed)
        return dot_scales(graph, rows, DotGrads(out, edge_out, alpha), how)
    first, second, third = inputs[:3]
    edge = inputs[3] if len(inputs) > 3 else None
    scoring, of_results = Scoring(number, dropout, seed), OutGrads(out, alpha)
    if operator == "gat":
        given = GatInputs(first, second, third, edge, None, None)
        return gat_scales(graph, given, of_results, scoring)
    return gatv2_scales(graph, RowwiseInputs(first, second, third, edge), of_results, scoring)


def assert_same_model(what: str, found: Tensor, expected: Tensor) -> float:
    """Outputs of two implementations of a float32 model agree; their difference, relative to the
    largest value."""
    if found.shape != expected.shape:
        raise AssertionError(f"{what}: shapes {tuple(found.shape)} and {tuple(expected.shape)}")
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference < 1e-4:
        raise AssertionError(f"{what}: outputs differ by {difference:.1e} of the largest")
    return difference
