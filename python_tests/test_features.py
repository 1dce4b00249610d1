"""Sparse features times a dense matrix, and dropout of features: exact and deterministic."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels import _large, _native, _ops, reference
from gatkernels.nn import GATConv
from gatkernels.sparse import SparseRows

pytestmark = [
    pytest.mark.skipif(_native.cpu_missing is not None, reason=str(_native.cpu_missing)),
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


def test_same_bits_for_any_number_of_threads() -> None:
    dense = sparse_matrix(3000, 90, 0.9, torch.float32)
    matrix = SparseRows.of(dense.to_sparse_csr())
    weight, grad = torch.randn(17, 90, requires_grad=True), torch.randn(3000, 17)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            dropped = matrix.dropout(0.4, True)
            out = dropped.linear(weight)
            found.append((out, *torch.autograd.grad(out, weight, grad)))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


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
    assert torch.equal(_ops.feature_dropout(x, p, seed), expected)


def test_dropout_masks_its_gradient_alike() -> None:
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    out = _large.dropout(x, 0.5)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad == 0, out == 0)
    assert torch.equal(out, x.detach() * grad)

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return _large.dropout(x, 0.5)

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
        return _large.dropout(F.elu(x), p) if p else F.elu(x)

    truth = found(apart, x.double())
    for ours, true in zip(found(lambda x: _large.elu_dropout(x, p), x), truth, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), true, rtol=8 * torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elu_of_extreme_values(dtype: torch.dtype) -> None:
    infinity, tiny = float("inf"), torch.finfo(dtype).tiny
    x = torch.tensor([0.0, tiny, -tiny, -1e-6, -60, -95, -1e4, -infinity, infinity, torch.nan])
    x = x.to(dtype).requires_grad_()
    out = _large.elu_dropout(x, 0.0)
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
        return _large.elu_dropout(x, 0.5)

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
    torch.library.opcheck(dropout, (torch.randn(9), 0.3, torch.tensor([5])), test_utils=tests)
    elu = torch.ops.gatkernels.elu_dropout
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
