"""torch.compile and torch.export of layers, autocast, GATv2Conv against PyG's, and verify."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import GRAPHS
from torch import Tensor

from gatkernels import Graph, verify
from gatkernels.backends import cuda
from gatkernels.cli import main
from gatkernels.models import GAT
from gatkernels.nn import GATConv, GATv2Conv

EDGES = torch.tensor([[0, 1, 2, 3, 4, 4, 2], [1, 2, 3, 4, 0, 4, 2]])


def layers() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [
        GATConv(6, 4, heads=2),
        GATv2Conv(6, 4, heads=2),
        GAT(6, 4, 3, heads=2, dropout=0.0),
    ]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_layers_compile_into_one_graph(place: int, dynamic: bool, raw: bool) -> None:
    torch._dynamo.reset()
    layer = layers()[place]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    x = torch.randn(5, 6, requires_grad=True)
    edges: Any = EDGES if raw else Graph.from_edge_index(EDGES, 5, self_loops=True)
    found = []
    for call in (compiled, layer):
        out = call(x, edges)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_other_graphs_of_the_same_rank_do_not_recompile() -> None:
    torch._dynamo.reset()
    layer = layers()[0]
    count = 0

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        nonlocal count
        count += 1
        return module

    compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
    for nodes, edges in ((10, 30), (11, 40), (25, 99), (60, 200)):
        graph = Graph.from_edge_index(torch.randint(0, nodes, (2, edges)), nodes)
        x = torch.randn(nodes, 6)
        torch.testing.assert_close(compiled(x, graph), layer(x, graph))
    assert count == 1


@pytest.mark.parametrize("place", [0, 1, 2])
def test_layers_export(place: int) -> None:
    layer = layers()[place].eval()
    x = torch.randn(5, 6)
    program = torch.export.export(layer, (x, EDGES))
    torch.testing.assert_close(program.module()(x, EDGES), layer(x, EDGES))


@pytest.mark.parametrize("layer_name", ["GATConv", "GATv2Conv"])
def test_autocast_gives_what_pyg_gives(layer_name: str) -> None:
    pyg = pytest.importorskip("torch_geometric.nn", reason="compares with PyG")
    ours_class = {"GATConv": GATConv, "GATv2Conv": GATv2Conv}[layer_name]
    ours, theirs = ours_class(6, 4, heads=2), getattr(pyg, layer_name)(6, 4, heads=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = ours(x, EDGES), theirs(x, EDGES)
    assert got.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=3e-2, rtol=3e-2)
    half = ours.bfloat16()(x.bfloat16(), EDGES)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 3},
        {"heads": 2, "concat": False, "residual": True},
        {"heads": 2, "bias": False, "share_weights": True},
        {"heads": 2, "add_self_loops": False},
    ],
    ids=str,
)
def test_gatv2conv_is_pygs(options: dict[str, Any]) -> None:
    pyg = pytest.importorskip("torch_geometric.nn", reason="compares with PyG")
    torch.manual_seed(1)
    ours = GATv2Conv(6, 4, **options)
    torch.manual_seed(1)
    theirs = pyg.GATv2Conv(6, 4, **options)
    assert repr(ours) == repr(theirs)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    x = torch.randn(5, 6)
    got, (edges, alpha) = ours(x, EDGES, return_attention_weights=True)
    expected, (their_edges, their_alpha) = theirs(x, EDGES, return_attention_weights=True)
    torch.testing.assert_close(got, expected)
    assert torch.equal(edges, their_edges)
    torch.testing.assert_close(alpha, their_alpha)
    got.square().sum().backward()
    expected.square().sum().backward()
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, named[name].grad)


def test_gatv2conv_bipartite() -> None:
    pyg = pytest.importorskip("torch_geometric.nn", reason="compares with PyG")
    ours, theirs = GATv2Conv((6, 3), 4, heads=2), pyg.GATv2Conv((6, 3), 4, heads=2)
    theirs.load_state_dict(ours.state_dict())
    graph = GRAPHS["bipartite"]()
    x = (torch.randn(7, 6), torch.randn(11, 3))
    torch.testing.assert_close(ours(x, graph.edge_index), theirs(x, graph.edge_index))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fast", "'backend' must be one of auto, cpu, cuda, triton, reference, got 'fast'"),
        ("cuda", "backend 'cuda' cannot run this: runs on CUDA tensors, got device cpu"),
    ],
)
def test_verify_names_a_backend_it_cannot_check(
    name: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "module", None)
    assert main(["verify", "--backend", "cpu", name]) == 2
    assert capsys.readouterr().err == f"gatkernels verify: error: --backend: {message}\n"


def test_verify_passes_and_notices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"bipartite": GRAPHS["bipartite"](), "hub_chunks": GRAPHS["hub_block"]()}
    few["self_loops_replaced"] = GRAPHS["self_loops_replaced"]()
    monkeypatch.setattr(verify, "graphs", lambda device: few)
    assert main(["verify"]) == 0
    assert "all checks passed" in capsys.readouterr().out
    right = verify.functional.gat_attention

    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = right(*args, **kwargs)
        if kwargs["backend"] == "reference" or not kwargs.get("return_attention"):
            return found
        return found[0] * 1.001, found[1]

    monkeypatch.setattr(verify.functional, "gat_attention", wrong)
    assert main(["verify"]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["verify", "--backend", "reference"]) == 0
    assert "\ncpu " not in capsys.readouterr().out
