"""gatkernels.pyg.HGTConv beside PyG's: three relations among two types of nodes, and more."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pyg_parity import fused, pyg
from torch import Tensor
from torch_geometric.utils import to_torch_csr_tensor

import gatkernels
from gatkernels.layers.dropin import fallbacks

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
RELATIONS = [
    ("paper", "cites", "paper"),
    ("author", "writes", "paper"),
    ("paper", "written_by", "author"),
]
METADATA = (["paper", "author"], RELATIONS)
SIZES = {"paper": 9, "author": 5, "venue": 3}


def edges_of(relations: Any, count: int = 20) -> dict[Any, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        (src, name, dst): torch.stack(
            [torch.randint(0, SIZES[end], (count,), generator=generator) for end in (src, dst)]
        )
        for src, name, dst in relations
    }


def features(width: dict[str, int], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: torch.randn(SIZES[name], size, dtype=dtype) for name, size in width.items()}


def both(
    channels: Any, out: int, metadata: Any = METADATA, heads: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Ours and PyG's from one seed, no parameter as it is set up: scales are ones there."""
    layers = []
    for package in (fused, pyg):
        torch.manual_seed(4)
        layer = package.HGTConv(channels, out, metadata, heads, **options).double()
        for parameter in layer.parameters():
            if not isinstance(parameter, torch.nn.parameter.UninitializedParameter):
                torch.nn.init.normal_(parameter, 0.3, 0.5)
        layers.append(layer)
    return layers[0], layers[1]


def outcome(layer: Any, x: dict[str, Tensor], edges: Any) -> dict[str, Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in x.items()}
    found = layer(leaves, edges)
    generator = torch.Generator().manual_seed(3)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
        for _, out in sorted(found.items())
    )
    named = {f"input {k}": t for k, t in leaves.items()} | dict(layer.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        **{f"out of {k}": t for k, t in found.items()},
        **{
            f"gradient of {k}": torch.zeros_like(t) if g is None else g
            for (k, t), g in zip(named.items(), grads, strict=True)
        },
    }


def assert_like_pyg(layers: Any, x: dict[str, Tensor], edges: Any) -> None:
    got, expected = (outcome(layer, x, edges) for layer in layers)
    assert list(got) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    assert not fallbacks(layers[0])


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("widths", [{"paper": 6, "author": 4}, {"paper": 8, "author": 8}], ids=str)
def test_results_and_gradients(widths: dict[str, int], heads: int) -> None:
    """Of other widths than the input, and of the same, where the layer adds it."""
    layers = both(widths, 8, heads=heads)
    assert_like_pyg(layers, features(widths), edges_of(RELATIONS))


def test_many_types() -> None:
    """A relation that is not given, one type that no relation leads to, one with no edges."""
    relations = [
        *RELATIONS,
        ("venue", "prints", "paper"),
        ("author", "cites", "paper"),
        ("paper", "in", "paper"),
    ]
    layers = both({"paper": 6, "author": 4, "venue": 2}, 8, (list(SIZES), relations), 2)
    edges = edges_of(relations)
    del edges["author", "writes", "paper"]
    edges["paper", "in", "paper"] = edges["paper", "in", "paper"][:, :0]
    x = features({"paper": 6, "author": 4, "venue": 2})
    assert_like_pyg(layers, x, edges)
    assert set(layers[0](x, edges)) == {"paper", "author"}


def test_one_edge_in_all() -> None:
    layers = both(6, 8, heads=2)
    edges = {kind: index[:, :0] for kind, index in edges_of(RELATIONS).items()}
    edges[RELATIONS[1]] = torch.tensor([[4], [8]])
    assert_like_pyg(layers, features({"paper": 6, "author": 6}), edges)


def test_sparse_adjacencies() -> None:
    layers = both(6, 8, heads=2)
    edges: dict[Any, Tensor] = {kind: e.unique(dim=1) for kind, e in edges_of(RELATIONS).items()}
    kind = RELATIONS[1]
    sizes = SIZES[kind[2]], SIZES[kind[0]]
    edges[kind] = to_torch_csr_tensor(edges[kind].flip(0), size=sizes)
    assert_like_pyg(layers, features({"paper": 6, "author": 6}), edges)


def test_the_graph_follows_its_edges() -> None:
    """It is remembered, and made anew where any of its relations changes or another is given."""
    layers = both(6, 8, heads=2)
    x, edges = features({"paper": 6, "author": 6}), edges_of(RELATIONS)
    assert_like_pyg(layers, x, edges)
    edges[RELATIONS[2]][1] = (edges[RELATIONS[2]][1] + 1) % SIZES["author"]
    assert_like_pyg(layers, x, edges)
    assert_like_pyg(layers, x, {**edges, RELATIONS[1]: edges[RELATIONS[1]][:, 3:]})
    fewer = {"paper": x["paper"], "author": x["author"][:4]}
    assert_like_pyg(layers, fewer, {k: e % 4 for k, e in edges.items()})


def test_parameters_are_pygs() -> None:
    ours, theirs = both({"paper": 6, "author": 4}, 8, heads=2)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    assert repr(ours) == repr(theirs)


def test_lazy_channels() -> None:
    x, edges = features({"paper": 6, "author": 4}), edges_of(RELATIONS)
    layers = both(-1, 8, heads=2)
    for layer in layers:
        torch.manual_seed(2)
        layer(x, edges)
    assert_like_pyg(layers, x, edges)


def test_accelerates_and_restores() -> None:
    _, layer = both(6, 8, heads=2)
    x, edges = features({"paper": 6, "author": 6}), edges_of(RELATIONS)
    expected = layer(x, edges)
    report = gatkernels.accelerate(layer)
    assert type(layer) is fused.HGTConv
    assert [one.reason for one in report.layers] == [None]
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for name, out in other(x, edges).items():
            torch.testing.assert_close(out, expected[name], **CLOSE)
        assert not fallbacks(other)
    gatkernels.restore(layer)
    assert type(layer) is pyg.HGTConv


def test_compiles_into_one_graph() -> None:
    torch._dynamo.reset()
    layer, _ = both(6, 8, heads=2)
    x, edges = features({"paper": 6, "author": 6}), edges_of(RELATIONS)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for name, out in layer(x, edges).items():
        torch.testing.assert_close(compiled(x, edges)[name], out)


@pytest.mark.parametrize("lin", ["k_rel", "v_rel", "kqv_lin", "out_lin"])
def test_hooks_act(lin: str) -> None:
    layers = both(6, 8, heads=2)
    x, edges = features({"paper": 6, "author": 6}), edges_of(RELATIONS)
    for layer in layers:
        kqv = lin.endswith("_lin")
        getattr(layer, lin).register_forward_hook(
            lambda _, inputs, out, d=kqv: {k: 2 * t for k, t in out.items()} if d else 2 * out
        )
    got, expected = (layer(x, edges) for layer in layers)
    for name, out in expected.items():
        torch.testing.assert_close(got[name], out, **CLOSE)
    assert sum(fallbacks(layers[0]).values()) == (lin in ("k_rel", "v_rel"))


def test_what_runs_pygs_code() -> None:
    x, edges = features({"paper": 6, "author": 6}), edges_of(RELATIONS)
    layers = both(6, 8, heads=2)
    other_order = {kind: edges[kind] for kind in reversed(RELATIONS)}
    for name, out in layers[1](x, other_order).items():
        assert torch.equal(layers[0](x, other_order)[name], out)
    assert set(fallbacks(layers[0])) == {"relations in another order than the layer's"}
    layers = both(6, 8, heads=2)
    for layer in layers:
        layer.register_message_forward_hook(lambda *_: None)
    for name, out in layers[1](x, edges).items():
        assert torch.equal(layers[0](x, edges)[name], out)
    assert set(fallbacks(layers[0])) == {"message passing hooks are registered"}


def test_a_method_of_the_users_own_acts() -> None:
    class Mine(pyg.HGTConv):  # type: ignore[misc, name-defined]
        def _construct_src_node_feat(self, *args: Any) -> Any:
            return super()._construct_src_node_feat(*args)

    report = gatkernels.accelerate(Mine(6, 8, METADATA))
    assert report.kept[0].reason == "a subclass of HGTConv, with its own code"


def test_wrong_inputs_raise_pygs_error() -> None:
    layers = both(6, 8, heads=2)
    x, edges = features({"paper": 6, "author": 6}), edges_of(RELATIONS)
    unknown = {("paper", "about", "author"): edges[RELATIONS[2]]}
    for bad_x, bad_edges in (
        ({"paper": x["paper"]}, edges),
        (x, {}),
        (x, unknown),
        ({name: t.float() for name, t in x.items()}, edges),
        ({name: t[:, :5] for name, t in x.items()}, edges),
    ):
        with pytest.raises(Exception) as expected:  # noqa: PT011
            layers[1](bad_x, bad_edges)
        with pytest.raises(type(expected.value)) as got:
            layers[0](bad_x, bad_edges)
        assert str(got.value) == str(expected.value)
