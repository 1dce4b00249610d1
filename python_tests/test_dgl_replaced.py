"""Whatever of DGL's layer a user replaces has its effect on ours as on DGL's."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from dgl_parity import LAYERS, dgl, ours, theirs
from torch import Tensor, nn
from torch.nn.modules import module as modules

import gatkernels
from gatkernels.layers.dropin import fallbacks

X = torch.tensor([[1.0], [2.0], [4.0]])
every_layer = pytest.mark.parametrize("name", LAYERS)
every_way = pytest.mark.parametrize("way", ["drop-in", "accelerated"])


def path() -> Any:
    return dgl.graph(([0, 1], [1, 2]), num_nodes=3)


def make(name: str, way: str) -> Any:
    edge = (1,) if name == "EdgeGATConv" else ()
    kind = getattr(ours if way == "drop-in" else theirs, name)
    layer = kind(1, *edge, 1, 1, allow_zero_in_degree=True, bias=False, residual=False)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    if way == "accelerated":
        gatkernels.accelerate(layer)
        assert type(layer) is getattr(ours, name)
    return layer


def run(layer: Any) -> list[float]:
    edge = (torch.ones(2, 1),) if "Edge" in type(layer).__name__ else ()
    return layer(path(), X, *edge).flatten().tolist()  # type: ignore[no-any-return]


@contextmanager
def attribute(owner: Any, name: str, factor: float) -> Iterator[None]:
    """``owner.name`` gives ``factor`` times as much for a while."""
    old = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return factor * old(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield


@contextmanager
def hook(handle: Any) -> Iterator[None]:
    with handle:
        yield


def lin_of(layer: Any) -> Any:
    return layer.fc if hasattr(layer, "fc") else layer.fc_src


def own_class(layer: Any) -> Any:
    return getattr(theirs, type(layer).__name__)


REPLACED: dict[str, Callable[[Any], Any]] = {
    "forward of the instance of fc": lambda c: attribute(lin_of(c), "forward", 3.0),
    "forward of torch's Linear": lambda c: attribute(nn.Linear, "forward", 3.0),
    "forward of attn_drop": lambda c: attribute(c.attn_drop, "forward", 3.0),
    "forward of torch's Dropout": lambda c: attribute(nn.Dropout, "forward", 3.0),
    "a hook on attn_drop": lambda c: hook(
        c.attn_drop.register_forward_hook(lambda m, i, o: 3.0 * o)
    ),
    "a hook on fc": lambda c: hook(lin_of(c).register_forward_hook(lambda m, i, o: 3.0 * o)),
    "a hook on all modules": lambda c: hook(
        modules.register_module_forward_hook(lambda m, i, o: 3.0 * o if m is lin_of(c) else None)
    ),
    "edge_softmax": lambda c: attribute(sys.modules[own_class(c).__module__], "edge_softmax", 3.0),
    "forward of DGL's class": lambda c: attribute(own_class(c), "forward", 3.0),
}


@every_layer
@every_way
@pytest.mark.parametrize("what", REPLACED)
def test_what_is_replaced_acts(name: str, way: str, what: str) -> None:
    mine, other = make(name, way), make(name, "DGL's")
    plain = run(mine)
    assert plain == run(other)
    with REPLACED[what](other):
        expected = run(other)
    with REPLACED[what](mine):
        found = run(mine)
    assert found == expected != plain
    assert run(mine) == plain


@every_way
def test_a_slope_of_another_leaky_relu_acts(way: str) -> None:
    results = []
    for layer in (make("GATConv", way), make("GATConv", "DGL's")):
        layer.leaky_relu.forward = lambda x: torch.full_like(x, 2.0)
        seen: list[int] = []
        layer.leaky_relu.register_forward_hook(lambda *_, s=seen: s.append(1))
        results.append((run(layer), seen))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_a_graph_with_message_passing_of_its_own_runs_dgls_code(name: str) -> None:
    class Loud(dgl.DGLGraph):  # type: ignore[misc]
        def update_all(self, *args: Any, **kwargs: Any) -> None:
            super().update_all(*args, **kwargs)
            self.dstdata["ft"] = 3.0 * self.dstdata["ft"]

    layer, graph = make(name, "drop-in"), path()
    graph.__class__ = Loud
    found = layer(graph, X).flatten().tolist()
    assert found == [0.0, 3.0, 6.0]
    assert fallbacks(layer) == {"a graph with message passing of its own": 1}


class Subclass(Tensor):
    pass


@every_layer
def test_attention_vectors_of_a_tensor_subclass_run_dgls_code(name: str) -> None:
    layer = make(name, "drop-in")
    plain = run(layer)
    att = "attn" if name == "GATv2Conv" else "attn_l"
    held = getattr(layer, att).detach()
    setattr(layer, att, nn.Parameter(Tensor._make_subclass(Subclass, held)))
    assert run(layer) == plain
    assert fallbacks(layer) == {"tensors of a subclass": 1}


class Named(theirs.GATConv):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(1, 1, 1, allow_zero_in_degree=True, bias=False)


class Own(theirs.GATConv):  # type: ignore[misc]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 3.0 * super().forward(*args, **kwargs)


def test_subclasses() -> None:
    layer = Named()
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    assert gatkernels.accelerate(layer).layers[0].reason is None
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(other, Named)
        assert isinstance(other, ours.GATConv)
        assert run(other) == [0.0, 1.0, 2.0]
        assert not fallbacks(other)
    gatkernels.restore(layer)
    assert type(layer) is Named
    kept = gatkernels.accelerate(Own(1, 1, 1)).kept
    assert kept[0].reason == "a subclass of GATConv, with its own code"
