"""What only a GPU shows: streams, devices, CUDA graphs, calls that do not wait, sizes past 2^31."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import CHUNKS_OF_HUB
from torch import Tensor

from gatkernels import Graph, backends, gat_attention, gatv2_attention
from gatkernels.backends import schedule
from gatkernels.nn import GATConv, GATv2Conv

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch.cuda.is_available() is false"
)
GPU = torch.device("cuda", 0)
OPERATORS = {"gat": gat_attention, "gatv2": gatv2_attention}
#: Clock cycles of a pause on the GPU, about half a second: calls take milliseconds.
PAUSE = 2**30

kinds = pytest.mark.parametrize("kind", OPERATORS)
dropouts = pytest.mark.parametrize("dropout", [0.0, 0.6])


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = backends.supports(name, backends.Case(GPU, torch.float32))
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


def edges_with_a_hub() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    edge_index = torch.randint(0, 300, (2, 2 * CHUNKS_OF_HUB), generator=generator)
    edge_index[1, :CHUNKS_OF_HUB] = 3
    return edge_index


def graph_on(device: torch.device) -> Graph:
    return Graph.from_edge_index(edges_with_a_hub().to(device), 300, self_loops=True)


def inputs_of(
    kind: str, graph: Graph, heads: int, channels: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(heads + channels)
    rows, edges = (graph.num_src, graph.num_dst), graph.num_edges
    sizes: list[tuple[int, ...]]
    if kind == "gat":
        sizes = [(rows[0], heads, channels), *((n, heads) for n in (*rows, edges))]
    else:
        sizes = [*((n, heads, channels) for n in rows), (heads, channels), (edges, heads, channels)]
    made = [torch.randn(size, generator=generator) for size in sizes]
    return [t.to(graph.device, dtype).requires_grad_() for t in made]


def step(
    kind: str, backend: str, graph: Graph, inputs: list[Tensor], dropout: float = 0.0
) -> list[Tensor]:
    """Output, attention, and the gradients of the inputs."""
    outputs = OPERATORS[kind](
        graph, *inputs, dropout=dropout, return_attention=True, backend=backend
    )
    grads = [t.detach() for t in outputs]
    found = torch.autograd.grad(outputs, inputs, grads)
    return [*grads, *found]


@kinds
def test_same_bits_twice(kind: str, backend: str) -> None:
    graph = graph_on(GPU)
    inputs = inputs_of(kind, graph, 4, 16)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(step(kind, backend, graph, inputs, 0.6))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("self_loops", [False, True])
def test_a_graph_is_the_one_built_on_the_cpu(self_loops: bool) -> None:
    edge_index = edges_with_a_hub()
    here = Graph.from_edge_index(edge_index, 300, self_loops)
    there = Graph.from_edge_index(edge_index.to(GPU), 300, self_loops)
    used = int(here.rowptr[-1])
    for name in ("rowptr", "colptr"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name
    for name in ("col", "eid", "row", "ceid"):
        assert torch.equal(getattr(there, name)[:used].cpu(), getattr(here, name)[:used]), name


@kinds
def test_kernels_run_on_the_current_stream(kind: str, backend: str) -> None:
    """The inputs come late, on a stream of their own; other streams still see NaN."""
    graph = graph_on(GPU)
    inputs = inputs_of(kind, graph, 4, 16)
    expected = step(kind, backend, graph, inputs)
    late = [torch.full_like(t, float("nan")).requires_grad_() for t in inputs]
    side, ready = torch.cuda.Stream(), torch.cuda.Event()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(PAUSE)
        with torch.no_grad():
            for tensor, value in zip(late, inputs, strict=True):
                tensor.copy_(value)
        got = step(kind, backend, graph, late)
        ready.record()
    torch.cuda.current_stream().wait_event(ready)
    assert all(map(torch.equal, got, expected))


@kinds
def test_kernels_run_on_the_device_of_the_tensors(kind: str, backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    found = []
    for device in (GPU, torch.device("cuda", 1)):
        graph = graph_on(device)
        found.append(step(kind, backend, graph, inputs_of(kind, graph, 4, 16)))
        assert all(t.device == device for t in found[-1])
        assert torch.cuda.current_device() == 0
    assert all(torch.equal(one, other.to(GPU)) for one, other in zip(*found, strict=True))


@kinds
@pytest.mark.parametrize("first", [False, True])
def test_no_call_waits_for_the_device(kind: str, first: bool, backend: str) -> None:
    """Not even the first one on a graph, which makes its schedule."""
    graph = graph_on(GPU)
    inputs = inputs_of(kind, graph, 4, 16)
    for _ in range(2):  # compiles, and leaves torch's allocator the memory that the call takes
        graph = graph_on(GPU) if first else graph
        step(kind, backend, graph, inputs, 0.6)
    graph = graph_on(GPU) if first else graph
    torch.cuda.synchronize()
    torch.cuda._sleep(PAUSE)
    awake = torch.cuda.Event()
    awake.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(kind, backend, graph, inputs, 0.6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not awake.query()


@kinds
@dropouts
def test_a_cuda_graph_gives_the_bits_of_a_call(kind: str, dropout: float, backend: str) -> None:
    """Replayed on other values and other seeds than it was captured with."""
    graph = graph_on(GPU)
    inputs = inputs_of(kind, graph, 4, 16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(kind, backend, graph, inputs, dropout)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step(kind, backend, graph, inputs, dropout)
    for seed in (1, 2):
        with torch.no_grad():
            for tensor in inputs:
                tensor.normal_()
        torch.manual_seed(seed)
        expected = step(kind, backend, graph, inputs, dropout)
        torch.manual_seed(seed)
        captured.replay()
        assert all(map(torch.equal, results, expected))


@kinds
def test_the_first_call_on_a_graph_may_be_captured(kind: str, backend: str) -> None:
    """Its schedules are there since it was made: a call before the first replay reads them, too."""
    inputs = inputs_of(kind, graph_on(GPU), 4, 16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(kind, backend, graph_on(GPU), inputs)  # another one
    torch.cuda.current_stream().wait_stream(side)
    graph = graph_on(GPU)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step(kind, backend, graph, inputs)
    expected = step(kind, backend, graph, inputs)
    captured.replay()
    assert all(map(torch.equal, results, expected))


@kinds
def test_a_graph_made_on_one_stream_serves_another(kind: str, backend: str) -> None:
    inputs = inputs_of(kind, graph_on(GPU), 4, 16)
    expected = step(kind, backend, graph_on(GPU), inputs)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        graph = graph_on(GPU)
    torch.cuda.current_stream().wait_stream(side)
    assert all(map(torch.equal, step(kind, backend, graph, inputs), expected))


@pytest.mark.parametrize("layer", [GATConv, GATv2Conv])
def test_layers_compile_with_cuda_graphs(layer: Any, backend: str) -> None:
    """torch keeps what a graph reads in memory that is either an input or an output of it."""
    pytest.importorskip("triton", reason="torch.compile needs Triton on a GPU")
    torch._dynamo.reset()
    conv = layer(12, 16, heads=4, backend=backend).to(GPU)
    compiled = torch.compile(conv, mode="reduce-overhead", fullgraph=True)
    graph, x = graph_on(GPU), torch.randn(300, 12).to(GPU)
    for _ in range(4):  # warm-up, recording, replays
        found = []
        for call in (compiled, conv):
            torch.compiler.cudagraph_mark_step_begin()
            conv.zero_grad()
            out = call(x, graph)
            out.sin().sum().backward()
            found.append([t.detach().clone() for t in (out, *(p.grad for p in conv.parameters()))])
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_new_graph_takes_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the profiler, where test_schedule.py counts by what ops are known to launch."""
    monkeypatch.setattr(schedule, "ORDERED", 1 << 18)
    ends = torch.arange(100_000, device=GPU)
    edge_index = torch.stack([ends % 30_011, ends // 5])
    Graph.from_edge_index(edge_index, (30_011, 20_000))
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        Graph.from_edge_index(edge_index, (30_011, 20_000))
        torch.cuda.synchronize()
    kernels = [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        if not event.name.startswith(("Mem", "gatkernels::"))
    ]
    assert 0 < len(kernels) <= 25, kernels


@pytest.mark.parametrize("layer", [GATConv, GATv2Conv])
def test_layers_compile_into_one_graph(layer: Any, backend: str) -> None:
    pytest.importorskip("triton", reason="torch.compile needs Triton on a GPU")
    torch._dynamo.reset()
    conv = layer(12, 16, heads=4, backend=backend).to(GPU)
    compiled = torch.compile(conv, fullgraph=True)
    graph, x = graph_on(GPU), torch.randn(300, 12).to(GPU).requires_grad_()
    found = []
    for call in (compiled, conv):
        out = call(x, graph)
        found.append([out, *torch.autograd.grad(out.sin().sum(), [x, *conv.parameters()])])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [GATConv, GATv2Conv])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_what_the_reference_gives(
    layer: Any, dtype: torch.dtype, backend: str
) -> None:
    graph, x = graph_on(GPU), torch.randn(300, 12).to(GPU).requires_grad_()
    found = []
    for name in (backend, "reference"):
        torch.manual_seed(0)
        conv = layer(12, 16, heads=4, backend=name).to(GPU)
        with torch.autocast("cuda", dtype=dtype):
            out = conv(x, graph)
        grads = torch.autograd.grad(out.float().square().mean(), [x, *conv.parameters()])
        assert torch.isfinite(out).all()
        found.append([out, *grads])
    for got, expected in zip(*found, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, atol=3e-2, rtol=3e-2)


@kinds
@pytest.mark.parametrize("sizes", [(0, 0), (5, 5), (0, 4), (4, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_edges_all_is_zero(
    kind: str, sizes: tuple[int, int], dtype: torch.dtype, backend: str
) -> None:
    graph = Graph.from_edge_index(torch.empty(2, 0, dtype=torch.int64, device=GPU), sizes)
    inputs = inputs_of(kind, graph, 3, 5, dtype)
    for result in step(kind, backend, graph, inputs, 0.6):
        assert not result.any()
    torch.cuda.synchronize()


@pytest.fixture
def much_memory(request: pytest.FixtureRequest) -> None:
    """40 GB of features, 90 of weights."""
    needed = 60 if "features" in request.node.name else 100
    if torch.cuda.mem_get_info(GPU)[0] < needed * 2**30:
        pytest.skip(f"needs {needed} GiB of GPU memory")


@kinds
@pytest.mark.usefixtures("much_memory")
def test_more_than_2_to_the_31_features(kind: str, backend: str) -> None:
    """Edges between the last rows and the first; a row of one edge is its neighbour's."""
    nodes, heads, channels = 2**25 + 64, 8, 8
    last = nodes - 1
    src, dst = ends = torch.tensor([[last, 0, last - 1], [0, last, last - 1]], device=GPU)
    graph = Graph.from_edge_index(ends, nodes)
    x = torch.zeros(nodes, heads, channels, dtype=torch.bfloat16, device=GPU)
    x[dst] = torch.randn(3, heads, channels).to(x)
    plain, x = x, x.detach().requires_grad_()
    if kind == "gat":
        out = gat_attention(graph, x, plain[..., 0], backend=backend)
    else:
        out = gatv2_attention(graph, x, plain, plain[0], backend=backend)
    (grad,) = torch.autograd.grad(out, x, out.detach())
    assert torch.equal(out[dst], plain[src])
    torch.testing.assert_close(grad[src], out[dst])
    assert not out[1 : last - 1].any()
    assert not grad[1 : last - 1].any()


@kinds
@pytest.mark.usefixtures("much_memory")
def test_more_than_2_to_the_31_weights(kind: str, backend: str) -> None:
    """Rows of 256 equal edges: every weight is exactly 1 / 256. The last edge has a gradient."""
    nodes, heads, edges = 2**20 + 2, 8, 2**28 + 512
    ids = torch.arange(edges, dtype=torch.int32, device=GPU) % nodes
    graph = Graph.from_edge_index(torch.stack([ids, ids]), nodes)
    x = torch.zeros(nodes, heads, 1, device=GPU)
    edge = torch.zeros(edges, heads, device=GPU)
    if kind == "gat":
        inputs = [x, x[..., 0], None, edge.requires_grad_()]
    else:
        edge = edge[..., None].requires_grad_()
        inputs = [x, x, torch.ones(heads, 1, device=GPU), edge]
    _, alpha = OPERATORS[kind](graph, *inputs, return_attention=True, backend=backend)
    assert bool((alpha == 1 / 256).all())
    grad = torch.zeros_like(alpha)
    grad[-1] = 1.0
    (found,) = torch.autograd.grad(alpha, edge, grad)
    slope = 0.2  # all scores are 0
    expected = torch.full_like(found[-1], slope * (1 / 256) * (255 / 256))
    torch.testing.assert_close(found[-1], expected)
    assert int(found.count_nonzero()) == 256 * heads
