"""Whatever of PyG's layer a user replaces, before or after, has its effect on ours as on PyG's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch_geometric
from pyg_parity import CLASSES, fused, pyg
from torch import Tensor, nn
from torch.nn.modules import module as modules

import gatkernels
from gatkernels.layers.dropin import fallbacks

X = torch.tensor([[1.0], [2.0], [4.0]])
EDGES = torch.tensor([[0, 1], [1, 2]])
PLAIN = [0.0, 1.0, 2.0]  # what ones for weights give

every_class = pytest.mark.parametrize("name", [*CLASSES, "TransformerConv"])
every_gat = pytest.mark.parametrize("name", CLASSES)
#: How a user comes by a fused layer.
every_way = pytest.mark.parametrize("way", ["drop-in", "accelerated"])


def ones(layer: Any) -> Any:
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return layer


def bare(name: str) -> dict[str, bool]:
    return {"bias": False, "root_weight" if name == "TransformerConv" else "add_self_loops": False}


def make(name: str, way: str = "drop-in", **options: Any) -> Any:
    options = bare(name) | options
    if way == "drop-in":
        return ones(getattr(fused, name)(1, 1, **options))
    layer = ones(getattr(pyg, name)(1, 1, **options))
    if way == "accelerated":
        gatkernels.accelerate(layer)
        assert type(layer) is getattr(fused, name)
    return layer


def lin_of(layer: Any) -> Any:
    names = ("lin", "lin_l", "lin_value")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def scaled(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return factor * function(*args, **kwargs)

    return call


@contextmanager
def attribute(owner: Any, name: str, factor: float) -> Iterator[None]:
    """``owner.name`` gives ``factor`` times as much for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, scaled(getattr(owner, name), factor))
        yield


@contextmanager
def hook(handle: Any) -> Iterator[None]:
    with handle:
        yield


def module_of(layer: Any) -> Any:
    return {"GATConv": torch_geometric.nn.conv.gat_conv,
            "GATv2Conv": torch_geometric.nn.conv.gatv2_conv,
            "TransformerConv": torch_geometric.nn.conv.transformer_conv,
            }[type(layer).__name__]  # fmt: skip


def own_class(layer: Any) -> Any:
    return getattr(pyg, type(layer).__name__)


#: Something replaced in a layer, and what three times its result makes of PLAIN.
REPLACED: dict[str, Callable[[Any], Any]] = {
    "lin.forward of the instance": lambda c: attribute(lin_of(c), "forward", 3.0),
    "forward of the class of lin": lambda c: attribute(torch_geometric.nn.Linear, "forward", 3.0),
    "message of the instance": lambda c: attribute(c, "message", 3.0),
    "message of the class": lambda c: attribute(own_class(c), "message", 3.0),
    "update of message passing": lambda c: attribute(pyg.MessagePassing, "update", 3.0),
    "propagate of the instance": lambda c: attribute(c, "propagate", 3.0),
    "propagate of the class": lambda c: attribute(type(c), "propagate", 3.0),
    "edge_update of the class": lambda c: attribute(own_class(c), "edge_update", 3.0),
    "edge_updater of the instance": lambda c: attribute(c, "edge_updater", 3.0),
    "aggregate of the instance": lambda c: attribute(c, "aggregate", 3.0),
    "forward of the aggregation": lambda c: attribute(c.aggr_module, "forward", 3.0),
    "forward of all sums": lambda c: attribute(pyg.SumAggregation, "forward", 3.0),
    "reduce of all sums": lambda c: attribute(pyg.SumAggregation, "reduce", 3.0),
    "softmax": lambda c: attribute(module_of(c), "softmax", 3.0),
    "torch's dropout": lambda c: attribute(torch.nn.functional, "dropout", 3.0),
    "forward of PyG's class": lambda c: attribute(own_class(c), "forward", 3.0),
    "a hook on lin": lambda c: hook(lin_of(c).register_forward_hook(lambda m, i, o: 3.0 * o)),
    "a pre-hook on lin": lambda c: hook(
        lin_of(c).register_forward_pre_hook(lambda m, i: (3.0 * i[0],))
    ),
    "a hook on the aggregation": lambda c: hook(
        c.aggr_module.register_forward_hook(lambda m, i, o: 3.0 * o)
    ),
    "a hook on all modules": lambda c: hook(
        modules.register_module_forward_hook(lambda m, i, o: 3.0 * o if m is lin_of(c) else None)
    ),
}


@every_class
@every_way
@pytest.mark.parametrize("what", REPLACED)
def test_what_is_replaced_acts(name: str, way: str, what: str) -> None:
    if name == "TransformerConv" and what.startswith("edge_update"):
        pytest.skip("the layer does not call it")
    mine, other = make(name, way), make(name, "PyG's")
    assert mine(X, EDGES).flatten().tolist() == PLAIN
    with REPLACED[what](other):
        expected = other(X, EDGES).flatten().tolist()
    with REPLACED[what](mine):
        found = mine(X, EDGES).flatten().tolist()
    assert found == expected != PLAIN
    assert mine(X, EDGES).flatten().tolist() == PLAIN
    assert sum(fallbacks(mine).values()) <= 1


@every_class
@every_way
def test_every_result_is_seen_by_a_hook_on_the_aggregation(name: str, way: str) -> None:
    mine, seen = make(name, way), []
    with mine.aggr_module.register_forward_hook(lambda m, i, o: seen.append(o)):
        mine(X, EDGES)
    assert [tuple(o.shape) for o in seen] == [(3, 1, 1)]


class Mix:
    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return 9.0 * alpha.unsqueeze(-1) * x_j


@every_gat
def test_a_method_of_a_mixin_acts(name: str) -> None:
    for package in (pyg, fused):
        kind = type(f"Mixed{len(package.__name__)}{name}", (Mix, getattr(package, name)), {})
        layer = ones(kind(1, 1, add_self_loops=False, bias=False))
        report = gatkernels.accelerate(layer)
        assert layer(X, EDGES).flatten().tolist() == [0.0, 9.0, 18.0], package
        if package is pyg:
            assert report.kept[0].reason == f"a subclass of {name}, with its own code"
        else:
            assert "a method of message passing is overridden" in str(report)


@every_class
def test_a_propagate_of_the_class_acts_where_compiled(name: str) -> None:
    def propagate(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return torch.full((3, 1, 1), 7.0)

    torch._dynamo.reset()
    kind = type(f"Other{name}", (getattr(fused, name),), {"propagate": propagate})
    layer = ones(kind(1, 1, **bare(name)))
    compiled = torch.compile(layer, backend="eager")
    assert compiled(X, EDGES).flatten().tolist() == [7.0] * 3


@every_class
def test_a_method_replaced_after_compiling_acts(name: str) -> None:
    torch._dynamo.reset()
    layer = make(name)
    compiled = torch.compile(layer, backend="eager")
    assert compiled(X, EDGES).flatten().tolist() == PLAIN
    with attribute(layer, "message", 3.0):
        assert compiled(X, EDGES).flatten().tolist() == [0.0, 3.0, 6.0]
    assert compiled(X, EDGES).flatten().tolist() == PLAIN


@every_class
def test_after_explain_mode_the_layer_is_fused_again(name: str) -> None:
    layer = make(name)
    layer.explain = True
    layer._edge_mask, layer._loop_mask = torch.full((2,), 50.0), torch.tensor([True, True])
    assert layer(X, EDGES).flatten().tolist() == PLAIN
    layer.explain = None
    assert "propagate" in layer.__dict__
    assert layer(X, EDGES).flatten().tolist() == PLAIN
    assert fallbacks(layer) == {"explain mode": 1}


def test_an_offloaded_projection_is_called() -> None:
    """As Hugging Face's accelerate does it: the weight is there while its forward runs."""
    layer = make("GATConv", "accelerated")
    lin, weight = layer.lin, layer.lin.weight.detach().clone()
    inner = lin.forward

    def forward(x: Tensor) -> Tensor:
        lin.weight.data = weight
        try:
            return inner(x)  # type: ignore[no-any-return]
        finally:
            lin.weight.data = torch.full_like(weight, float("nan"))

    lin.weight.data = torch.full_like(weight, float("nan"))
    lin.forward = forward
    assert layer(X, EDGES).flatten().tolist() == PLAIN


def test_a_shared_projection_that_is_no_longer_shared() -> None:
    results = []
    for way in ("drop-in", "PyG's"):
        layer = make("GATv2Conv", way, share_weights=True)
        layer.lin_r = copy.deepcopy(layer.lin_l)
        nn.init.constant_(layer.lin_r.weight, -5.0)
        for x in (X, (X, X)):
            results.append(layer(x, EDGES.repeat(1, 2)[:, 1:]))
    for got, expected in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(got, expected)


class Doubled(Tensor):
    """A weight that stands for twice what it holds, as a quantised one for a multiple of it."""

    @staticmethod
    def of(held: Tensor) -> Any:
        return Tensor._make_subclass(Doubled, held)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear:
            x, weight, *bias = args
            with torch._C.DisableTorchFunctionSubclass():
                return func(x, 2.0 * weight.as_subclass(Tensor), *bias)
        return super().__torch_function__(func, types, args, kwargs or {})


@every_class
@every_way
def test_weights_of_a_tensor_subclass_run_pygs_code(name: str, way: str) -> None:
    layer = make(name, way)
    for lin in (lin_of(layer), getattr(layer, "lin_r", None)):
        if lin is not None:
            lin.weight = nn.Parameter(Doubled.of(lin.weight.detach()))
            assert type(lin.weight) is Doubled
    with torch.no_grad():
        assert layer(X, EDGES).flatten().tolist() == [0.0, 2.0, 4.0]
    assert fallbacks(layer) == {"tensors of a subclass": 1}


@every_class
def test_inputs_of_a_tensor_subclass_run_pygs_code(name: str) -> None:
    layer = make(name)
    with torch.no_grad():
        assert layer(X.as_subclass(Doubled), EDGES).flatten().tolist() == [0.0, 2.0, 4.0]
    assert fallbacks(layer) == {"tensors of a subclass": 1}


@pytest.mark.parametrize("way", ["drop-in", "accelerated", "PyG's"])
def test_a_relation_without_edges_leaves_no_gradient_of_edges(way: str) -> None:
    layer = make("GATConv", way, edge_dim=2)
    layer(X, EDGES[:, :0], torch.empty(0, 2)).sum().backward()
    assert layer.att_edge.grad is None
    assert layer.lin_edge.weight.grad is None
    assert float(layer.att_src.grad) == 0.0
    other = make("GATv2Conv", way, edge_dim=2)
    other(X, EDGES[:, :0], torch.empty(0, 2)).sum().backward()
    assert other.lin_edge.weight.grad.tolist() == [[0.0, 0.0]]


@every_way
@pytest.mark.parametrize("att", ["att_src", "att_dst"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 2, 1), (1, 1, 1)])
def test_attention_vectors_that_are_broadcast(shape: Any, att: str, way: str) -> None:
    torch.manual_seed(1)
    other = pyg.GATConv(1, 3, 2)
    setattr(other, att, nn.Parameter(torch.randn(shape)))
    mine = copy.deepcopy(other)
    gatkernels.accelerate(mine)
    if way == "drop-in":
        mine = fused.GATConv(1, 3, 2)
        setattr(mine, att, nn.Parameter(torch.empty(shape)))
        mine.load_state_dict(other.state_dict())
    torch.testing.assert_close(mine(X, EDGES), other(X, EDGES))
    assert sum(fallbacks(mine).values()) == 1


@every_class
@every_way
def test_an_empty_sequential_as_projection(name: str, way: str) -> None:
    results = []
    for layer in (make(name, way), make(name, "PyG's")):
        for lin in ("lin", "lin_l", "lin_r", "lin_query", "lin_key", "lin_value"):
            if getattr(layer, lin, None) is not None:
                setattr(layer, lin, nn.Sequential())
        results.append(layer(3.0 * X, EDGES).flatten().tolist())
    assert results[0] == results[1] == [0.0, 3.0, 6.0]


@every_class
def test_no_heads(name: str) -> None:
    outcomes = []
    for package in (fused, pyg):
        layer = getattr(package, name)(1, 1, heads=0)
        try:
            outcomes.append(tuple(layer(X, EDGES).shape))
        except Exception as error:  # whatever PyG makes of it
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


class Named(pyg.GATConv):  # type: ignore[misc]
    """Changes only how the layer is set up."""

    def __init__(self, width: int = 1) -> None:
        super().__init__(width, 1, add_self_loops=False, bias=False)
        self.note = "mine"


def test_a_subclass_that_changes_only_how_it_is_set_up_is_accelerated() -> None:
    model = nn.Sequential(ones(Named()))
    report = gatkernels.accelerate(model)
    assert [layer.reason for layer in report.layers] == [None]
    layer = model[0]
    assert isinstance(layer, Named)
    assert isinstance(layer, fused.GATConv)
    assert type(layer).__name__ == "Named"
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        assert other.note == "mine"
        assert other(X, EDGES).flatten().tolist() == PLAIN
        assert not fallbacks(other)
    assert gatkernels.accelerate(model).layers[0].reason is None
    with attribute(Named, "message", 3.0):
        assert layer(X, EDGES).flatten().tolist() == [0.0, 3.0, 6.0]
    gatkernels.restore(model)
    assert type(layer) is Named
    assert layer(X, EDGES).flatten().tolist() == PLAIN
