"""gatkernels.pyg.TransformerConv beside PyG's: results, gradients, adjacencies, what falls back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pyg_parity import NODES, assert_falls_back, assert_raises_as_pyg, fused, pyg, some_edges
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

import gatkernels
from gatkernels.layers.dropin import fallbacks

CLOSE: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 2e-4, "atol": 2e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
}


def both(*args: Any, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
    """Ours and PyG's from one seed."""
    layers = []
    for package in (fused, pyg):
        torch.manual_seed(11)
        layers.append(package.TransformerConv(*args, **kwargs).to(dtype))
    return layers


def outcome(layer: Any, x: Any, edges: Any, attr: Tensor | None) -> dict[str, Any]:
    """Results, and gradients of a loss of both."""
    pair = x if isinstance(x, tuple) else (x, None)
    leaves = [None if t is None else t.detach().requires_grad_() for t in (*pair, attr)]
    given = tuple(leaves[:2]) if isinstance(x, tuple) else leaves[0]
    out, (index, alpha) = layer(given, edges, leaves[2], return_attention_weights=True)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (out, alpha)]
    loss = (out * weights[0]).sum() + (alpha * weights[1]).sum()
    named = {f"input {k}": t for k, t in enumerate(leaves) if t is not None}
    named |= dict(layer.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    grads = {
        f"gradient of {k}": torch.zeros_like(t) if g is None else g
        for (k, t), g in zip(named.items(), found, strict=True)
    }
    return {"out": out, "alpha": alpha, "edges": index, **grads}


def assert_like_pyg(layers: Any, x: Any, edges: Any, attr: Tensor | None = None) -> None:
    ours, theirs = layers
    got, expected = outcome(ours, x, edges, attr), outcome(theirs, x, edges, attr)
    assert got.pop("edges") is expected.pop("edges") is edges
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name], value, **CLOSE[value.dtype], msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(ours(x, edges, attr), expected["out"], **CLOSE[got["out"].dtype])
    assert not fallbacks(ours)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"heads": 3},
    {"heads": 3, "concat": False},
    {"heads": 2, "beta": True},
    {"heads": 2, "beta": True, "concat": False},
    {"heads": 2, "root_weight": False},
    {"heads": 2, "root_weight": False, "beta": True, "bias": False},
    {"heads": 2, "bias": False, "beta": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("edge_dim", [None, 3, 40])
@pytest.mark.parametrize("sizes", [None, (NODES, 12)], ids=["", "bipartite"])
@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
def test_results_and_gradients(
    dtype: torch.dtype, sizes: Any, edge_dim: int | None, options: dict[str, Any]
) -> None:
    """Edge features that are folded into nodes, and such that are wider than the layer."""
    channels = 6 if sizes is None else (6, 4)
    layers = both(channels, 5, edge_dim=edge_dim, dtype=dtype, **options)
    x: Any = torch.randn(NODES, 6, dtype=dtype)
    if sizes is not None:
        x = x, torch.randn(sizes[1], 4, dtype=dtype)
    attr = None if edge_dim is None else torch.randn(80, edge_dim, dtype=dtype)
    assert_like_pyg(layers, x, some_edges(*(sizes or (NODES, NODES))), attr)


def test_one_input_on_both_sides() -> None:
    layers = both((6, 6), 5, 2)
    x = torch.randn(NODES, 6, dtype=torch.float64)
    assert_like_pyg(layers, (x, x.clone()), some_edges())
    torch.testing.assert_close(layers[0]((x, x), some_edges()), layers[1](x, some_edges()))


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_no_edges(edge_dim: int | None) -> None:
    attr = None if edge_dim is None else torch.randn(0, 3, dtype=torch.float64)
    layers = both(6, 5, 2, edge_dim=edge_dim)
    x = torch.randn(NODES, 6, dtype=torch.float64)
    assert_like_pyg(layers, x, torch.empty(2, 0, dtype=torch.long), attr)
    assert_like_pyg(layers, x[:0], torch.empty(2, 0, dtype=torch.long), attr)


@pytest.mark.parametrize("answer", [None, False, True])
def test_attention_wherever_the_argument_is_given(answer: bool | None) -> None:
    ours, theirs = both(6, 5, 2, dropout=0.4)
    x = torch.randn(NODES, 6, dtype=torch.float64)
    found = [layer.eval()(x, some_edges(), None, answer) for layer in (ours, theirs)]
    assert type(found[0]) is type(found[1])
    if answer is not None:
        torch.testing.assert_close(found[0][1][1], found[1][1][1])


def test_attention_is_that_before_dropout() -> None:
    ours, theirs = both(6, 5, 2, edge_dim=3, dropout=0.5, root_weight=False)
    x, attr = torch.randn(NODES, 6).double(), torch.randn(80, 3).double()
    torch.manual_seed(5)
    out, (_, alpha) = ours(x, some_edges(), attr, return_attention_weights=True)
    _, (_, expected) = theirs.eval()(x, some_edges(), attr, return_attention_weights=True)
    torch.testing.assert_close(alpha, expected)
    torch.manual_seed(5)
    torch.testing.assert_close(ours(x, some_edges(), attr), out)
    assert not torch.allclose(ours.eval()(x, some_edges(), attr), out)
    with torch.no_grad():
        rows = torch.stack([ours.train()(x, some_edges(), attr) for _ in range(400)]).mean(0)
        assert float((rows - ours.eval()(x, some_edges(), attr)).abs().mean()) < 0.1


@pytest.mark.parametrize("layout", ["coo", "csr", "EdgeIndex", "int32"])
def test_adjacencies(layout: str) -> None:
    layers = both(6, 5, 2)
    x = torch.randn(NODES, 6, dtype=torch.float64)
    edges = some_edges().unique(dim=1).contiguous()
    adj: Any = {
        "coo": lambda: to_torch_coo_tensor(edges, size=NODES).t().coalesce(),
        "csr": lambda: to_torch_csr_tensor(edges.flip(0), size=NODES),
        "EdgeIndex": lambda: EdgeIndex(edges, sparse_size=(NODES, NODES)),
        "int32": lambda: edges.int(),
    }[layout]()
    if layout == "int32":  # torch differentiates a selection by int32 ids wrongly
        torch.testing.assert_close(layers[0](x, adj), layers[1](x, edges))
        assert not fallbacks(layers[0])
    else:
        assert_like_pyg(layers, x, adj)


def test_the_other_flow() -> None:
    layers = both(6, 5, 2, edge_dim=3, flow="target_to_source")
    x, attr = torch.randn(NODES, 6).double(), torch.randn(80, 3).double()
    assert_like_pyg(layers, x, some_edges(), attr)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("in_channels", [6, (6, 4)], ids=str)
def test_parameters_are_pygs(in_channels: Any, options: dict[str, Any]) -> None:
    ours, theirs = both(in_channels, 5, edge_dim=2, **options)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(state)
    theirs.load_state_dict(ours.state_dict())


def test_lazy_channels() -> None:
    layers = both(-1, 5, 2, edge_dim=-1, beta=True)
    x, attr = torch.randn(NODES, 6).double(), torch.randn(80, 3).double()
    after = []
    for layer in layers:
        torch.manual_seed(2)
        layer(x, some_edges(), attr)
        after.append(torch.rand(1))
    assert torch.equal(*after)
    assert_like_pyg(layers, x, some_edges(), attr)


def test_copies_and_pickles() -> None:
    ours, _ = both(6, 5, 2, edge_dim=3)
    x, attr = torch.randn(NODES, 6).double(), torch.randn(80, 3).double()
    expected = ours(x, some_edges(), attr)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        assert torch.equal(other(x, some_edges(), attr), expected)


def test_accelerates_and_restores() -> None:
    _, layer = both(6, 5, 2, edge_dim=3, beta=True)
    x, attr = torch.randn(NODES, 6).double(), torch.randn(80, 3).double()
    expected, state = layer(x, some_edges(), attr), layer.state_dict()
    report = gatkernels.accelerate(layer)
    assert type(layer) is fused.TransformerConv
    assert [one.reason for one in report.layers] == [None]
    assert list(layer.state_dict()) == list(state)
    torch.testing.assert_close(layer(x, some_edges(), attr), expected, rtol=1e-10, atol=1e-10)
    assert not fallbacks(layer)
    gatkernels.restore(layer)
    assert type(layer) is pyg.TransformerConv
    assert torch.equal(layer(x, some_edges(), attr), expected)


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_autocast_has_pygs_dtypes(edge_dim: int | None) -> None:
    layers = both(6, 5, 2, edge_dim=edge_dim, beta=True, dtype=torch.float32)
    x, attr = torch.randn(NODES, 6), None if edge_dim is None else torch.randn(80, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [layer(x, some_edges(), attr, return_attention_weights=True) for layer in layers]
    (got, (_, alpha)), (expected, (_, their_alpha)) = found
    assert (got.dtype, alpha.dtype) == (expected.dtype, their_alpha.dtype)
    torch.testing.assert_close(got, expected, atol=5e-2, rtol=5e-2)
    torch.testing.assert_close(alpha, their_alpha, atol=5e-2, rtol=5e-2)
    assert not fallbacks(layers[0])


def test_differentiates_twice() -> None:
    layer, _ = both(3, 2, 2, edge_dim=2, beta=True)
    edges = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 2]])
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    attr = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, attr: Tensor) -> Any:
        return layer(x, edges, attr)

    assert torch.autograd.gradcheck(call, (x, attr))
    assert torch.autograd.gradgradcheck(call, (x, attr))


@pytest.mark.parametrize("edge_dim", [None, 3])
def test_compiles_into_one_graph(edge_dim: int | None) -> None:
    torch._dynamo.reset()
    layer, _ = both(6, 4, 2, edge_dim=edge_dim, beta=True, dtype=torch.float32)
    x, attr = torch.randn(NODES, 6), None if edge_dim is None else torch.randn(80, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    found = []
    for call in (compiled, layer):
        out = call(x, some_edges(), attr)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_exports() -> None:
    ours, _ = both(6, 5, 2, dtype=torch.float32)
    x, edges = torch.randn(NODES, 6), some_edges()
    program = torch.export.export(ours.eval(), (x, edges))
    torch.testing.assert_close(program.module()(x, edges), ours(x, edges))
    assert not fallbacks(ours)


@pytest.mark.parametrize("lin", ["lin_query", "lin_key", "lin_value", "lin_skip", "lin_beta"])
def test_hooks_and_replacements_of_projections_act(lin: str) -> None:
    layers = both(6, 5, 2, beta=True, edge_dim=3)
    x, attr = torch.randn(NODES, 6).double(), torch.randn(80, 3).double()
    for layer in layers:
        nn.utils.parametrizations.weight_norm(getattr(layer, lin))
        getattr(layer, lin).register_forward_hook(lambda _, inputs, out: 3 * out)
    assert_like_pyg(layers, x, some_edges(), attr)


def test_what_runs_pygs_code() -> None:
    x, attr = torch.randn(NODES, 6).double(), torch.randn(80, 3).double()
    assert_falls_back(both(6, 5, 2, aggr="mean"), "aggr='mean'", x, some_edges())
    layers = both(6, 5, 2, edge_dim=3)
    for layer in layers:
        layer.lin_edge.register_forward_hook(lambda _, inputs, out: 3 * out)
    why = "lin_edge is replaced or has hooks"
    assert_falls_back(layers, why, x, some_edges(), attr)
    layers = both(6, 5, 2)
    for layer in layers:
        layer.register_message_forward_hook(lambda *_: None)
    assert_falls_back(layers, "message passing hooks are registered", x, some_edges())


def test_a_message_of_the_users_own_acts() -> None:
    class Mine(fused.TransformerConv):  # type: ignore[misc, name-defined]
        def message(self, value_j: Tensor) -> Tensor:
            return value_j

    torch.manual_seed(1)
    layer = Mine(6, 5, root_weight=False)
    x, (src, dst) = torch.randn(NODES, 6), some_edges()
    expected = torch.zeros(NODES, 5).index_add(0, dst, layer.lin_value(x)[src])
    torch.testing.assert_close(layer(x, some_edges()).view(NODES, 5), expected)
    assert fallbacks(layer) == {"a method of message passing is overridden": 1}


def test_wrong_inputs_raise_pygs_error() -> None:
    layers = both(6, 5, edge_dim=3, dtype=torch.float32)
    x, edges, attr = torch.randn(NODES, 6), some_edges(), torch.randn(80, 3)
    assert_raises_as_pyg(layers, torch.randn(NODES, 7), edges, attr)
    assert_raises_as_pyg(layers, x.double(), edges, attr)
    assert_raises_as_pyg(layers, x, edges.float(), attr)
    assert_raises_as_pyg(layers, x, edges)
    assert_raises_as_pyg(layers, x, edges, attr[:70])
    assert_raises_as_pyg(layers, x, edges, attr.double())
    assert_raises_as_pyg(layers, (x, None), edges, attr)
    assert_raises_as_pyg(both(6, 5, dtype=torch.float32), x, edges, attr)
