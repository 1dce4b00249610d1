"""The CUDA backend, where it differs from the others, on a GPU or the emulator; how it compiles.

The operator suite itself runs on it with GATKERNELS_TEST_BACKEND=cuda.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import emulator
import pytest
import test_dot
import test_gatv2
import torch
from graphs import DEVICE, GRAPHS, random_inputs
from tolerance import BACKEND, Options, assert_right, by_kernel

from gatkernels import Graph, backends, dot_attention, gat_attention, gatv2_attention
from gatkernels.backends import BackendUnavailable, Case, cuda, schedule, tiles
from gatkernels.functional import gat_attention_of_features

SEED = torch.tensor([0x1234_5678_9ABC_DEF0], device=DEVICE)
ROOT = Path(__file__).parents[1]

on_cuda = pytest.mark.skipif(
    BACKEND != "cuda", reason="runs with GATKERNELS_TEST_BACKEND=cuda (make test-cuda)"
)
without_gpu = pytest.mark.skipif(
    DEVICE.type != "cpu", reason="about the emulator or the build, which need no GPU"
)


def _compiler_output(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.fixture
def reversed_threads() -> Iterator[None]:
    yield
    cuda.module.reverse_threads(False)


@on_cuda
@without_gpu
@pytest.mark.parametrize("shape", [(1, 1), (4, 16), (8, 8), (33, 3), (1, 300)], ids=str)
@pytest.mark.parametrize("name", ["random", "degrees", "degrees_out"])
@pytest.mark.usefixtures("reversed_threads")
def test_no_result_depends_on_the_order_of_threads(name: str, shape: tuple[int, int]) -> None:
    """A missing barrier shows when the threads run in the opposite order."""
    graph = GRAPHS[name]()
    inputs = random_inputs(graph, *shape, torch.float32, edge_score=True, attention=True)
    x, x_dst, att = inputs.x, inputs.grad_out, torch.randn(shape)
    found = []
    for order in (False, True):
        cuda.module.reverse_threads(order)
        got = list(by_kernel(graph, inputs, Options(0.2, 0.6, SEED)).values())
        leaves = [t.clone().requires_grad_() for t in (x, x_dst, att)]
        torch.manual_seed(1)
        out = gatv2_attention(graph, *leaves, dropout=0.4, backend="cuda")
        got += [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]
        for edges in (False, True):
            given = test_dot.inputs_of(graph, shape[0], (shape[1],) * 3, torch.float32, edges)

            def attend(*tensors: torch.Tensor) -> Any:
                torch.manual_seed(2)
                out = dot_attention(graph, *tensors, dropout=0.4, backend="cuda")
                return out if isinstance(out, tuple) else (out,)

            got += test_dot.results(attend, given, torch.float32)
        found.append(got)
    assert all(map(torch.equal, *found))


@on_cuda
def test_rows_that_begin_at_odd_places() -> None:
    """Where rows are not aligned to 128 bits, values are read one by one."""
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 4, 8, torch.float32)
    for offset, gap in ((1, 0), (0, 1), (4, 4)):
        memory = torch.randn(offset + graph.num_src * (32 + gap)).to(DEVICE)
        rows = memory[offset:].view(graph.num_src, 32 + gap)[:, :32].unflatten(1, (4, 8))
        rows.copy_(inputs.x)
        # rows are handed over as they are, without autograd, which would copy them
        expected = gat_attention(graph, inputs.x, inputs.score_src, backend="cuda")
        got = gat_attention(graph, rows, inputs.score_src, backend="cuda")
        torch.testing.assert_close(got, expected)
        packed = inputs._replace(x=rows)
        assert_right(graph, packed)
        query = inputs.grad_out
        wanted = dot_attention(graph, query, inputs.x, inputs.x, backend="cuda")
        got = dot_attention(graph, query, rows, rows, backend="cuda")
        torch.testing.assert_close(got, wanted)


@on_cuda
@without_gpu
def test_rows_four_gibibytes_apart() -> None:
    """Kernels count the bytes between rows in 32 bits; rows further apart are copied."""
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 1], [0, 0, 1]]), 2)
    memory = mmap.mmap(-1, (1 << 32) + 128)  # takes memory only where it is written
    rows = torch.frombuffer(memory, dtype=torch.float32).as_strided((2, 4, 8), (1 << 30, 8, 1))
    rows.copy_(torch.randn(2, 4, 8))
    score = torch.randn(2, 4)
    got = gat_attention(graph, rows, score, backend="cuda")
    assert torch.equal(got, gat_attention(graph, rows.contiguous(), score, backend="cuda"))
    att = torch.randn(4, 8)
    got = gatv2_attention(graph, rows, rows, att, backend="cuda")
    assert torch.equal(got, gatv2_attention(graph, *[rows.contiguous()] * 2, att, backend="cuda"))
    got = dot_attention(graph, rows, rows, rows, backend="cuda")
    assert torch.equal(got, dot_attention(graph, *[rows.contiguous()] * 3, backend="cuda"))


@on_cuda
def test_heads_too_wide_for_a_warp_and_too_many_for_a_block() -> None:
    graph = GRAPHS["hub_block"]()
    for shape in ((1, 1025), (2, 2049), (70, 9), (129, 1)):
        inputs = random_inputs(graph, *shape, torch.float32, edge_score=True, attention=True)
        assert_right(graph, inputs, Options(0.2, 0.6, SEED))
        heads, channels = shape
        for sizes in ((channels, 3, channels // 2), (3, channels, 1), (1, 3, channels)):
            test_dot.check(graph, test_dot.inputs_of(graph, heads, sizes, torch.float32, True), 0.6)


@on_cuda
@pytest.mark.parametrize("sizes", [(0, 4, 4), (4, 0, 4), (4, 4, 0), (0, 3, 0), (0, 0, 0)], ids=str)
def test_dot_products_of_rows_without_channels(sizes: tuple[int, int, int]) -> None:
    graph = GRAPHS["hub_block"]()
    inputs = test_dot.inputs_of(graph, 2, sizes, torch.float32, True)
    found = {}
    for backend in ("cuda", "reference"):

        def attend(*tensors: torch.Tensor, backend: str = backend) -> Any:
            how: dict[str, Any] = {"scale": 0.5, "return_attention": True, "backend": backend}
            return dot_attention(graph, *tensors, **how)

        found[backend] = test_dot.results(attend, inputs, torch.float32)
    for got, expected in zip(found["cuda"], found["reference"], strict=True):
        torch.testing.assert_close(got, expected)


def _check(
    kind: str, graph: Graph, shape: tuple[int, int], dtype: torch.dtype, others: bool
) -> None:
    """With all that there can be, or without edge features and attention weights."""
    heads, channels = shape
    if kind == "dot":
        inputs = test_dot.inputs_of(graph, heads, (channels, channels, 8), dtype, others)
        test_dot.check(graph, inputs, 0.6, others)
    else:
        rows = test_gatv2.inputs_of(kind, graph, heads, channels, dtype, others)
        test_gatv2.check(kind, graph, rows, 0.2, 0.6, others)


@on_cuda
@pytest.mark.parametrize("shape", [(4, 16), (1, 1025)], ids=str)
@pytest.mark.parametrize("kind", ["gat", "gatv2", "dot"])
def test_hubs_of_many_chunks(
    monkeypatch: pytest.MonkeyPatch, kind: str, shape: tuple[int, int]
) -> None:
    """Merged in two steps: hubs that fill many slices, parts of some, and two of one slice."""
    monkeypatch.setattr(schedule, "SMALL_CHUNK", 8)
    degrees = torch.tensor([801, 520, 320, 75, 9, 9, 8, 0, 1, *[2] * 31])
    dst = torch.arange(40).repeat_interleave(degrees)
    src = torch.randint(0, 40, dst.shape, generator=torch.Generator().manual_seed(1))
    for ends in ((src, dst), (dst, src)):
        graph = Graph.from_edge_index(torch.stack(ends).to(DEVICE), 40)
        for others in (True, False):
            _check(kind, graph, shape, torch.float32, others)


@on_cuda
@pytest.mark.parametrize("most_heads", [1, 2, 3])
def test_some_heads_at_a_time(monkeypatch: pytest.MonkeyPatch, most_heads: int) -> None:
    monkeypatch.setattr(cuda, "_most_heads", lambda *_: most_heads)
    for shape, dtype in (((5, 64), torch.float32), ((4, 8), torch.bfloat16)):
        for name in ("random", "hub_block"):
            graph = GRAPHS[name]()
            for kind, others in itertools.product(("gat", "gatv2", "dot"), (True, False)):
                _check(kind, graph, shape, dtype, others)


def test_rows_that_fit_the_cache_need_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch has sizes of its own, which no memory of earlier answers knows."""
    monkeypatch.setattr(cuda, "_gpu", lambda device: tiles.Gpu(1 << 20, 5e12, 2e12))
    monkeypatch.setattr(cuda, "_tiled", lambda *_: 1)
    assert cuda._most_heads(torch.device("cuda"), 1000, 5000, 4, 128) == 4
    assert cuda._most_heads(torch.device("cuda"), 10_000, 50_000, 4, 128) == 1


def test_how_many_heads_pay() -> None:
    """Where a slice of rows fits the cache and memory is far slower than it."""
    gpu = tiles.Gpu.of(cache=72 << 20, processors=128, clock=2_520_000, memory_clock=10_501_000,
                        memory_bus=384)  # fmt: skip
    assert gpu.memory == pytest.approx(1.008e12, rel=1e-3)
    reddit = {"nodes": 232_965, "edges": 114_615_892, "heads": 4, "head_bytes": 256}
    assert tiles.most_heads(gpu, **reddit) == 1
    proteins = {**reddit, "nodes": 132_534, "head_bytes": 128}
    assert tiles.most_heads(gpu, **proteins) == 2  # two fit
    for other in (
        {"nodes": 2_449_029},  # no slice fits
        {"nodes": 30_000},  # all of it fits
        {"edges": 232_965},  # no row is read again
        {"heads": 1, "head_bytes": 1024},
        {"head_bytes": 0},
    ):
        wanted = {**reddit, **other}
        assert tiles.most_heads(gpu, **wanted) == wanted["heads"], other
    unknown = tiles.Gpu(0, 0.0, 0.0)
    for other in (gpu._replace(memory=4.9e12), gpu._replace(cached=1.2e12), unknown):
        assert tiles.most_heads(other, **reddit) == 4, other


@on_cuda
def test_a_failed_launch_is_an_exception() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0], [0]], device=DEVICE), 1)
    heads = 32 * 65536  # tiles of 32 heads, one more than a grid takes
    ones = torch.ones(1, heads, device=DEVICE)
    with pytest.raises(RuntimeError, match="gatkernels: CUDA: invalid configuration argument"):
        gat_attention(graph, ones[..., None], ones, backend="cuda")


@on_cuda
@without_gpu
@pytest.mark.parametrize(
    ("degrees", "merges"), [([64] * 9, 0), ([65, 3], 1), ([64 * 63 + 1, 3], 2)], ids=str
)
def test_launches_of_a_step(degrees: list[int], merges: int) -> None:
    """A kernel for each pass; partial results are merged only where a row was cut, and in two
    steps only where there are many."""
    dst = torch.arange(len(degrees)).repeat_interleave(torch.tensor(degrees))
    src = torch.arange(dst.numel()) % 997  # no source has many edges
    graph = Graph.from_edge_index(torch.stack([src, dst]), (997, len(degrees)))
    for kind, forward, backward in (("gat", 1, 2), ("gatv2", 1, 4 + merges)):
        inputs = test_gatv2.inputs_of(kind, graph, 2, 8, torch.float32, False)
        leaves = [t.requires_grad_() for t in inputs]
        operator = {"gat": gat_attention, "gatv2": gatv2_attention}[kind]
        start = cuda.module.launches()
        out = operator(graph, *leaves, backend="cuda")
        middle = cuda.module.launches()
        torch.autograd.grad(out, leaves, out.detach())
        found = middle - start, cuda.module.launches() - middle
        assert found == (forward + merges, backward)
    for edges in (False, True):  # their gradient takes a kernel more
        given = test_dot.inputs_of(graph, 2, (8, 8, 4), torch.float32, edges)
        leaves = [t.requires_grad_() for t in given]
        start = cuda.module.launches()
        outs = dot_attention(graph, *leaves, backend="cuda")
        middle = cuda.module.launches()
        torch.autograd.grad(outs, leaves, outs if edges else outs.detach())
        found = middle - start, cuda.module.launches() - middle
        assert found == (1 + merges, 3 + edges + merges)


@on_cuda
@without_gpu
@pytest.mark.parametrize("both", [False, True])
def test_launches_of_scores_from_features(both: bool) -> None:
    """One more forward; two more backward, the second to add up the blocks' parts."""
    graph = Graph.from_edge_index(torch.arange(8).view(2, 4), 8)
    x, *atts = (torch.randn(n, 2, 8).requires_grad_() for n in (8, 1, 1))
    atts = atts if both else atts[:1]
    start = cuda.module.launches()
    out, _ = gat_attention_of_features(graph, x, *atts, backend="cuda")
    middle = cuda.module.launches()
    torch.autograd.grad(out, (x, *atts), out.detach())
    assert (middle - start, cuda.module.launches() - middle) == (1 + 1, 2 + 2)


@on_cuda
@without_gpu
def test_an_error_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's runtime keeps an error until somebody asks: the next launch must not report it."""
    graph = GRAPHS["random"]()
    inputs = random_inputs(graph, 2, 4, torch.float32)
    wanted = gat_attention(graph, inputs.x, inputs.score_src, backend="cuda")
    module = cuda.module

    def elsewhere(*args: Any) -> Any:
        monkeypatch.undo()
        return module.Context(7, *args[1:])

    stand_in = SimpleNamespace(**{**vars(module), "Context": elsewhere})
    monkeypatch.setattr(cuda, "module", stand_in)
    with pytest.raises(RuntimeError, match="gatkernels: CUDA: invalid device ordinal"):
        gat_attention(graph, inputs.x, inputs.score_src, backend="cuda")
    assert torch.equal(gat_attention(graph, inputs.x, inputs.score_src, backend="cuda"), wanted)


def test_another_device_than_the_current_one_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch, which alone knows where it has a context; on stand-ins."""
    log: list[Any] = []

    @contextlib.contextmanager
    def guard(device: Any) -> Iterator[None]:
        log.append(device)
        yield
        log.append("back")

    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    run = cuda._on_device_of_graph(lambda _, call, x: log.append(x))
    for index in (0, 1):
        col = SimpleNamespace(is_cuda=True, device=f"cuda:{index}", get_device=lambda n=index: n)
        run(cuda.CUDA, SimpleNamespace(csr=SimpleNamespace(col=col)), index)
    assert log == [0, "cuda:1", 1, "back"]


def test_why_a_gpu_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once for each device: a call has no time for it."""
    asked: list[Any] = []

    def capability(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        if device.index == 3:
            raise RuntimeError("no such GPU\nand more lines")
        return 7, 5

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    cuda.unusable.cache_clear()
    old, none = torch.device("cuda", 0), torch.device("cuda", 3)
    for _ in range(2):
        reason = cuda.unusable(old, (8, 0))
        assert reason == "needs compute capability 8.0 or newer, got 7.5"
        assert cuda.unusable(none) == "torch cannot use device cuda:3: no such GPU"
    assert cuda.unusable(old) is None
    assert asked == [old, none, old]
    cuda.unusable.cache_clear()


def test_who_runs_a_case_and_why_not() -> None:
    gpu = Case(torch.device("cuda"), torch.float32)
    names = [name for name, _ in backends.explain()]
    assert names.index("cuda") < names.index("triton")
    if cuda.module is None:
        assert "gatkernels._cuda is missing" in str(backends.supports("cuda", gpu))
    reason = backends.supports("cuda", Case(torch.device("meta"), torch.float32))
    assert reason == "runs on CUDA tensors, got device meta"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_why_not_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the kernels were compiled: the module is there, torch has no GPU for it."""
    gpu = Case(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(cuda, "module", SimpleNamespace(device="cuda"))
    for backend in ("cuda", "triton") if not backends.INTERPRETED else ("cuda",):
        reason = backends.supports(backend, gpu)
        assert reason is None or reason.startswith("torch cannot use device cuda: "), reason
        assert "\n" not in str(reason)
        with pytest.raises(BackendUnavailable, match="cannot run this: "):
            backends.select("op", backend, gpu)
    assert backends.select("op", "auto", gpu) == "reference"


def test_why_not_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "module", SimpleNamespace(device="cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    old = Case(torch.device("cuda:7"), torch.float32)
    reason = backends.supports("cuda", old)
    assert reason == "needs compute capability 8.0 or newer, got 7.5"


@without_gpu
def test_the_emulator_finds_what_a_gpu_would_not_say(tmp_path: Path) -> None:
    """A barrier not all threads come to, in a warp and in a block, and an unaligned access."""
    program = str(tmp_path / "faults")
    source = str(Path(__file__).parent / "simt" / "faults.cpp")
    compiled = _compiler_output(*emulator.COMPILER.split(), "-std=c++17", source, "-o", program)
    assert compiled.returncode == 0, compiled.stderr
    run = _compiler_output(program)
    assert run.stdout.splitlines() == [
        "sum: 2016",
        "warp: simt: a barrier that not all threads of a warp come to",
        "block: simt: a barrier that not all threads of a block come to",
        "unaligned: simt: an access of 16 bytes that is not aligned",
    ]


@without_gpu
def test_whether_cuda_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setup = emulator.setup_script()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path == nvcc and exists(path))
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))  # no devices in /dev
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("GATKERNELS_CUDA_ARCHS", raising=False)
    for wanted, home, found in (
        ("auto", "", None),
        ("auto", tmp_path, None),  # no GPU
        ("0", tmp_path, None),
        ("1", tmp_path, nvcc),
    ):
        monkeypatch.setenv("GATKERNELS_CUDA", wanted)
        monkeypatch.setenv("CUDA_HOME", str(home))
        assert setup.find_nvcc() == found
    monkeypatch.setenv("GATKERNELS_CUDA", "auto")
    with monkeypatch.context() as asked:
        asked.setenv("GATKERNELS_CUDA_ARCHS", "90")
        assert setup.find_nvcc() == nvcc
    driver = tmp_path / "path" / "nvidia-smi"
    driver.parent.mkdir()
    for listed, found in (("GPU 0: NVIDIA H200", nvcc), ("No devices were found", None)):
        driver.write_text(f"#!/bin/sh\necho '{listed}'\n")
        driver.chmod(0o755)
        assert setup.find_nvcc() == found
    monkeypatch.setenv("GATKERNELS_CUDA", "1")
    monkeypatch.delenv("CUDA_HOME")
    with pytest.raises(SystemExit, match="GATKERNELS_CUDA=1, but there is no nvcc: set CUDA_HOME"):
        setup.find_nvcc()
    monkeypatch.setenv("GATKERNELS_CUDA", "yes")
    with pytest.raises(SystemExit, match="GATKERNELS_CUDA must be auto, 0 or 1, got 'yes'"):
        setup.find_nvcc()


@pytest.mark.skipif(BACKEND == "cuda", reason="about the build alone: runs with other backends")
@without_gpu
def test_every_kernel_compiles_without_spills(tmp_path: Path) -> None:
    """All of it for one architecture; a register spilled to memory costs what the kernels save."""
    setup = emulator.setup_script()
    nvcc = setup.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    report = emulator.build_cuda(tmp_path, nvcc, arch=os.environ.get("GATKERNELS_TEST_ARCH", "90"))
    kernels = report.count("Compiling entry function")
    assert kernels > 60
    assert report.count("bytes stack frame, 0 bytes spill stores, 0 bytes spill loads") == kernels
    module = emulator.from_file("_cuda", tmp_path / "_cuda.so")
    assert module.device == "cuda"
    linked = _compiler_output("ldd", str(tmp_path / "_cuda.so")).stdout
    assert "libcudart" not in linked
    assert "torch" not in linked
