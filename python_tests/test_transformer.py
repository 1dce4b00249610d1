"""gatkernels.nn.TransformerConv beside PyG's, on graphs, sparse features, and its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_pyg_transformer import OPTIONS, fused, outcome, pyg, some_edges
from torch import Tensor

from gatkernels import Graph
from gatkernels.layers import transformer
from gatkernels.models import GraphTransformer
from gatkernels.nn import TransformerConv
from gatkernels.ops.sparse import SparseRows

NODES = 20


def both(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    layers = []
    for kind in (TransformerConv, pyg.TransformerConv):
        torch.manual_seed(11)
        layers.append(kind(*args, **kwargs).double())
    return layers[0], layers[1]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("edge_dim", [None, 3, 40])
@pytest.mark.parametrize("sizes", [None, (NODES, 12)], ids=["", "bipartite"])
def test_results_of_pyg(sizes: Any, edge_dim: int | None, options: dict[str, Any]) -> None:
    ours, theirs = both(6 if sizes is None else (6, 4), 5, edge_dim=edge_dim, **options)
    x: Any = torch.randn(NODES, 6).double()
    if sizes is not None:
        x = x, torch.randn(sizes[1], 4).double()
    attr = None if edge_dim is None else torch.randn(80, edge_dim).double()
    edges = some_edges(*(sizes or (NODES, NODES)))
    got, expected = (outcome(layer, x, edges, attr) for layer in (ours, theirs))
    assert torch.equal(got.pop("edges"), expected.pop("edges"))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("in_channels", [6, (6, 4)], ids=str)
def test_initialised_as_pyg(in_channels: Any, options: dict[str, Any]) -> None:
    states, after = [], []
    for kind in (TransformerConv, pyg.TransformerConv):
        torch.manual_seed(11)
        layer = kind(in_channels, 5, edge_dim=2, **options)
        after.append(torch.rand(1))
        torch.manual_seed(12)
        layer.reset_parameters()
        states.append(layer.state_dict())
    assert torch.equal(*after)
    assert list(states[0]) == list(states[1])
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value)
    TransformerConv(in_channels, 5, edge_dim=2, **options).load_state_dict(states[1])


def test_a_graph_is_used_as_it_is() -> None:
    layer = TransformerConv(6, 5, 2)
    x, edges = torch.randn(NODES, 6), some_edges()
    looped = Graph.from_edge_index(edges, NODES, self_loops=True)
    out, (index, alpha) = layer(x, looped, return_attention_weights=True)
    assert torch.equal(index, looped.edge_index)
    assert alpha.shape == (index.shape[1], 2)
    torch.testing.assert_close(layer(x, index), out)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("bias", [False, True])
def test_sparse_features(bias: bool) -> None:
    layer = TransformerConv(6, 5, 2, bias=bias)
    x = torch.randn(NODES, 6) * (torch.rand(NODES, 6) < 0.4)
    expected = layer(x, some_edges())
    sparse = x.to_sparse_csr()
    for given in (sparse, SparseRows.of(sparse)):
        torch.testing.assert_close(layer(given, some_edges()), expected)


def test_what_has_one_input_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    products = []
    linears = transformer.linears

    def counted(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> list[Tensor]:
        products.append(len(weights))
        return linears(x, weights, biases)

    monkeypatch.setattr(transformer, "linears", counted)
    x = torch.randn(NODES, 6)
    TransformerConv(6, 5, 2)(x, some_edges())
    assert products == [4]
    TransformerConv(6, 5, 2)((x, x.clone()), some_edges())
    assert products[1:] == [2, 2]


@pytest.mark.parametrize("edge_dim", [3, 40])
def test_nothing_as_large_as_edges_times_channels_is_made(edge_dim: int) -> None:
    """Of edge features that are wider than the layer their projection, once for all heads."""
    layer, edges = TransformerConv(6, 16, 2, edge_dim=edge_dim), some_edges(count=2000)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    attr = torch.randn(2000, edge_dim)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(NODES, 6), edges, attr)
    large = [t for t in kept.values() if t.is_floating_point() and t.shape[0] == 2000]
    widths = sorted(t.numel() // 2000 for t in large)
    assert widths == ([edge_dim] if edge_dim < 32 else [32, edge_dim])


@pytest.mark.parametrize("edge_dim", [3, 40])
def test_a_hook_on_the_projection_of_edges_acts(edge_dim: int) -> None:
    layer, x = TransformerConv(6, 5, 2, edge_dim=edge_dim), torch.randn(NODES, 6)
    attr = torch.randn(80, edge_dim)
    expected = layer(x, some_edges(), 2 * attr)
    with layer.lin_edge.register_forward_hook(lambda _, inputs, out: 2 * out):
        torch.testing.assert_close(layer(x, some_edges(), attr), expected)
    assert not torch.allclose(layer(x, some_edges(), attr), expected)


def test_edge_features_belong_to_edge_dim() -> None:
    x, edges = torch.randn(NODES, 6), some_edges()
    message = "TransformerConv: give 'edge_attr' where there is 'edge_dim', only"
    with pytest.raises(ValueError, match=message):
        TransformerConv(6, 5, edge_dim=3)(x, edges)
    with pytest.raises(ValueError, match=message):
        TransformerConv(6, 5)(x, edges, torch.randn(80, 3))


def test_one_model_on_two_backends() -> None:
    layer, x = TransformerConv(6, 5, 2, beta=True, edge_dim=3), torch.randn(NODES, 6)
    attr, found = torch.randn(80, 3), []
    for backend in ("auto", "reference"):
        layer.backend = backend
        out = layer(x, some_edges(), attr)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [TransformerConv, fused.TransformerConv], ids=["nn", "pyg"])
@pytest.mark.parametrize("edge_dim", [None, 3, 40])
def test_one_program_for_any_graph_in_training(kind: Any, edge_dim: int | None) -> None:
    torch._dynamo.reset()
    layer = kind(6, 4, 2, beta=True, dropout=0.3, edge_dim=edge_dim)
    compiled = torch.compile(layer, backend="aot_eager", dynamic=True, fullgraph=True)
    for step in range(4):
        nodes, count = 10 + 3 * step, 50 + 7 * step
        x, edges = torch.randn(nodes, 6), some_edges(nodes, nodes, count)
        attr = None if edge_dim is None else torch.randn(count, edge_dim)
        found = []
        for call in (compiled, layer):
            torch.manual_seed(step)
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                out = call(x, edges, attr)
                grads = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
            found.append([out, *grads])
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected)


def test_exports_without_a_bound_on_sizes() -> None:
    layer = TransformerConv(6, 4, 2, edge_dim=3).eval()
    x, edges, attr = torch.randn(20, 6), some_edges(), torch.randn(80, 3)
    nodes, count = torch.export.Dim("nodes", min=2), torch.export.Dim("count", min=2)
    shapes = ({0: nodes}, {1: count}, {0: count})
    program = torch.export.export(layer, (x, edges, attr), dynamic_shapes=shapes)
    for n, e in ((20, 80), (50, 30)):
        given = torch.randn(n, 6), some_edges(n, n, e), torch.randn(e, 3)
        torch.testing.assert_close(program.module()(*given), layer(*given))


@pytest.mark.parametrize("residual", [False, True])
def test_the_network(residual: bool) -> None:
    model = GraphTransformer(
        6, 4, 3, heads=2, out_heads=2, dropout=0.5, layers=3, residual=residual
    )
    x, edges = torch.randn(NODES, 6), some_edges()
    out = model(x, edges)
    assert out.shape == (NODES, 3)
    assert not torch.equal(out, model(x, edges))
    model.eval()
    torch.testing.assert_close(model(x, edges), model(x, Graph.from_edge_index(edges, NODES)))
    model(x, edges).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    unused = {name for name, grad in grads.items() if grad is None}
    assert unused == {n for n in grads if "lin_skip" in n and not residual}
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)
    before = [p.clone() for p in model.parameters()]
    model.reset_parameters()
    assert not all(map(torch.equal, before, model.parameters()))
    with pytest.raises(ValueError, match="GraphTransformer: 'layers' must be at least 2, got 1"):
        GraphTransformer(6, 4, 3, layers=1)


def test_names_edge_attr_of_another_shape() -> None:
    layer = TransformerConv(5, 4, 2, edge_dim=3)
    edges = torch.tensor([[0, 1], [1, 2]])
    for bad in (torch.ones(2, 4), torch.ones(3, 3)):
        with pytest.raises(ValueError, match=r"TransformerConv: 'edge_attr' must have shape"):
            layer(torch.ones(3, 5), edges, bad)
