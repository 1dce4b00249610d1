"""Sparse features times a dense matrix, and dropout of features: exact and deterministic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels import reference
from gatkernels.backends import native
from gatkernels.models import GAT
from gatkernels.nn import GATConv, GATv2Conv
from gatkernels.ops import dense, sparse
from gatkernels.ops.sparse import SparseRows

pytestmark = [
    pytest.mark.skipif(native.cpu_missing is not None, reason=str(native.cpu_missing)),
    pytest.mark.filterwarnings("ignore:Sparse"),
]


def sparse_matrix(rows: int, columns: int, density: float, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    dense = torch.randn(rows, columns, generator=generator, dtype=dtype)
    return dense * (torch.rand(rows, columns, generator=generator) < density)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 16, 80, 129, 300])
@pytest.mark.parametrize(
    ("rows", "columns", "density"), [(7, 5, 0.5), (50, 6000, 0.5), (6000, 50, 0.9), (40, 30, 0.0)]
)
def test_product_and_gradient(
    rows: int, columns: int, density: float, width: int, dtype: torch.dtype
) -> None:
    dense = sparse_matrix(rows, columns, density, dtype)
    matrix = SparseRows.of(dense.to_sparse_csr())
    weight = torch.randn(width, columns, dtype=dtype, requires_grad=True)
    grad = torch.randn(rows, width, dtype=dtype)
    out = matrix.linear(weight)
    (found,) = torch.autograd.grad(out, weight, grad)
    truth = dense.double() @ weight.detach().double().t()
    scale = dense.double().abs() @ weight.detach().double().abs().t()
    bound = 8 * torch.finfo(dtype).eps
    assert torch.all((out - truth).abs() <= bound * scale)
    truth = (dense.double().t() @ grad.double()).t()
    scale = (dense.double().abs().t() @ grad.double().abs()).t()
    assert torch.all((found - truth).abs() <= bound * scale)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("columns", [0, 4])
@pytest.mark.parametrize("width", [0, 2])
def test_empty_product(rows: int, columns: int, width: int) -> None:
    matrix = SparseRows.of(torch.zeros(rows, columns).to_sparse_csr())
    out = matrix.matmul(torch.ones(columns, width))
    assert torch.equal(out, torch.zeros(rows, width))


def test_product_takes_rows_apart_and_dense_of_any_stride() -> None:
    dense = sparse_matrix(20, 30, 0.3, torch.float32)
    matrix = SparseRows.of(dense.to_sparse_csr())
    wide = torch.randn(30, 11)
    for other in (wide[:, 2:7], wide[:, ::2], torch.randn(5, 30).t(), wide[:1].expand(30, -1)):
        torch.testing.assert_close(matrix.matmul(other), dense @ other)


def test_stored_zeros_take_no_part() -> None:
    stored = torch.tensor([[1.0, 2.0]]).to_sparse_csr()
    matrix = SparseRows.of(stored)._replace(values=torch.tensor([0.0, 3.0]))
    out = matrix.matmul(torch.tensor([[float("inf")], [2.0]]))
    assert out.tolist() == [[6.0]]


def test_same_bits_for_any_number_of_threads(by_rows: list[Any]) -> None:
    dense = sparse_matrix(3000, 90, 0.9, torch.float32)
    matrix = SparseRows.of(dense.to_sparse_csr())
    weight, grad = torch.randn(17, 90, requires_grad=True), torch.randn(3000, 17)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            dropped = matrix.dropout(0.4, True)
            out = dropped.linear(weight)
            found.append((out, *torch.autograd.grad(out, weight, grad)))
    finally:
        torch.set_num_threads(threads)
    assert by_rows == [(90, 17)] * 4
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The shapes of the products that were added up row by row."""
    shapes: list[Any] = []
    product = sparse.sparse_transposed_product

    def counted(*args: Any) -> Tensor:
        out = product(*args)
        shapes.append(tuple(out.shape))
        return out

    monkeypatch.setattr(sparse, "sparse_transposed_product", counted)
    return shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 16, 80, 129, 300])
@pytest.mark.parametrize("columns", [1, 7, 200])
def test_gradient_of_long_columns(
    columns: int, width: int, dtype: torch.dtype, by_rows: list[Any]
) -> None:
    rows = 4000
    dense = sparse_matrix(rows, columns, 0.6, dtype)
    dense[::3] = 0.0
    dense[-1400:] = 0.0
    dense[1] = 1.0  # longer than what is looked at at a time
    matrix = SparseRows.of(dense.to_sparse_csr())
    values = matrix.values * (torch.rand(matrix.values.shape) < 0.9)
    dense[dense != 0.0] = values
    matrix = matrix._replace(values=values)
    wide = torch.randn(rows, width + 2, dtype=dtype)
    for grad in (wide[:, 1:-1], wide[:, 1:-1].contiguous(), torch.ones(1, 1, dtype=dtype)):
        grad = grad.expand(rows, width)
        weight = torch.zeros(width, columns, dtype=dtype, requires_grad=True)
        (found,) = torch.autograd.grad(matrix.linear(weight), weight, grad)
        truth = (dense.double().t() @ grad.double()).t()
        scale = (dense.double().abs().t() @ grad.double().abs()).t()
        assert torch.all((found - truth).abs() <= 8 * torch.finfo(dtype).eps * scale)
    assert by_rows == [(columns, width)] * 3


def test_only_long_columns_are_added_up_by_rows(
    by_rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradient(columns: int, values: int, width: int, dtype: torch.dtype) -> None:
        rows = -(-values // columns)
        dense = (torch.arange(rows * columns) < values).to(dtype).view(rows, columns)
        weight = torch.randn(width, columns, dtype=dtype, requires_grad=True)
        SparseRows.of(dense.to_sparse_csr()).linear(weight).sum().backward()
        torch.testing.assert_close(weight.grad, dense.sum(0).expand(width, -1))

    long = 4 * sparse.LONG_COLUMN
    gradient(4, long - 1, 5, torch.float32)
    assert not by_rows
    gradient(4, long, 5, torch.float32)
    assert by_rows == [(4, 5)]
    monkeypatch.setattr(sparse, "LARGEST_SUM", 4 * 5 * 4)
    gradient(4, long, 5, torch.float32)
    assert by_rows == [(4, 5)] * 2
    gradient(4, long, 6, torch.float32)
    gradient(4, long, 5, torch.float64)
    assert by_rows == [(4, 5)] * 2


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("columns", [0, 4])
@pytest.mark.parametrize("width", [0, 2])
def test_empty_transposed_product(rows: int, columns: int, width: int) -> None:
    m = SparseRows.of(torch.zeros(rows, columns).to_sparse_csr())
    out = sparse.sparse_transposed_product(
        m.crow, m.col, m.values, torch.ones(rows, width), columns
    )
    assert torch.equal(out, torch.zeros(columns, width))


def test_stored_zeros_of_long_columns_take_no_part(by_rows: list[Any]) -> None:
    matrix = SparseRows.of(torch.ones(2000, 3).to_sparse_csr())
    values = torch.ones(2000, 3)
    values[100], values[200, :2] = 0.0, 0.0
    grad = torch.ones(2000, 5)
    grad[100], grad[200] = float("nan"), float("inf")
    weight = torch.zeros(5, 3, requires_grad=True)
    out = matrix._replace(values=values.view(-1)).linear(weight)
    (found,) = torch.autograd.grad(out, weight, grad)
    assert found.tolist() == [[1998.0, 1998.0, float("inf")]] * 5
    assert by_rows


def test_derivatives_through_long_columns(
    by_rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "LONG_COLUMN", 1)
    matrix = SparseRows.of(sparse_matrix(9, 4, 0.7, torch.float64).to_sparse_csr())
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(matrix.linear, weight)
    assert torch.autograd.gradgradcheck(matrix.linear, weight)
    assert by_rows


def test_no_memory_for_the_sums() -> None:
    m = SparseRows.of(torch.ones(2, 2).to_sparse_csr())
    with pytest.raises(MemoryError):
        native.cpu_module().sparse_transposed_product(
            0, 1, m.crow, m.col, 2, 2**57, 1, None, None, None
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (513, 5), (20000, 3)])
@pytest.mark.parametrize("p", [0.1, 0.6, 1.0])
def test_dropout_is_the_references(dtype: torch.dtype, shape: tuple[int, ...], p: float) -> None:
    x = torch.randn(shape, dtype=dtype)
    seed = torch.tensor([0x1234_5678_9ABC_DEF0])
    value = torch.arange(x.numel())
    counter, word = value // 64 * 16 + value % 16, value // 16 % 4
    scale = reference.dropout_scale(x.numel() + 16, 4, p, seed)
    expected = x * scale[counter, word].view(shape).to(dtype)
    assert torch.equal(dense.feature_dropout(x, p, seed), expected)


def test_dropout_masks_its_gradient_alike() -> None:
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    out = dense.dropout(x, 0.5)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad == 0, out == 0)
    assert torch.equal(out, x.detach() * grad)

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return dense.dropout(x, 0.5)

    assert torch.autograd.gradcheck(seeded, x)
    assert torch.autograd.gradgradcheck(seeded, x)
    strided = torch.randn(6, 40).t()
    assert torch.equal(seeded(strided), seeded(strided.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (513, 5), (20000, 3)])
@pytest.mark.parametrize("p", [0.0, 0.6, 1.0])
def test_elu_and_dropout_in_one(dtype: torch.dtype, shape: tuple[int, ...], p: float) -> None:
    x = 4 * torch.randn(shape, dtype=dtype)
    grad = torch.randn(shape, dtype=dtype)

    def found(work: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        out = work(x.requires_grad_())
        return out, torch.autograd.grad(out, x, grad.to(out))[0]

    def apart(x: Tensor) -> Tensor:
        return dense.dropout(F.elu(x), p) if p else F.elu(x)

    truth = found(apart, x.double())
    for ours, true in zip(found(lambda x: dense.elu_dropout(x, p), x), truth, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), true, rtol=8 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elu_of_extreme_values(dtype: torch.dtype) -> None:
    infinity, tiny = float("inf"), torch.finfo(dtype).tiny
    x = torch.tensor([0.0, tiny, -tiny, -1e-6, -60, -95, -1e4, -infinity, infinity, torch.nan])
    x = x.to(dtype).requires_grad_()
    out = dense.elu_dropout(x, 0.0)
    alike = functools.partial(
        torch.testing.assert_close, rtol=8 * torch.finfo(dtype).eps, equal_nan=True
    )
    alike(out.double(), F.elu(x.double()), atol=0.0)
    (grad,) = torch.autograd.grad(out.sum(), x)
    slope = x.detach().double().clamp(max=0.0).exp()
    alike(grad.double(), slope, atol=tiny)


def test_elu_and_dropout_gradients() -> None:
    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return dense.elu_dropout(x, 0.5)

    x = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded, x)
    assert torch.autograd.gradgradcheck(seeded, x)
    strided = torch.randn(6, 40).t()
    assert torch.equal(seeded(strided), seeded(strided.contiguous()))


def test_ops_pass_torchs_checks() -> None:
    m = SparseRows.of(sparse_matrix(9, 7, 0.4, torch.float32).to_sparse_csr())
    pattern = (m.t_crow, m.t_col, m.t_order, m.values)
    tests = ("test_schema", "test_faketensor")
    product, dropout = torch.ops.gatkernels.sparse_product, torch.ops.gatkernels.feature_dropout
    torch.library.opcheck(product, (*pattern, torch.randn(9, 5)), test_utils=tests)
    transposed = torch.ops.gatkernels.sparse_transposed_product
    by_rows = (m.crow, m.col, m.values, torch.randn(9, 5), 7)
    torch.library.opcheck(transposed, by_rows, test_utils=tests)
    torch.library.opcheck(dropout, (torch.randn(9), 0.3, torch.tensor([5])), test_utils=tests)
    elu = torch.ops.gatkernels.elu_and_dropout
    for seed in (None, torch.tensor([5])):
        torch.library.opcheck(elu, (torch.randn(9), 0.3, seed), test_utils=tests)


@pytest.mark.parametrize("heads", [1, 4])
def test_feature_dropout_leaves_the_scores_alone(heads: int) -> None:
    """Attention is that of the layer without it; the messages alone are dropped."""
    x, edges = torch.randn(12, 6), torch.randint(12, (2, 40))
    plain = GATConv(6, 5, heads, bias=False)
    layer = GATConv(6, 5, heads, bias=False, feature_dropout=0.5)
    layer.load_state_dict(plain.state_dict())
    alpha = plain(x, edges, return_attention_weights=True)[1]
    for inputs in (x, SparseRows.of(x.to_sparse_csr())):
        out, (edge_index, weights) = layer.train()(inputs, edges, return_attention_weights=True)
        assert torch.equal(edge_index, alpha[0])
        torch.testing.assert_close(weights, alpha[1])
        assert not torch.allclose(out, plain(x, edges))
        torch.testing.assert_close(layer.eval()(inputs, edges), plain(x, edges))
    mean = torch.stack([layer.train()(x, edges) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, plain(x, edges), rtol=0.0, atol=0.25)


@pytest.mark.parametrize("block", [1, 7, sparse.BLOCK])
def test_gradient_of_sparse_values(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "BLOCK", block)
    matrix = sparse_matrix(9, 4, 0.7, torch.float64).to_sparse_csr()
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    rows = SparseRows.of(matrix)

    def call(values: Tensor, weight: Tensor) -> Tensor:
        return rows._replace(values=values).linear(weight)

    values = matrix.values().clone().requires_grad_()
    assert torch.autograd.gradcheck(call, (values, weight))
    assert torch.autograd.gradgradcheck(call, (values, weight))
    empty = SparseRows.of(torch.zeros(3, 4, dtype=torch.float64).to_sparse_csr())
    nothing = torch.empty(0, dtype=torch.float64, requires_grad=True)
    empty._replace(values=nothing).linear(weight).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.shape == (0,)


@pytest.mark.parametrize("make", [GATConv, GATv2Conv, GAT], ids=lambda c: c.__name__)
def test_layers_give_sparse_features_their_gradient(make: Any) -> None:
    layer = GAT(6, 4, 3, heads=2, dropout=0.0) if make is GAT else make(6, 4, 2, residual=True)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    dense = sparse_matrix(4, 6, 0.5, torch.float32)
    given, compressed = dense.clone().requires_grad_(), dense.to_sparse_csr().requires_grad_()
    for x in (given, compressed):
        layer(x, edges).square().sum().backward()
    assert given.grad is not None
    assert compressed.grad is not None
    expected = given.grad * (dense != 0.0)
    assert float(expected.abs().max()) > 0.0
    torch.testing.assert_close(compressed.grad.to_dense(), expected)


def test_dropped_sparse_values_get_no_gradient() -> None:
    matrix = torch.ones(50, 40).to_sparse_csr().requires_grad_()
    rows = SparseRows.of(matrix).dropout(0.5, True)
    rows.linear(torch.ones(2, 40)).sum().backward()
    assert matrix.grad is not None
    found = matrix.grad.values()
    assert torch.equal(found, rows.values * 2.0)
    assert 0 < int((found == 0.0).sum()) < found.numel()
