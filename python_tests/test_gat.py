"""The GAT kernel against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graphs import CHUNKS_OF_HUB, DEVICE, GRAPHS, INTERPRETED, ON_GPU, Inputs, random_inputs
from tolerance import (
    BACKEND,
    DTYPES,
    Options,
    Results,
    assert_right,
    by_kernel,
    differentiate,
)
from torch import Tensor

from gatkernels import Graph, gat_attention

SEED = torch.tensor([0x1234_5678_9ABC_DEF0], device=DEVICE)
#: One head, heads that fill vectors and heads that do not, odd and wide channels.
SHAPES = (
    (1, 1), (1, 3), (1, 7), (1, 8), (1, 40), (1, 121), (1, 1000), (2, 4), (2, 121), (3, 5), (4, 16),
    (4, 256), (5, 2), (6, 8), (8, 1), (8, 8), (8, 16), (9, 7), (12, 3), (16, 4), (17, 3), (20, 16),
    (33, 2), (33, 17),
)  # fmt: skip

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
graphs = pytest.mark.parametrize("name", GRAPHS)


def assert_same(got: Results, expected: Results) -> None:
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@graphs
@dtypes
def test_every_graph(name: str, dtype: torch.dtype) -> None:
    graph = GRAPHS[name]()
    assert_right(graph, random_inputs(graph, 3, 5, dtype))


@graphs
@dtypes
def test_every_graph_with_all_options(name: str, dtype: torch.dtype) -> None:
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, 8, 4, dtype, edge_score=True, attention=True)
    assert_right(graph, inputs, Options(0.2, 0.6, SEED))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["random", "hub_block"])
@dtypes
def test_every_shape(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    graph = GRAPHS[name]()
    assert_right(graph, random_inputs(graph, *shape, dtype))
    inputs = random_inputs(graph, *shape, dtype, edge_score=True, attention=True)
    assert_right(graph, inputs, Options(-0.3, 0.6, SEED))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (8, 8), (17, 3), (4, 64)], ids=str)
@pytest.mark.parametrize("name", ["hub_chunks", "hub_out"])
def test_split_rows_of_every_kind_of_shape(name: str, shape: tuple[int, int]) -> None:
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, *shape, torch.float32, edge_score=True, attention=True)
    assert_right(graph, inputs, Options(0.2, 0.6, SEED))
    assert_right(graph, random_inputs(graph, *shape, torch.float32))


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, -0.3])
@pytest.mark.parametrize("dropout", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("edge_score", [False, True])
@pytest.mark.parametrize("attention", [False, True])
@dtypes
def test_every_option(
    slope: float, dropout: float, edge_score: bool, attention: bool, dtype: torch.dtype
) -> None:
    options = Options(slope, dropout, SEED)
    for name in ("random", "hub_block"):
        graph = GRAPHS[name]()
        inputs = random_inputs(graph, 4, 6, dtype, edge_score=edge_score, attention=attention)
        assert_right(graph, inputs, options)


@pytest.mark.parametrize("heads", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("channels", [0, 1])
def test_no_channels_or_no_heads(heads: int, channels: int) -> None:
    graph = GRAPHS["random"]()
    assert_right(graph, random_inputs(graph, heads, channels, torch.float32))
    inputs = random_inputs(graph, heads, channels, torch.float32, edge_score=True, attention=True)
    assert_right(graph, inputs, Options(0.2, 0.6, SEED))


@pytest.mark.parametrize("spread", [30.0, 1000.0, 1e6])
@pytest.mark.parametrize("name", ["random", "degrees", "hub_chunks"])
@dtypes
def test_scores_far_apart(name: str, spread: float, dtype: torch.dtype) -> None:
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, 3, 5, dtype, edge_score=True, attention=True, spread=spread)
    assert_right(graph, inputs)
    assert_right(graph, random_inputs(graph, 3, 5, dtype, spread=spread), Options(0.0))


@pytest.mark.parametrize("name", ["random", "degrees"])
@dtypes
def test_a_row_far_below_another_is_as_right(name: str, dtype: torch.dtype) -> None:
    """With slope 1 a shift of a row's scores changes nothing; sums of whole numbers are exact."""
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, 2, 8, dtype, attention=True)
    inputs = inputs._replace(
        score_src=inputs.score_src.mul(4).round(), score_dst=torch.zeros_like(inputs.score_dst)
    )
    near = by_kernel(graph, inputs, Options(1.0))
    below = -1000.0 * torch.arange(graph.num_dst, dtype=dtype, device=DEVICE)
    below = below[:, None].expand(-1, 2)
    assert_same(by_kernel(graph, inputs._replace(score_dst=below), Options(1.0)), near)


@pytest.mark.parametrize(
    ("dtype", "lowest"), [(torch.float32, -87), (torch.float64, -708)], ids=str
)
def test_weights_of_any_difference_of_scores(dtype: torch.dtype, lowest: float) -> None:
    """Two edges into each node score 0 and less, down to where weights leave normal range: every
    exponential is right to a few units of its last place (on GPUs to what x log2(e) loses)."""
    count = 10_007
    below = torch.linspace(0, lowest, count, dtype=dtype)
    nodes = torch.arange(count)
    ends = torch.stack([torch.cat([nodes, torch.full_like(nodes, count)]), nodes.repeat(2)])
    _, alpha = gat_attention(
        Graph.from_edge_index(ends.to(DEVICE), (count + 1, count)),
        torch.ones(count + 1, 1, 1, dtype=dtype, device=DEVICE),
        torch.cat([below, below.new_zeros(1)])[:, None].to(DEVICE),
        negative_slope=1.0,
        return_attention=True,
        backend=BACKEND,
    )
    weight = below.double().exp()
    rtol = (100 if ON_GPU else 10) * torch.finfo(dtype).eps
    torch.testing.assert_close(
        alpha[:count, 0].cpu().double(), weight / (1 + weight), rtol=rtol, atol=0
    )


@pytest.mark.parametrize("slope", [0.0, 0.2, -0.3])
def test_score_zero_takes_the_negative_branch(slope: float) -> None:
    """leaky_relu'(0) is the slope, as in torch: with whole scores many sums are exactly zero."""
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 2, 3, torch.float32, edge_score=True, attention=True)
    whole = [t.round() for t in (inputs.score_src, inputs.score_dst, inputs.edge_score)]
    inputs = inputs._replace(score_src=whole[0], score_dst=whole[1], edge_score=whole[2])
    src, dst, eid = graph.csr_edges()
    zeros = (whole[0][src] + whole[1][dst] + whole[2][eid] == 0).sum()
    assert zeros > 50
    assert_right(graph, inputs, Options(slope))
    assert_right(graph, inputs, Options(slope, 0.5, SEED))


def _without(graph: Graph, inputs: Inputs, kept: Tensor) -> tuple[Graph, Inputs]:
    """Only the ``kept`` edges."""
    sizes = (graph.num_src, graph.num_dst)
    assert inputs.edge_score is not None
    assert inputs.grad_alpha is not None
    fewer = Graph.from_edge_index(graph.edge_index[:, kept], sizes)
    return fewer, inputs._replace(
        edge_score=inputs.edge_score[kept], grad_alpha=inputs.grad_alpha[kept]
    )


@pytest.mark.parametrize("masked", ["every third", "first block", "first chunk", "all but last"])
def test_edges_masked_by_minus_infinity(masked: str) -> None:
    graph = GRAPHS["hub_chunks"]()
    edges = torch.arange(graph.num_edges, device=DEVICE)
    kept = {
        "every third": edges % 3 > 0,
        "first block": edges >= 200,
        "first chunk": edges >= CHUNKS_OF_HUB // 2,
        "all but last": edges == graph.num_edges - 1,
    }[masked]
    inputs = random_inputs(graph, 3, 4, torch.float32, edge_score=True, attention=True)
    assert inputs.edge_score is not None
    fewer, rest = _without(graph, inputs, kept)
    with_mask = inputs.edge_score.masked_fill(~kept[:, None], float("-inf"))
    got = by_kernel(graph, inputs._replace(edge_score=with_mask), Options())
    for name in ("alpha", "grad of edge_score"):
        assert torch.equal(got[name][~kept], torch.zeros_like(got[name][~kept])), name
        got[name] = got[name][kept]
    assert_right(fewer, rest, Options(), got)


@pytest.mark.parametrize("name", ["hub_block", "hub_chunks", "degrees"])
@dtypes
def test_one_head_masked_by_minus_infinity(name: str, dtype: torch.dtype) -> None:
    """Masked in the first blocks of every long row, while the other heads go on."""
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, 3, 4, dtype, edge_score=True, attention=True)
    _, dst, eid = graph.csr_edges()
    place = torch.arange(graph.num_edges, device=DEVICE) - graph.rowptr[dst]
    masked = (place < 400) & (graph.rowptr.diff()[dst] > 500)
    assert inputs.edge_score is not None
    edge_score = inputs.edge_score.clone()
    edge_score[eid[masked], 1] = float("-inf")
    assert_right(graph, inputs._replace(edge_score=edge_score))


@pytest.mark.parametrize("name", ["random", "hub_chunks"])
def test_sources_masked_by_minus_infinity(name: str) -> None:
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, 3, 4, torch.float32, attention=True)
    score_src = inputs.score_src.clone()
    score_src[::7] = float("-inf")
    kept = ~score_src[graph.edge_index[0]].isinf().any(1)
    dst = graph.edge_index[1]
    assert set(dst[kept].tolist()) == set(dst.tolist())  # no row is masked whole
    inputs = inputs._replace(score_src=score_src)
    assert_right(graph, inputs)
    assert not by_kernel(graph, inputs, Options())["grad of score_src"][::7].any()


def _strided(x: Tensor) -> Tensor:
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 7.0)
    wide[..., ::2] = x
    return wide[..., ::2]


def _columns(x: Tensor) -> Tensor:
    """As columns of a wider matrix."""
    wide = x.new_full((x.shape[0], x[0].numel() + 3), 7.0)
    wide[:, 1:-2] = x.flatten(1)
    return wide[:, 1:-2].unflatten(1, x.shape[1:])


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": _strided,
    "columns": _columns,
    "storage offset": lambda t: torch.cat([t[:1], t])[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", [1, 4])
def test_layouts_give_the_same_bits(layout: str, heads: int) -> None:
    graph = GRAPHS["bipartite"]()
    options = Options(0.2, 0.5, SEED)
    inputs = random_inputs(graph, heads, 6, torch.float32, edge_score=True, attention=True)
    expected = by_kernel(graph, inputs, options)
    other = Inputs(*(None if t is None else LAYOUTS[layout](t) for t in inputs))
    got = by_kernel(graph, other, options)
    if BACKEND == "triton" and not INTERPRETED:  # compiled, it adds up in an order of its alignment
        assert_right(graph, inputs, options, got)
    else:
        assert_same(got, expected)


@pytest.mark.parametrize("name", ["bipartite", "self_loops_replaced", "hub_chunks"])
def test_expanded_tensors_give_the_same_bits(name: str) -> None:
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, 4, 6, torch.float32, edge_score=True, attention=True)
    expanded = Inputs(*(None if t is None else t[:1].expand_as(t) for t in inputs))
    dense = Inputs(*(None if t is None else t.contiguous() for t in expanded))
    assert_same(by_kernel(graph, expanded, Options()), by_kernel(graph, dense, Options()))


def test_gradient_of_a_sum() -> None:
    """``out.sum()`` hands back a gradient whose every stride is zero."""
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 4, 6, torch.float32)
    inputs = inputs._replace(grad_out=torch.ones_like(inputs.grad_out))
    x = inputs.x.clone().requires_grad_()
    gat_attention(graph, x, inputs.score_src, inputs.score_dst, backend=BACKEND).sum().backward()
    assert torch.equal(x.grad, by_kernel(graph, inputs, Options())["grad of x"])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["random", "degrees", "no_edges"])
def test_inference(name: str, mode: Callable[[], torch.no_grad]) -> None:
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, 3, 5, torch.float32, edge_score=True, attention=True)
    with mode():
        out, alpha = gat_attention(graph, *inputs[:4], return_attention=True, backend=BACKEND)
        alone = gat_attention(graph, *inputs[:4], backend=BACKEND)
    assert not out.requires_grad
    assert torch.equal(out, alone)
    assert_right(graph, inputs, Options(), {"out": out.clone(), "alpha": alpha.clone()})


@pytest.mark.parametrize("wanted", ["x", "score_src", "score_dst", "edge_score"])
def test_one_gradient_alone(wanted: str) -> None:
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 3, 5, torch.float32, edge_score=True)
    expected = by_kernel(graph, inputs, Options())[f"grad of {wanted}"]
    tensors = dict(zip(inputs._fields[:4], inputs[:4], strict=True))
    leaf = tensors[wanted] = tensors[wanted].clone().requires_grad_()
    gat_attention(graph, **tensors, backend=BACKEND).backward(inputs.grad_out)
    # without the gradient of edge scores, a source's sums are taken in another order
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("used", ["out", "alpha"])
def test_one_output_alone(used: str) -> None:
    """The gradient of an output that nothing depends on is zero."""
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 3, 5, torch.float32, edge_score=True, attention=True)
    zeroed = "grad_alpha" if used == "out" else "grad_out"
    inputs = inputs._replace(**{zeroed: torch.zeros_like(getattr(inputs, zeroed))})

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, alpha = gat_attention(graph, *tensors, return_attention=True, backend=BACKEND)
        if used == "out":
            return out, alpha.detach().requires_grad_()
        return out.detach().requires_grad_(), alpha

    assert_right(graph, inputs, Options(), differentiate(call, inputs))


@pytest.mark.parametrize("backend", [BACKEND, "reference"])
def test_score_dst_none_stands_for_zeros(backend: str) -> None:
    graph = GRAPHS["bipartite"]()
    inputs = random_inputs(graph, 3, 5, torch.float32)
    zeros = torch.zeros_like(inputs.score_dst)
    given = gat_attention(graph, inputs.x, inputs.score_src, zeros, backend=backend)
    assert torch.equal(gat_attention(graph, inputs.x, inputs.score_src, backend=backend), given)


def test_nodes_without_edges_get_zeros() -> None:
    graph = GRAPHS["isolated"]()
    inputs = random_inputs(graph, 3, 5, torch.float32, edge_score=True)
    got = by_kernel(graph, inputs, Options())
    lonely = graph.rowptr.diff() == 0
    assert torch.equal(got["out"][lonely], torch.zeros_like(got["out"][lonely]))
    assert not got["grad of score_dst"][lonely].any()
    unread = graph.colptr.diff() == 0
    assert torch.equal(got["grad of x"][unread], torch.zeros_like(got["grad of x"][unread]))


def test_fresh_memory_is_poisoned() -> None:
    like = torch.zeros(3)
    for fresh in (torch.empty(3), torch.empty_like(like), like.new_empty(3)):
        assert bool(fresh.isnan().all())
    assert torch.empty(2, dtype=torch.int64).tolist() == [-1, -1]


@pytest.mark.skipif(BACKEND != "cpu", reason="takes the compiled CPU module away")
def test_an_unwritten_element_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that leaves its result alone fails the rule, thanks to the poison."""
    from gatkernels.backends import compiled

    class Idle:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *args: None

    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 3, 5, torch.float32)
    monkeypatch.setattr(compiled, "cpu_module", Idle)
    with pytest.raises(AssertionError, match="out: 600 of 600 elements wrong"):
        assert_right(graph, inputs)
