"""GATv2, 16-bit storage, static batches and attention weights against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from graphs import DEVICE, GRAPHS, MANY, THREADS, Inputs
from tolerance import BACKEND, Options, scales
from torch import Tensor

from gatkernels import Graph, attention_weights, gat_attention, gatv2_attention, reference
from gatkernels.ops import autograd, checks
from gatkernels.ops.call import OutGrads, RowwiseInputs, Scoring
from gatkernels.ops.philox import draw_seed
from gatkernels.testing import assert_within, gatv2_scales, longest_row

SEED = torch.tensor([0x1234_5678_9ABC_DEF0], device=DEVICE)

Call = Callable[..., tuple[Tensor, ...]]
dtypes = pytest.mark.parametrize("dtype", list(checks.DTYPE_CODES), ids=str)
graphs = pytest.mark.parametrize("name", GRAPHS)


def inputs_of(
    kind: str, graph: Graph, heads: int, channels: int, dtype: torch.dtype, edge: bool
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 * heads + channels)
    ns, nd = graph.num_src, graph.num_dst
    if kind == "gat":
        sizes = [(ns, heads, channels), (ns, heads), (nd, heads), (graph.num_edges, heads)]
    else:
        sizes = [(ns, heads, channels), (nd, heads, channels), (heads, channels)]
        sizes.append((graph.num_edges, heads, channels))
    made = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [(0.5 * t).to(dtype).to(DEVICE) for t in (made if edge else made[:3])]


def grads_of(outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Gradients of outputs, values of ``dtype``."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=generator).to(dtype).to(t) for t in outputs]


def results(call: Call, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = call(*leaves)
    found = torch.autograd.grad(outputs, leaves, grads_of(outputs, dtype))
    return [t.detach() for t in (*outputs, *found)]


INPUTS = {
    "gat": ("x", "score_src", "score_dst", "edge_score"),
    "gatv2": ("x_src", "x_dst", "att", "edge"),
}


def check(
    kind: str,
    graph: Graph,
    inputs: list[Tensor],
    slope: float,
    dropout: float,
    attention: bool = True,
) -> None:
    public = gat_attention if kind == "gat" else gatv2_attention
    plain = reference.gat_attention if kind == "gat" else reference.gatv2_attention

    def ours(*tensors: Tensor) -> Any:
        torch.manual_seed(3)
        options: dict[str, Any] = {"negative_slope": slope, "dropout": dropout}
        found = public(graph, *tensors, **options, return_attention=attention, backend=BACKEND)
        return found if attention else (found,)

    on_cpu = graph.to("cpu")
    torch.manual_seed(3)
    seed = draw_seed(DEVICE).cpu()  # as the call draws it

    def naive(*tensors: Tensor) -> Any:
        found = plain(on_cpu, *tensors, negative_slope=slope, dropout=dropout, seed=seed)
        return found if attention else found[:1]

    dtype = inputs[0].dtype
    got, inputs = results(ours, inputs, dtype), [t.cpu() for t in inputs]
    same, truth = results(naive, inputs, dtype), results(naive, [t.double() for t in inputs], dtype)
    outputs = ("out", "alpha") if attention else ("out",)
    grads = grads_of(truth[: len(outputs)], dtype)
    if kind == "gat":
        given = [*inputs, *[None] * (4 - len(inputs)), *grads, *[None] * (2 - len(grads))]
        scale = scales(on_cpu, Inputs(*given), Options(slope, dropout, seed))
    else:
        rows = RowwiseInputs(*inputs, *[None] * (4 - len(inputs)))
        of_results = OutGrads(*grads, *[None] * (2 - len(grads)))
        scale = gatv2_scales(on_cpu, rows, of_results, Scoring(slope, dropout, seed))
    names = (*outputs, *(f"grad of {name}" for name in INPUTS[kind][: len(inputs)]))
    for name, *three in zip(names, got, same, truth, strict=True):
        assert three[0].dtype == dtype
        # every edge of the graph is a term of grad att, as those of a row are of others
        longest = graph.num_edges if name == "grad of att" else longest_row(graph)
        assert_within(name, *three, scale[name], longest)


@graphs
@dtypes
def test_gatv2_on_every_graph(name: str, dtype: torch.dtype) -> None:
    graph = GRAPHS[name]()
    check("gatv2", graph, inputs_of("gatv2", graph, 3, 5, dtype, True), 0.2, 0.6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (8, 8), (8, 16), (17, 3), (2, 121), (4, 256)])
@dtypes
def test_gatv2_of_every_shape(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for name in ("random", "hub_block"):
        graph = GRAPHS[name]()
        inputs = inputs_of("gatv2", graph, *shape, dtype, False)
        for dropout, attention in ((0.0, True), (0.6, False)):
            check("gatv2", graph, inputs, 0.2, dropout, attention)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, -0.3])
@pytest.mark.parametrize("dropout", [0.0, 0.6, 1.0])
def test_gatv2_options(slope: float, dropout: float) -> None:
    graph = GRAPHS["bipartite"]()
    check("gatv2", graph, inputs_of("gatv2", graph, 4, 6, torch.float64, True), slope, dropout)


@graphs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gat_in_16_bits(name: str, dtype: torch.dtype) -> None:
    graph = GRAPHS[name]()
    for heads, channels in ((3, 5), (8, 8)):
        check("gat", graph, inputs_of("gat", graph, heads, channels, dtype, True), 0.2, 0.6)


@pytest.mark.parametrize(("heads", "channels"), [(1, 1), (3, 3), (8, 8)])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("edge", [False, True])
def test_gatv2_gradients(heads: int, channels: int, edge: bool, second: bool) -> None:
    graph = GRAPHS["self_loops_replaced"]()
    leaves = inputs_of("gatv2", graph, heads, channels, torch.float64, edge)
    leaves = [t.requires_grad_() for t in leaves]

    def call(*tensors: Tensor) -> Any:
        given = tensors if edge else (*tensors, None)
        how = autograd.Options(0.2, 0.4, edge, BACKEND)
        out, alpha = autograd.attend("gatv2", graph, RowwiseInputs(*given), how, SEED)
        return (out, alpha) if edge else out

    examine = torch.autograd.gradgradcheck if second else torch.autograd.gradcheck
    assert examine(call, leaves, fast_mode=True)


@pytest.mark.parametrize("wanted", INPUTS["gatv2"])
def test_gatv2_one_gradient_alone(wanted: str) -> None:
    graph, names = GRAPHS["random"](), INPUTS["gatv2"]
    given = inputs_of("gatv2", graph, 3, 5, torch.float32, True)
    found = {}
    for chosen in (names, (wanted,)):
        leaves = [t.clone().requires_grad_(n in chosen) for t, n in zip(given, names, strict=True)]
        out = gatv2_attention(graph, *leaves, backend=BACKEND)
        out.backward(torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out))
        found[chosen] = leaves[names.index(wanted)].grad
    assert torch.equal(*found.values())


def test_gatv2_same_bits_for_any_number_of_threads() -> None:
    graph = GRAPHS["degrees"]()
    inputs = inputs_of("gatv2", graph, 8, 16, torch.float32, False)

    def call(*tensors: Tensor) -> Any:
        how = autograd.Options(0.2, 0.5, True, BACKEND)
        return autograd.attend("gatv2", graph, RowwiseInputs(*tensors, None), how, SEED)

    before = torch.get_num_threads()
    try:
        found = []
        for threads in THREADS:
            torch.set_num_threads(threads)
            found.append(results(call, inputs, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("kind", ["gat", "gatv2"])
def test_what_no_edge_reads_reaches_no_gradient(kind: str, value: float) -> None:
    """Values that are not finite, of a source and a destination without edges."""
    dst = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3, 3], device=DEVICE)
    graph = Graph.from_edge_index(torch.stack([torch.arange(10, device=DEVICE), dst]), 12)
    attention = gat_attention if kind == "gat" else gatv2_attention
    for channels in (8, 16):
        leaves = inputs_of(kind, graph, 2, channels, torch.float32, False)
        for place, node in ((0, 11), (1, 11), (2, 2)) if kind == "gat" else ((0, 11), (1, 2)):
            leaves[place][node] = value
        leaves = [t.requires_grad_() for t in leaves]
        out = attention(graph, *leaves, backend=BACKEND)
        grad_out = torch.ones_like(out)
        grad_out[2] = value
        for grad in torch.autograd.grad(out, leaves, grad_out):
            assert grad.isfinite().all()


def test_gatv2_keeps_nothing_the_size_of_the_edges() -> None:
    nodes = 20
    graph = Graph.from_edge_index(torch.randint(0, nodes, (2, MANY)).to(DEVICE), nodes)
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    inputs = [t.requires_grad_() for t in inputs_of("gatv2", graph, 4, 8, torch.float32, False)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gatv2_attention(graph, *inputs, dropout=0.5, backend=BACKEND)
    floating = sum(t.nbytes for t in kept.values() if t.is_floating_point())
    assert 0 < floating <= 4 * nodes * 4 * (3 * 8 + 3) + 4 * 4 * 8


@pytest.mark.parametrize("dropout", [0.0, 0.6])
def test_a_static_batch_is_its_members(dropout: float) -> None:
    """Without dropout, each member by itself; with it, the reference in the same call."""
    graph = GRAPHS["bipartite"]()
    for kind, op in (("gat", gat_attention), ("gatv2", gatv2_attention)):
        members = [inputs_of(kind, graph, 2, c, torch.float64, True) for c in (3, 3, 3)]
        members = [[t * (k + 1) for t in member] for k, member in enumerate(members)]
        stacked = [torch.stack(parts) for parts in zip(*members, strict=True)]
        if kind == "gatv2":
            stacked[2] = members[0][2]
        outs = []
        for backend in (BACKEND, "reference"):
            torch.manual_seed(1)
            outs.append(
                op(graph, *stacked, dropout=dropout, return_attention=True, backend=backend)
            )
        for got, expected in zip(*outs, strict=True):
            torch.testing.assert_close(got, expected)
        if dropout == 0.0:
            for k, member in enumerate(members):
                if kind == "gatv2":
                    member[2] = members[0][2]
                out, alpha = op(graph, *member, return_attention=True)
                torch.testing.assert_close(outs[0][0][k], out)
                torch.testing.assert_close(outs[0][1][k], alpha)


def test_attention_weights_are_those_of_the_operator() -> None:
    graph = GRAPHS["random"]()
    x, src, dst, edge = inputs_of("gat", graph, 3, 5, torch.float32, True)
    for backend in (BACKEND, "reference"):
        torch.manual_seed(2)
        _, alpha = gat_attention(graph, x, src, dst, edge, dropout=0.3, return_attention=True)
        torch.manual_seed(2)
        alone = attention_weights(graph, src, dst, edge, dropout=0.3, backend=backend)
        torch.testing.assert_close(alone, alpha)


@pytest.mark.parametrize(
    ("place", "bad", "error", "message"),
    [
        (0, torch.ones(7, 2), ValueError, "'x_src' must have shape [num_src, heads, channels]"),
        (1, torch.ones(7, 2, 3), ValueError, "'x_dst' must have shape [num_dst, heads, channels]"),
        (1, torch.ones(11, 2, 3).double(), TypeError, "'x_dst' must have the dtype of 'x'"),
        (2, torch.ones(3, 3), ValueError, "'att' must have shape [heads, channels] with heads=2"),
        (2, None, TypeError, "'att' must be a torch.Tensor, got NoneType"),
        (3, torch.ones(60, 2), ValueError, "'edge' must have shape [num_edges, heads, channels]"),
    ],
)
def test_gatv2_rejects(place: int, bad: Any, error: type[Exception], message: str) -> None:
    graph = GRAPHS["bipartite"]()
    arguments: list[Any] = inputs_of("gatv2", graph, 2, 3, torch.float32, True)
    arguments[place] = bad
    with pytest.raises(error) as caught:
        gatv2_attention(graph, *arguments)
    assert f"gatv2_attention: {message}" in str(caught.value)
