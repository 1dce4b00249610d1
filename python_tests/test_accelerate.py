"""accelerate and restore: which layers change class, which stay, and what the report says."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatkernels

pyg = pytest.importorskip("torch_geometric.nn", reason="swaps PyG's layers")

EDGES = torch.tensor([[0, 1, 2, 3, 4, 4, 2], [1, 2, 3, 4, 0, 4, 2]])


def ours(name: str) -> type[nn.Module]:
    import gatkernels.pyg

    found: type[nn.Module] = getattr(gatkernels.pyg, name)
    return found


class Network(nn.Module):
    """Two layers, of which the second cannot be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pyg.GATConv(6, 4, heads=2)
        self.second = pyg.GATv2Conv(8, 3, aggr="mean")

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def test_swaps_in_place_and_restores() -> None:
    model = Network().double().eval()
    model.first.register_forward_hook(lambda *_: calls.append(1))
    calls: list[int] = []
    x = torch.randn(5, 6, dtype=torch.float64)
    parameters, state, text = list(model.parameters()), model.state_dict(), repr(model)
    expected = model(x, EDGES)
    report = gatkernels.accelerate(model)
    assert type(model.first) is ours("GATConv")
    assert type(model.second) is pyg.GATv2Conv
    assert isinstance(model.first, pyg.GATConv)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    assert repr(model) == text
    assert not model.first.training
    torch.testing.assert_close(model(x, EDGES), expected)
    assert len(calls) == 2
    assert [layer.name for layer in report.swapped] == ["first"]
    assert [(layer.name, layer.reason) for layer in report.kept] == [("second", "aggr='mean'")]
    restored = gatkernels.restore(model)
    assert type(model.first) is pyg.GATConv
    assert torch.equal(model(x, EDGES), expected)
    assert [layer.name for layer in restored.restored] == ["first"]
    assert str(restored).splitlines() == [
        "gatkernels: 1 of 1 layers restored",
        "  first  GATConv  torch_geometric's own",
    ]
    assert str(gatkernels.restore(model)) == "gatkernels: no layer to restore"


def test_restore_leaves_a_users_own_subclass() -> None:
    class Mine(ours("GATConv")):  # type: ignore[misc]
        pass

    model = nn.Sequential(Mine(6, 4))
    report = gatkernels.restore(model)
    assert type(model[0]) is Mine
    assert report.restored == []
    assert report.kept[0].reason == f"a class of {__name__}, not swapped by accelerate"
    assert "0  Mine  stays: a class of" in str(report)


def test_report_names_other_graph_layers() -> None:
    class Own(pyg.MessagePassing):
        pass

    layers = [pyg.GATConv(4, 4), pyg.GCNConv(4, 4), Own(), pyg.GCNConv(4, 4), nn.Linear(4, 4)]
    report = gatkernels.accelerate(nn.Sequential(*layers))
    assert report.others == ("GCNConv", "Own", "GCNConv")
    assert str(report).splitlines() == [
        "gatkernels: 1 of 1 layers swapped",
        "  0  GATConv  fused",
        "  no kernels here for: 2 GCNConv, 1 Own",
    ]


def test_report_tells_what_was_swapped_and_what_fell_back() -> None:
    model = Network()
    report = gatkernels.accelerate(model)
    assert str(report).splitlines() == [
        "gatkernels: 1 of 2 layers swapped",
        "  first   GATConv    fused",
        "  second  GATv2Conv  stays: aggr='mean'",
    ]
    handle = model.first.register_message_forward_hook(lambda *_: None)
    x = torch.randn(5, 6)
    for _ in range(3):
        model(x, EDGES)
    handle.remove()
    model(x, EDGES)
    why = "message passing hooks are registered"
    assert report.layers[0].fallbacks == {why: 3}
    assert str(report).splitlines()[2] == f"          3 calls fell back: {why}"
    gatkernels.restore(model)
    assert gatkernels.accelerate(model).layers[0].fallbacks == {}


def test_a_layer_alone_and_a_model_without_any() -> None:
    layer = pyg.GATConv(6, 4)
    assert "(the model)  GATConv  fused" in str(gatkernels.accelerate(layer))
    assert type(layer) is ours("GATConv")
    assert str(gatkernels.accelerate(nn.Linear(2, 2))).endswith(
        "no layer found that can be swapped"
    )


def test_accelerating_twice_is_accelerating_once() -> None:
    model = Network()
    first = str(gatkernels.accelerate(model))
    assert str(gatkernels.accelerate(model)) == first


def test_a_subclass_keeps_its_own_code() -> None:
    class Mine(pyg.GATConv):  # type: ignore[misc]
        def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
            return x_j

    model = nn.Sequential(Mine(6, 4))
    report = gatkernels.accelerate(model)
    assert type(model[0]) is Mine
    assert report.kept[0].reason == "a subclass of GATConv, with its own code"


@pytest.mark.parametrize("call", [gatkernels.accelerate, gatkernels.restore])
def test_a_model_must_be_a_module(call: Any) -> None:
    with pytest.raises(TypeError, match=f"{call.__name__}: 'model' must be a torch.nn.Module, got"):
        call([nn.Linear(2, 2)])


def test_swapped_models_are_copied_and_pickled() -> None:
    model = Network()
    gatkernels.accelerate(model)
    x = torch.randn(5, 6)
    expected = model(x, EDGES)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert type(other.first) is ours("GATConv")
        assert torch.equal(other(x, EDGES), expected)


def test_nothing_is_imported_for_the_user() -> None:
    code = (
        "import sys, torch, gatkernels; gatkernels.accelerate(torch.nn.Linear(2, 2)); "
        "print([m for m in ('torch_geometric', 'dgl') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def assert_same_before_and_after(model: nn.Module, layers: int, *args: Any) -> None:
    """The model's results and gradients before and after, all its layers being swapped."""
    results = []
    for swap in (False, True):
        if swap:
            report = gatkernels.accelerate(model)
            assert len(report.swapped) == layers, report
            assert not report.kept
        out = model(*args)
        tensors = list(out.values()) if isinstance(out, dict) else [out]
        loss = sum(t.square().sum() for t in tensors)
        used = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, used, allow_unused=True)
        results.append([*tensors, *[g for g in found if g is not None]])
    assert len(results[0]) == len(results[1])
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert not any(layer.fallbacks for layer in report.layers), report


def test_inside_sequential_and_nested_modules() -> None:
    inner = pyg.Sequential(
        "x, edge_index",
        [
            (pyg.GATConv(6, 4, 2), "x, edge_index -> x"),
            nn.ELU(),
            (pyg.GATv2Conv(8, 3), "x, edge_index -> x"),
        ],
    )
    holder = nn.ModuleDict({"deep": nn.ModuleList([inner])})
    assert len(gatkernels.accelerate(holder).swapped) == 2
    gatkernels.restore(holder)
    assert_same_before_and_after(inner, 2, torch.randn(5, 6), EDGES)


def test_a_layer_held_twice_is_swapped_once() -> None:
    layer = pyg.GATConv(6, 6)
    model = pyg.Sequential(
        "x, edge_index", [(layer, "x, edge_index -> x"), (layer, "x, edge_index -> x")]
    )
    assert_same_before_and_after(model, 1, torch.randn(5, 6), EDGES)


METADATA = (["paper", "author"], [("paper", "cites", "paper"), ("author", "writes", "paper"),
                                  ("paper", "written_by", "author")])  # fmt: skip


def hetero_inputs() -> tuple[dict[str, Tensor], dict[tuple[str, str, str], Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"paper": 9, "author": 5}
    edges = {
        kind: torch.stack(
            [torch.randint(0, sizes[end], (20,), generator=generator) for end in (kind[0], kind[2])]
        )
        for kind in METADATA[1]
    }
    return {name: torch.randn(count, 6) for name, count in sizes.items()}, edges


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_inside_hetero_conv(name: str) -> None:
    convs = {kind: getattr(pyg, name)((-1, -1), 4, 2, add_self_loops=False) for kind in METADATA[1]}
    model = pyg.HeteroConv(convs, aggr="sum")
    x, edges = hetero_inputs()
    model(x, edges)  # so that the lazy parameters exist
    assert_same_before_and_after(model, 3, x, edges)


@pytest.mark.parametrize("swap_first", [False, True])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_inside_to_hetero(name: str, swap_first: bool) -> None:
    class Homogeneous(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = getattr(pyg, name)((-1, -1), 4, heads=2, add_self_loops=False)
            self.conv2 = getattr(pyg, name)((-1, -1), 3, add_self_loops=False)

        def forward(self, x: Tensor, edge_index: Tensor) -> Any:
            return self.conv2(self.conv1(x, edge_index).relu(), edge_index)

    model = Homogeneous()
    if swap_first:
        gatkernels.accelerate(model)
    hetero = pyg.to_hetero(model, METADATA)
    x, edges = hetero_inputs()
    hetero(x, edges)
    if swap_first:
        gatkernels.restore(hetero)
    assert_same_before_and_after(hetero, 6, x, edges)


def test_pygs_model() -> None:
    model = pyg.models.GAT(6, 8, 3, out_channels=4, heads=2, norm="batch_norm", jk="cat")
    assert_same_before_and_after(model, 3, torch.randn(5, 6), EDGES)


def test_wrapped_for_distributed_training(tmp_path: Any) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(pyg.GATConv(6, 4, 2))
        assert_same_before_and_after(model, 1, torch.randn(5, 6), EDGES)
        model(torch.randn(5, 6), EDGES).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_swapped_layers_compile_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    layer = getattr(pyg, name)(6, 4, 2, edge_dim=3)
    gatkernels.accelerate(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, attr = torch.randn(5, 6), torch.randn(7, 3)
    results = []
    for call in (compiled, layer):
        out = call(x, EDGES, attr)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_compiled_model_is_compiled_again() -> None:
    torch._dynamo.reset()
    model = pyg.GATConv(6, 4, 2)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(5, 6)
    expected = compiled(x, EDGES)
    report = gatkernels.accelerate(compiled)
    assert [layer.name for layer in report.swapped] == ["_orig_mod"]
    for _ in range(2):
        torch.testing.assert_close(compiled(x, EDGES), expected)
    assert type(model) is ours("GATConv")
    gatkernels.restore(compiled)
    torch.testing.assert_close(compiled(x, EDGES), expected)


def test_benchmark_compares_the_same_model_before_and_after() -> None:
    from gatkernels.bench import accelerate as benchmark

    generator = torch.Generator().manual_seed(1)
    edges = torch.randint(0, 40, (2, 200), generator=generator)
    result = benchmark.compare(edges, torch.randn(40, 6, generator=generator), rounds=1)
    assert result.logit_difference < 1e-4
    assert result.fallbacks == 0
    text = "\n".join(benchmark.describe(result))
    assert all(f"{result.ratio(case):.1f}x" in text for case in benchmark.CASES)


def test_a_layer_whose_forward_was_replaced_is_reported_and_left_alone() -> None:
    model = nn.Sequential(pyg.GATConv(6, 4), ours("GATConv")(6, 4))
    for layer in model:
        layer.forward = lambda *_: 5
    report = gatkernels.accelerate(model)
    assert [layer.reason for layer in report.layers] == ["its forward was replaced"] * 2
    assert type(model[0]) is pyg.GATConv
    assert model[0](torch.randn(5, 6), EDGES) == 5
    assert str(report).splitlines()[0] == "gatkernels: 0 of 2 layers swapped"


def test_the_report_says_what_stands_in_the_way_for_now() -> None:
    layer = pyg.GATConv(6, 4)
    handle = layer.register_message_forward_hook(lambda *_: None)
    report = gatkernels.accelerate(layer)
    why = "message passing hooks are registered"
    assert str(report).splitlines()[1].endswith(f"fused, but for now calls fall back: {why}")
    handle.remove()
    assert str(report).splitlines()[1].endswith("fused")


@pytest.mark.parametrize("contents", ["", "__version__ = '0.4'\nnn = None\n"])
def test_an_old_or_foreign_framework_does_not_stand_in_the_way(
    contents: str, tmp_path: Any
) -> None:
    (tmp_path / "dgl.py").write_text(contents)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import dgl, torch, torch_geometric.nn as pyg\n"
        "import gatkernels; model = torch.nn.Sequential(pyg.GATConv(2, 2))\n"
        "print(report := gatkernels.accelerate(model)); print(type(model[0]).__module__)\n"
        "assert len(report.unusable) == 1; gatkernels.restore(model)\n"
        "print(type(model[0]).__module__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines[0] == "gatkernels: 1 of 1 layers swapped", result.stderr
    assert lines[2].startswith("  layers of dgl were left alone: ")
    assert lines[-2:] == ["gatkernels.pyg.layers", "torch_geometric.nn.conv.gat_conv"]
