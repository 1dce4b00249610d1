"""One compiled program for any graph, in training and with dropout; export, AOTInductor, ONNX.

What the README promises of the fused path is tested here in combination: dropout, torch.compile,
training, edge scores, static batches, autocast and torch.export.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

import gatkernels
from gatkernels import Graph, gat_attention, gatv2_attention
from gatkernels.models import GAT
from gatkernels.nn import GATConv, GATv2Conv

WIDTH = 6


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def accelerated(name: str) -> Callable[..., nn.Module]:
    def make(*args: Any, **options: Any) -> nn.Module:
        layer: nn.Module = getattr(torch_geometric.nn, name)(*args, **options)
        assert len(gatkernels.accelerate(layer).swapped) == 1
        return layer

    return make


LAYERS: dict[str, Callable[..., nn.Module]] = {"GATConv": GATConv, "GATv2Conv": GATv2Conv}
PYG: list[str] = []
if importlib.util.find_spec("torch_geometric") is not None:
    import torch_geometric.nn

    import gatkernels.pyg

    LAYERS |= {"pyg.GATConv": gatkernels.pyg.GATConv, "pyg.GATv2Conv": gatkernels.pyg.GATv2Conv}
    LAYERS |= {f"accelerated {name}": accelerated(name) for name in ("GATConv", "GATv2Conv")}
    PYG = [name for name in LAYERS if "pyg." in name or "acc" in name]

every_layer = pytest.mark.parametrize("name", LAYERS)
needs_pyg = pytest.mark.skipif(not PYG, reason="torch_geometric is not installed")


def edges(nodes: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(nodes + count)
    return torch.randint(0, nodes, (2, count), generator=generator)


def results(call: Any, layer: nn.Module, *args: Any) -> list[Tensor]:
    """The output and all gradients, from one seed."""
    torch.manual_seed(len(args[1]))
    out = call(*args)
    return [out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))]


@contextlib.contextmanager
def compiled_once(allowed: bool) -> Iterator[None]:
    with torch._dynamo.config.patch(error_on_recompile=not allowed):
        yield


@every_layer
@pytest.mark.parametrize("self_loops", [False, True])
def test_one_program_for_any_graph_in_training(name: str, self_loops: bool) -> None:
    """More sizes than the eight recompilations after which torch gives up, the masks eager ones."""
    layer = LAYERS[name](WIDTH, 4, 2, dropout=0.3, add_self_loops=self_loops)
    compiled = torch.compile(layer, backend="aot_eager", dynamic=True, fullgraph=True)
    dropped = 0
    for step in range(10):
        x, index = torch.randn(10 + 3 * step, WIDTH), edges(10 + 3 * step, 40 + 7 * step)
        with compiled_once(step == 0):
            got = results(compiled, layer, x, index)
        expected = results(layer, layer, x, index)
        assert all(map(torch.equal, got, expected))
        dropped += not torch.equal(expected[0], layer.eval()(x, index))
        layer.train()
    assert dropped == 10


@every_layer
def test_one_program_for_any_graph_without_gradients(name: str) -> None:
    layer = LAYERS[name](WIDTH, 4, 2).eval()
    compiled = torch.compile(layer, backend="aot_eager", dynamic=True, fullgraph=True)
    with torch.no_grad():
        for step in range(10):
            x, index = torch.randn(10 + 3 * step, WIDTH), edges(10 + 3 * step, 40 + 7 * step)
            with compiled_once(step == 0):
                assert torch.equal(compiled(x, index), layer(x, index))


@needs_pyg
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [n for n in PYG if n in ("pyg.GATConv", "accelerated GATv2Conv")])
def test_edge_features_with_dropout_and_autocast(name: str, autocast: bool) -> None:
    layer = LAYERS[name](WIDTH, 4, 2, dropout=0.3, edge_dim=3, residual=True)
    compiled = torch.compile(layer, backend="aot_eager", dynamic=True, fullgraph=True)
    for step in range(3):
        x, index = torch.randn(12 + step, WIDTH), edges(12 + step, 50 + step)
        attr = torch.randn(50 + step, 3)
        with compiled_once(step == 0), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            got = results(compiled, layer, x, index, attr)
            expected = results(layer, layer, x, index, attr)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert not gatkernels.layers.dropin.fallbacks(layer)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_operators_with_everything(version: int, batched: bool, autocast: bool) -> None:
    graph = Graph.from_edge_index(edges(9, 40), 9)
    front = (3,) if batched else ()
    dtype = torch.bfloat16 if autocast else torch.float32
    x = torch.randn(*front, 9, 2, 4, dtype=dtype).requires_grad_()
    if version == 1:
        more = [torch.randn(*front, 9, 2), torch.randn(*front, 9, 2), torch.randn(*front, 40, 2)]
    else:
        more = [torch.randn(*front, 9, 2, 4), torch.randn(2, 4), torch.randn(*front, 40, 2, 4)]
    leaves = [x, *(t.requires_grad_() for t in more)]
    operator = gat_attention if version == 1 else gatv2_attention

    def step(*inputs: Tensor) -> Tensor:
        out, alpha = operator(graph, *inputs, dropout=0.4, return_attention=True)
        return out.float().square().sum() + alpha.float().square().sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    found = []
    for call in (compiled, step):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = call(*leaves)
        found.append([loss, *torch.autograd.grad(loss, leaves)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_two_layers_of_one_program_draw_masks_of_their_own() -> None:
    layer = GATConv(WIDTH, 4, 2, dropout=0.5)
    x, index = torch.randn(12, WIDTH), edges(12, 60)

    def both(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return layer(x, index), layer(x, index)

    results = []
    for call in (torch.compile(both, backend="aot_eager", fullgraph=True), both):
        torch.manual_seed(5)
        results.append(call(x, index))
    assert not torch.equal(*results[0])
    assert all(map(torch.equal, *results))


def _compiler_missing() -> str | None:
    return None if shutil.which("g++") or shutil.which("clang++") else "no C++ compiler"


needs_compiler = pytest.mark.skipif(_compiler_missing() is not None, reason="no C++ compiler")


@needs_compiler
def test_inductor_draws_the_masks_of_eager_code() -> None:
    model = GAT(WIDTH, 4, 3, heads=2, dropout=0.5)
    x, index = torch.randn(12, WIDTH), edges(12, 60)
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    got, expected = results(compiled, model, x, index), results(model, model, x, index)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


SIZES = ({0: Dim("n")}, {1: Dim("e")})


@every_layer
@pytest.mark.parametrize("training", [False, True])
def test_export_has_no_bound_on_sizes(name: str, training: bool) -> None:
    layer = LAYERS[name](WIDTH, 4, 2, dropout=0.3).train(training)
    program = export(layer, (torch.randn(10, WIDTH), edges(10, 40)), dynamic_shapes=SIZES)
    assert "gatkernels.build_csr" in str(program.graph)
    for nodes, count in ((33, 200), (5, 3), (100, 2)):
        x, index = torch.randn(nodes, WIDTH), edges(nodes, count)
        got = []
        for call in (program.module(), layer):
            torch.manual_seed(nodes)
            got.append(call(x, index))
        torch.testing.assert_close(*got)


def test_an_exported_program_checks_ids_when_it_runs() -> None:
    layer = GATConv(WIDTH, 4)
    program = export(layer, (torch.randn(10, WIDTH), edges(10, 40)), dynamic_shapes=SIZES)
    with pytest.raises(ValueError, match="holds node id 5 at position 0"):
        program.module()(torch.randn(5, WIDTH), torch.tensor([[5, 0], [0, 1]]))


@needs_compiler
@pytest.mark.parametrize("name", ["pyg.GATConv" if PYG else "GATConv"])
def test_export_package_load_and_run(name: str, tmp_path: Any) -> None:
    """The whole way to a package that AOTInductor made and that runs with other sizes."""
    layer = LAYERS[name](WIDTH, 4, 2).eval()
    with torch.no_grad():
        program = export(layer, (torch.randn(10, WIDTH), edges(10, 40)), dynamic_shapes=SIZES)
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "layer.pt2")
        )
        run = torch._inductor.aoti_load_package(path)
        for nodes, count in ((33, 200), (12, 3)):
            x, index = torch.randn(nodes, WIDTH), edges(nodes, count)
            torch.testing.assert_close(run(x, index), layer(x, index))


ONNX = ("onnx", "onnxscript", "onnxruntime")
missing = [name for name in ONNX if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@needs_onnx
@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("accelerated GATv2Conv",)])
def test_onnx(name: str, self_loops: bool, tmp_path: Any) -> None:
    """Exported with torch's defaults, and run by onnxruntime on the graph it was exported with."""
    import onnxruntime

    layer = LAYERS[name](WIDTH, 4, 2, add_self_loops=self_loops).eval()
    x, index = torch.randn(10, WIDTH), edges(10, 40)
    if name in PYG and self_loops:
        index = index[:, index[0] != index[1]]
    path = tmp_path / "layer.onnx"
    torch.onnx.export(layer, (x, index), path, verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    (out,) = session.run(None, dict(zip(names, (x.numpy(), index.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(out), layer(x, index), rtol=1e-4, atol=1e-5)


def test_the_same_tensor_as_source_and_destination() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]]), 3)
    h, att = torch.randn(3, 2, 4, requires_grad=True), torch.randn(2, 4)
    scores = torch.randn(3, 2, requires_grad=True)

    def both(h: Tensor, scores: Tensor) -> Tensor:
        return gatv2_attention(graph, h, h, att) + gat_attention(graph, h, scores, scores)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(both(h, scores).square().sum(), (h, scores))
    found = torch.autograd.grad(compiled(h, scores).square().sum(), (h, scores))
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)
