"""gatkernels.pyg beside PyG: results, gradients, parameters, training, and the model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pyg_parity import (
    CLASSES,
    CLOSE,
    NODES,
    Network,
    assert_like_pyg,
    both,
    every_class,
    every_dtype,
    fused,
    pyg,
    some_edges,
)
from torch import Tensor

from gatkernels.layers.dropin import fallbacks

OPTIONS: list[dict[str, Any]] = [
    {},
    {"heads": 3, "add_self_loops": False},
    {"heads": 3, "concat": False, "residual": True},
    {"heads": 2, "bias": False, "residual": True},
]


@every_class
@every_dtype
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results_and_gradients(name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    layers = both(name, 6, 5, dtype=dtype, **options)
    assert_like_pyg(layers, torch.randn(NODES, 6, dtype=dtype), some_edges())


@every_dtype
def test_shared_weights(dtype: torch.dtype) -> None:
    layers = both("GATv2Conv", 6, 5, 2, share_weights=True, dtype=dtype)
    assert_like_pyg(layers, torch.randn(NODES, 6, dtype=dtype), some_edges())
    x = torch.randn(NODES, 6, dtype=dtype), torch.randn(12, 6, dtype=dtype)
    assert_like_pyg(layers, x, some_edges(NODES, 12))


@every_class
@every_dtype
def test_softmax_shifts_each_destination_by_its_own_maximum(name: str, dtype: torch.dtype) -> None:
    layers = both(name, 6, 5, 2, bias=False, dtype=dtype)
    x = torch.randn(NODES, 6, dtype=dtype)
    x[::2] *= 300.0
    x[1::4] -= 1000.0
    got, expected = (layer(x, some_edges()) for layer in layers)
    scale = float(expected.abs().max())
    assert bool(expected.isfinite().all())
    torch.testing.assert_close(got / scale, expected / scale, **CLOSE[dtype])


@every_class
@every_dtype
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, -0.3])
def test_any_slope(name: str, dtype: torch.dtype, slope: float) -> None:
    layers = both(name, 6, 5, 2, negative_slope=slope, dtype=dtype)
    assert_like_pyg(layers, torch.randn(NODES, 6, dtype=dtype), some_edges())


@every_dtype
@pytest.mark.parametrize("name", CLASSES)
def test_slope_at_zero_is_the_negative_one(name: str, dtype: torch.dtype) -> None:
    """Nodes without features have scores of exactly 0."""
    layers = both(name, 6, 5, 2, bias=False, dtype=dtype)
    x = torch.randn(NODES, 6, dtype=dtype)
    x[:15] = 0.0
    assert_like_pyg(layers, x, some_edges())


@every_class
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_attention_is_that_after_dropout(name: str, p: float) -> None:
    ours, _ = both(name, 6, 5, 2, dropout=p, bias=False)
    x = torch.randn(NODES, 6)
    out, (edges, alpha) = ours(x, some_edges(), return_attention_weights=True)
    dropped = float((alpha == 0).double().mean())
    assert dropped == 1.0 if p == 1.0 else 0.3 < dropped < 0.7
    lin = ours.lin if name == "GATConv" else ours.lin_l
    messages = lin(x).view(-1, 2, 5)[edges[0]] * alpha[..., None]
    expected = torch.zeros(NODES, 2, 5).index_add(0, edges[1], messages).flatten(1)
    torch.testing.assert_close(out, expected)
    ours.eval()
    _, (_, alpha) = ours(x, some_edges(), return_attention_weights=True)
    assert bool((alpha > 0).all())


@every_class
def test_attention_only_where_asked_for(name: str) -> None:
    ours, _ = both(name, 6, 5)
    x = torch.randn(NODES, 6)
    for answer in (None, False):
        assert isinstance(ours(x, some_edges(), return_attention_weights=answer), Tensor)


@every_class
@pytest.mark.parametrize("edge_dim", [None, 3])
def test_autocast_gives_float32(name: str, edge_dim: int | None) -> None:
    ours, theirs = both(name, 6, 5, 2, edge_dim=edge_dim)
    x, attr = torch.randn(NODES, 6), None if edge_dim is None else torch.randn(80, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [
            layer(x, some_edges(), attr, return_attention_weights=True) for layer in (ours, theirs)
        ]
    (got, (_, alpha)), (expected, (_, their_alpha)) = results
    assert got.dtype == expected.dtype == torch.float32
    assert alpha.dtype == their_alpha.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=3e-2, rtol=3e-2)
    torch.testing.assert_close(alpha, their_alpha, atol=3e-2, rtol=3e-2)
    assert not fallbacks(ours)
    half = ours.bfloat16()(x.bfloat16(), some_edges(), None if attr is None else attr.bfloat16())
    assert half.dtype == torch.bfloat16
    assert not fallbacks(ours)


@every_class
def test_differentiates_twice(name: str) -> None:
    layer, _ = both(name, 3, 2, 2, edge_dim=2, dtype=torch.float64)
    edges = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 2]])
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    attr = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, attr: Tensor) -> Any:
        return layer(x, edges, attr)

    assert torch.autograd.gradcheck(call, (x, attr))
    assert torch.autograd.gradgradcheck(call, (x, attr))


@every_class
@pytest.mark.parametrize(
    "options",
    [{}, {"heads": 2, "residual": True, "edge_dim": 3}, {"concat": False, "bias": False}],
    ids=str,
)
@pytest.mark.parametrize("in_channels", [6, (6, 4)], ids=str)
def test_parameters_are_pygs(name: str, in_channels: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    theirs = getattr(pyg, name)(in_channels, 5, **options)
    after = torch.rand(1)
    torch.manual_seed(1)
    ours = getattr(fused, name)(in_channels, 5, **options)
    assert torch.equal(torch.rand(1), after)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    assert isinstance(ours, getattr(pyg, name))
    assert repr(ours) == repr(theirs)


@every_class
@pytest.mark.parametrize("in_channels", [-1, (-1, -1)], ids=str)
def test_lazy_channels(name: str, in_channels: Any) -> None:
    layers = []
    for package in (fused, pyg):
        torch.manual_seed(1)
        layer = getattr(package, name)(in_channels, 5, 2, edge_dim=-1, residual=True)
        assert repr(layer) == f"{name}({in_channels}, 5, heads=2)"
        layers.append(layer)
    x, attr = torch.randn(NODES, 6), torch.randn(80, 3)
    torch.manual_seed(2)
    after = []
    for layer in layers:
        torch.manual_seed(2)
        layer(x, some_edges(), attr)
        after.append(torch.rand(1))
    assert torch.equal(*after)
    for key, value in layers[1].state_dict().items():
        assert torch.equal(layers[0].state_dict()[key], value), key
    assert_like_pyg(layers, x, some_edges(), attr)


@every_class
def test_copies_and_pickles(name: str) -> None:
    ours, _ = both(name, 6, 5, 2, edge_dim=3)
    x, attr = torch.randn(NODES, 6), torch.randn(80, 3)
    expected = ours(x, some_edges(), attr)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        assert torch.equal(other(x, some_edges(), attr), expected)


@every_class
def test_deterministic_algorithms(name: str) -> None:
    ours, _ = both(name, 6, 5, 2, edge_dim=3)
    x, attr = torch.randn(NODES, 6, requires_grad=True), torch.randn(80, 3)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            torch.autograd.grad(
                ours(x, some_edges(), attr).square().sum(), [x, ours.lin_edge.weight]
            )
            for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_class
def test_training_has_pygs_loss_curve(name: str) -> None:
    """50 steps from one seed; of SGD, for Adam makes a full step of a gradient that is rounding."""
    x, labels = torch.randn(NODES, 6), torch.arange(NODES) % 3
    curves = []
    for package in (fused, pyg):
        torch.manual_seed(7)
        model = Network(package, name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for _ in range(50):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x, some_edges()), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        curves.append(torch.stack(losses))
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-5, atol=0.0)
    assert float(curves[0][-1]) < 0.7 * float(curves[0][0])


MODELS: list[dict[str, Any]] = [
    {"out_channels": 3, "heads": 2},
    {"out_channels": 3, "heads": 2, "jk": "cat", "norm": "batch_norm", "act": "elu"},
    {"jk": "lstm", "out_channels": 3, "add_self_loops": False},
    {"heads": 4, "norm": "graph_norm", "residual": True},
    {"out_channels": 3, "jk": "max", "act_first": True, "concat": False, "heads": 3},
    {"out_channels": 3, "edge_dim": 2, "heads": 2},
]


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("options", MODELS, ids=str)
def test_model_is_pygs(v2: bool, options: dict[str, Any]) -> None:
    models = []
    for package in (fused, pyg.models):
        torch.manual_seed(3)
        models.append(package.GAT(6, 12, 3, v2=v2, **options))
    ours, theirs = models
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    name = "GATv2Conv" if v2 else "GATConv"
    assert all(type(conv) is getattr(fused, name) for conv in ours.convs)
    x = torch.randn(NODES, 6)
    attr = {"edge_attr": torch.randn(80, 2)} if "edge_dim" in options else {}
    grads = []
    for model in models:
        out = model(x, some_edges(), **attr)
        grads.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    assert not any(fallbacks(conv) for conv in ours.convs)


@pytest.mark.parametrize("v2", [False, True])
def test_model_trims_sampled_layers(v2: bool) -> None:
    """Nodes and edges hop by hop, as a neighbour loader hands them out."""
    edges = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 0, 1, 1, 2, 3, 3, 4, 5]])
    attr = torch.randn(9, 2)
    hops = {"num_sampled_nodes_per_hop": [1, 2, 3, 4], "num_sampled_edges_per_hop": [2, 3, 4]}
    results = []
    for package in (fused, pyg.models):
        torch.manual_seed(3)
        model = package.GAT(6, 8, 3, out_channels=3, heads=2, v2=v2, edge_dim=2)
        torch.manual_seed(4)
        results.append(model(torch.randn(10, 6), edges, edge_attr=attr, **hops)[:1])
    torch.testing.assert_close(results[0], results[1])


def test_model_refuses_what_pygs_refuses() -> None:
    with pytest.raises(ValueError, match="divisible by the number of heads"):
        fused.GAT(6, 13, 2, heads=4)
