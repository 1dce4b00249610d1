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
    gatkernels.restore(model)
    assert type(model.first) is pyg.GATConv
    assert torch.equal(model(x, EDGES), expected)


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
    assert str(gatkernels.accelerate(nn.Linear(2, 2))).endswith("no graph attention layer found")


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
