"""The layer beside PyG's, sparse and large inputs, and the network on two backends."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatkernels import Graph
from gatkernels.backends import native
from gatkernels.layers.shared import mean_of_heads
from gatkernels.models import GAT
from gatkernels.nn import GATConv, GATv2Conv
from gatkernels.ops import dense
from gatkernels.ops.sparse import SparseRows

NODES = 30


def pyg_layer(*args: Any, **kwargs: Any) -> nn.Module:
    module = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")
    layer: nn.Module = module.GATConv(*args, **kwargs)
    return layer


def both(*args: Any, **kwargs: Any) -> tuple[GATConv, nn.Module]:
    """Ours and PyG's, each made from the same seed, with biases that are not zero."""
    torch.manual_seed(11)
    theirs = pyg_layer(*args, **kwargs)
    torch.manual_seed(11)
    ours = GATConv(*args, **kwargs)
    for layer in (ours, theirs):
        if layer.bias is not None:
            nn.init.constant_(layer.bias, 0.3)
    return ours, theirs


def some_edges(num_src: int = NODES, num_dst: int = NODES, count: int = 150) -> Tensor:
    """Random edges with loops and parallel ones; the last destination gets none."""
    generator = torch.Generator().manual_seed(2)
    src = torch.randint(0, num_src, (count,), generator=generator)
    dst = torch.randint(0, num_dst - 1, (count,), generator=generator)
    edges = torch.stack([src, dst])
    edges[:, :4] = torch.tensor([[1, 1, 2, 2], [1, 1, 3, 3]])
    return edges


class Outcome(NamedTuple):
    out: Tensor
    edges: Tensor
    alpha: Tensor
    gradients: dict[str, Tensor]


def outcome(layer: nn.Module, x: Any, edges: Tensor, **options: Any) -> Outcome:
    """Results and gradients, of parameters and inputs, with both outputs in the loss."""
    inputs = [
        t.detach().requires_grad_() for t in (x if isinstance(x, tuple) else (x,)) if t is not None
    ]
    given = inputs[0] if not isinstance(x, tuple) else (*inputs, *[None] * (2 - len(inputs)))
    out, (index, alpha) = layer(given, edges, return_attention_weights=True, **options)
    generator = torch.Generator().manual_seed(3)
    loss = (out * torch.randn(out.shape, generator=generator)).sum()
    loss = loss + (alpha * torch.randn(alpha.shape, generator=generator)).sum()
    named = {f"x{k}": t for k, t in enumerate(inputs)} | dict(layer.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    gradients = {k: torch.zeros_like(t) if g is None else g
                 for (k, t), g in zip(named.items(), found, strict=True)}  # fmt: skip
    return Outcome(out, index, alpha, gradients)


def assert_like_pyg(
    ours: GATConv, theirs: nn.Module, x: Any, edges: Tensor, **options: Any
) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    got, expected = outcome(ours, x, edges, **options), outcome(theirs, x, edges, **options)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(got.out, expected.out, **close)
    assert torch.equal(got.edges, expected.edges)
    torch.testing.assert_close(got.alpha, expected.alpha, **close)
    assert got.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            got.gradients[name], gradient, **close, msg=lambda m, n=name: f"{n}: {m}"
        )
    torch.testing.assert_close(ours(x, edges, **options), expected.out, **close)


@pytest.mark.parametrize(
    "options",
    [{}, {"heads": 3}, {"heads": 3, "concat": False}, {"heads": 2, "residual": True, "bias": False},
     {"heads": 8, "concat": False, "residual": True, "negative_slope": 0.0, "dropout": 0.6}],
)  # fmt: skip
@pytest.mark.parametrize("in_channels", [12, (12, 7)])
def test_initialised_as_pyg(in_channels: int | tuple[int, int], options: dict[str, Any]) -> None:
    torch.manual_seed(11)
    theirs = pyg_layer(in_channels, 5, **options)
    after = torch.rand(1)
    torch.manual_seed(11)
    ours = GATConv(in_channels, 5, **options)
    assert torch.equal(torch.rand(1), after)
    for layer in (ours, theirs):
        torch.manual_seed(12)
        layer.reset_parameters()
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name
    ours.load_state_dict(expected)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("concat", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("add_self_loops", [False, True])
def test_results_of_pyg(
    heads: int, concat: bool, residual: bool, bias: bool, add_self_loops: bool
) -> None:
    options = {"bias": bias, "residual": residual, "add_self_loops": add_self_loops}
    ours, theirs = both(12, 5, heads, concat, **options)
    assert_like_pyg(ours, theirs, torch.randn(NODES, 12), some_edges())


def test_results_of_pyg_in_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LARGE", 0)
    ours, theirs = both(12, 5, 4, residual=True)
    assert_like_pyg(ours, theirs, torch.randn(NODES, 12), some_edges())


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, -0.3])
def test_slopes_of_pyg(slope: float) -> None:
    ours, theirs = both(12, 5, 2, negative_slope=slope)
    assert_like_pyg(ours, theirs, torch.randn(NODES, 12), some_edges())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("add_self_loops", [False, True])
@pytest.mark.parametrize("sizes", [(20, 13), (13, 20)], ids=str)
def test_bipartite_as_pyg(sizes: tuple[int, int], add_self_loops: bool, residual: bool) -> None:
    ours, theirs = both((12, 7), 5, 3, add_self_loops=add_self_loops, residual=residual)
    x = torch.randn(sizes[0], 12), torch.randn(sizes[1], 7)
    assert_like_pyg(ours, theirs, x, some_edges(*sizes, 60))
    shared, pyg_shared = both(12, 5, 3, add_self_loops=add_self_loops)
    x = torch.randn(sizes[0], 12), torch.randn(sizes[1], 12)
    assert_like_pyg(shared, pyg_shared, x, some_edges(*sizes, 60))


@pytest.mark.parametrize("in_channels", [12, (12, 12)])
@pytest.mark.parametrize("add_self_loops", [False, True])
def test_sources_alone_as_pyg(in_channels: int | tuple[int, int], add_self_loops: bool) -> None:
    ours, theirs = both(in_channels, 5, 3, add_self_loops=add_self_loops)
    x = torch.randn(20, 12)
    assert_like_pyg(ours, theirs, (x, None), some_edges(20, 13, 60), size=(20, 13))


def test_one_input_for_two_projections_as_pyg() -> None:
    ours, theirs = both((12, 12), 5, 3)
    assert_like_pyg(ours, theirs, torch.randn(NODES, 12), some_edges())


@pytest.mark.parametrize("add_self_loops", [False, True])
@pytest.mark.parametrize("nodes", [0, 4])
def test_no_edges_as_pyg(nodes: int, add_self_loops: bool) -> None:
    ours, theirs = both(12, 5, 3, add_self_loops=add_self_loops)
    assert_like_pyg(ours, theirs, torch.randn(nodes, 12), torch.empty(2, 0, dtype=torch.int64))


def test_a_graph_is_used_as_it_is() -> None:
    layer = GATConv(12, 5, 2, add_self_loops=True)
    x, edges = torch.randn(NODES, 12), some_edges()
    looped = Graph.from_edge_index(edges, NODES, self_loops=True)
    plain = Graph.from_edge_index(edges, NODES)
    assert torch.equal(layer(x, looped), layer(x, edges))
    assert not torch.equal(layer(x, plain), layer(x, edges))
    layer.add_self_loops = False
    assert torch.equal(layer(x, plain), layer(x, edges))


def test_dropout_only_while_training() -> None:
    layer = GATConv(12, 5, 2, dropout=0.6)
    x, edges = torch.randn(NODES, 12), some_edges()
    assert not torch.equal(layer(x, edges), layer(x, edges))
    out, (_, alpha) = layer(x, edges, return_attention_weights=True)
    assert out.requires_grad
    assert 0.4 < float((alpha == 0).double().mean()) < 0.8
    layer.eval()
    _, (_, alpha) = layer(x, edges, return_attention_weights=True)
    assert torch.equal(layer(x, edges), layer(x, edges))
    assert bool((alpha > 0).all())


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("prepared", [False, True])
def test_sparse_features_as_dense(prepared: bool, residual: bool) -> None:
    dense = torch.randn(NODES, 40) * (torch.rand(NODES, 40) < 0.1)
    sparse: Any = dense.to_sparse_csr()
    if prepared:
        sparse = SparseRows.of(sparse)
    layer = GATConv(40, 5, 3, residual=residual)
    results = []
    for x in (sparse, dense):
        out = layer(x, some_edges())
        results.append([out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_dropout_of_sparse_features() -> None:
    """Stored values are dropped or scaled, and all stay in evaluation."""
    sparse = SparseRows.of(torch.ones(200, 50).to_sparse_csr())
    values = sparse.dropout(0.6, True).values
    assert set(values.tolist()) == {0.0, 2.5}
    assert abs(float((values > 0).double().mean()) - 0.4) < 0.02
    assert sparse.dropout(0.6, False) is sparse


@pytest.mark.filterwarnings("ignore:Sparse")
def test_second_derivative_through_sparse_features() -> None:
    dense = (torch.randn(6, 5) * (torch.rand(6, 5) < 0.4)).double()
    sparse = SparseRows.of(dense.to_sparse_csr())
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparse.linear, weight)
    assert torch.autograd.gradgradcheck(sparse.linear, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_results_as_torch(dtype: torch.dtype) -> None:
    """Past the size from which fresh memory asks for large pages."""
    x = torch.randn(5000, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(256, 16, dtype=dtype, requires_grad=True)
    bias = torch.randn(256, dtype=dtype, requires_grad=True)
    assert 5000 * 256 * dtype.itemsize >= native.LARGE
    leaves = (x, weight, bias)
    got = dense.add_bias(dense.linear(x, weight), bias)
    assert type(got.grad_fn).__name__ == "_AddBiasBackward"
    expected = F.linear(x, weight) + bias
    torch.testing.assert_close(got, expected)
    grad = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(got, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_large_steps_differentiate_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LARGE", 0)
    x, weight, bias = (
        torch.randn(*size, dtype=torch.float64, requires_grad=True)
        for size in ((4, 3), (5, 3), (5,))
    )

    def call(*leaves: Tensor) -> Tensor:
        return dense.add_bias(dense.linear(leaves[0], leaves[1]), leaves[2])

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


@pytest.mark.parametrize("biases", [0, 2])
def test_large_products_side_by_side(biases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LARGE", 0)
    sizes = ((4, 3), (5, 3), (2, 3), *((5,), (2,))[:biases])
    leaves = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]

    def call(x: Tensor, *parameters: Tensor) -> list[Tensor]:
        return dense.linears(x, parameters[:2], parameters[2:])

    x, *parameters = leaves
    each = zip(parameters[:2], parameters[2:] or [None, None], strict=True)
    found, expected = call(*leaves), [F.linear(x, weight, bias) for weight, bias in each]
    assert {type(t.grad_fn).__name__ for t in found} == {"_LinearsBackward"}
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)
    first = [torch.autograd.grad(t[0].sum(), leaves, allow_unused=True) for t in (found, expected)]
    torch.testing.assert_close(*first)  # of one alone: None for what is the other's
    frozen = call(x.detach(), *parameters)
    assert torch.autograd.grad(frozen[1].sum(), parameters[1])[0] is not None


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_large_steps_skip_what_is_frozen(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LARGE", 0)
    x = torch.randn(4, 3, requires_grad=frozen != "x")
    weight = torch.randn(5, 3, requires_grad=frozen != "weight")
    dense.linear(x, weight).sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert (weight.grad is None) == (frozen == "weight")


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("dropout", [0.0, 0.6])
@pytest.mark.parametrize("sparse", [False, True])
def test_training_is_the_same_on_both_backends(dropout: float, sparse: bool) -> None:
    """Same logits, gradients and losses over 50 steps, the same masks being drawn."""
    edges, labels = some_edges(), torch.arange(NODES) % 4
    dense = torch.randn(NODES, 16) * (torch.rand(NODES, 16) < 0.5)
    x = dense.to_sparse_csr() if sparse else dense
    curves, first = {}, {}
    for backend in ("cpu", "reference"):
        torch.manual_seed(21)
        model = GAT(16, 4, 4, heads=4, out_heads=2, dropout=dropout, backend=backend)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=5e-4)
        losses = []
        for step in range(50):
            optimizer.zero_grad()
            logits = model(x, edges)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            if step == 0:
                gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
                first[backend] = [logits.detach(), *gradients]
            optimizer.step()
            losses.append(loss.item())
        curves[backend] = torch.tensor(losses)
    assert len(first["cpu"]) == 1 + 8
    for got, expected in zip(first["cpu"], first["reference"], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(curves["cpu"], curves["reference"], rtol=1e-5, atol=1e-5)
    assert curves["cpu"][-1] < curves["cpu"][0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mean_of_heads_is_finite_where_the_sum_is_not(dtype: torch.dtype) -> None:
    out = torch.full((3, 8, 2), torch.finfo(torch.float16).max / 2).to(dtype)
    mean = mean_of_heads(out)
    assert mean.dtype == dtype
    torch.testing.assert_close(mean, out[:, 0])


@pytest.mark.parametrize("make", [GATConv, GATv2Conv], ids=lambda c: c.__name__)
def test_a_projection_with_another_forward_is_called(make: Any) -> None:
    layer = make(1, 1, add_self_loops=False, bias=False)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    x, edges = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[0, 1], [1, 2]])
    lin = layer.lin if make is GATConv else layer.lin_l
    plain = lin.forward
    lin.forward = lambda v: 10.0 * plain(v)
    assert layer(x, edges).flatten().tolist() == [0.0, 10.0, 20.0]
    del lin.forward
    with lin.register_forward_hook(lambda m, i, o: 3.0 * o):
        assert layer(x, edges).flatten().tolist() == [0.0, 3.0, 6.0]
    assert layer(x, edges).flatten().tolist() == [0.0, 1.0, 2.0]
