"""What is remembered of a tensor: right after every change, gone with it, and only the last few."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from gatkernels import Graph
from gatkernels.graph import cached_graph
from gatkernels.nn import GATConv
from gatkernels.ops import memo
from gatkernels.ops.sparse import SparseRows

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")

X = torch.tensor([[1.0], [2.0], [4.0]])
#: A path, what it gives on X, other edges, and what they give.
PATH, OF_PATH = [[0, 1], [1, 2]], [0.0, 1.0, 2.0]
BACK, OF_BACK = [[2, 2], [0, 1]], [4.0, 4.0, 0.0]


def layer(make: Any) -> Any:
    conv = make(1, 1, add_self_loops=False, bias=False)
    for parameter in conv.parameters():
        torch.nn.init.ones_(parameter)
    return conv


def layers() -> list[Any]:
    found = [GATConv]
    try:
        import gatkernels.pyg
    except ImportError:
        return found
    return [*found, gatkernels.pyg.GATConv, gatkernels.pyg.GATv2Conv]


every_layer = pytest.mark.parametrize(
    "make", layers(), ids=lambda c: f"{c.__module__}.{c.__name__}"
)


def result(conv: Any, edges: Tensor) -> list[float]:
    return conv(X, edges).flatten().tolist()  # type: ignore[no-any-return]


@every_layer
def test_changes_in_place(make: Any) -> None:
    conv, edges = layer(make), torch.tensor(PATH)
    assert result(conv, edges) == OF_PATH
    edges.copy_(torch.tensor(BACK))
    assert result(conv, edges) == OF_BACK
    edges[:] = torch.tensor(PATH)
    assert result(conv, edges) == OF_PATH


@every_layer
def test_changes_of_an_edge_index_in_place(make: Any) -> None:
    if make is GATConv:
        pytest.skip("gatkernels.nn takes tensors alone")
    from torch_geometric import EdgeIndex

    conv, edges = layer(make), EdgeIndex(PATH)
    assert result(conv, edges) == OF_PATH
    edges.copy_(torch.tensor(BACK))
    assert result(conv, edges) == OF_BACK
    edges[0, 0] = 0
    assert result(conv, edges) == [1.0, 4.0, 0.0]
    edges.as_tensor()[0, 0] = 1
    assert result(conv, edges) == [2.0, 4.0, 0.0]


@every_layer
def test_other_memory_of_the_same_tensor(make: Any) -> None:
    conv, edges = layer(make), torch.empty(2, 2, dtype=torch.long)
    both = torch.cat([torch.tensor(PATH), torch.tensor(BACK)], dim=1)
    edges.data = both[:, :2]
    assert result(conv, edges) == OF_PATH
    edges.data = both[:, 2:]
    assert result(conv, edges) == OF_BACK
    edges.data = torch.tensor([[0, 1], [1, 2]]).t()
    assert result(conv, edges) == [0.0, 1.0, 2.0]
    edges.data = edges.data.t().contiguous().flatten().as_strided((2, 2), (1, 2))
    assert result(conv, edges) == [0.0, 1.0, 2.0]


@every_layer
def test_swapped_tensors(make: Any) -> None:
    conv, edges, other = layer(make), torch.tensor(PATH), torch.tensor(BACK)
    assert result(conv, edges) == OF_PATH
    torch.utils.swap_tensors(edges, other)
    assert (result(conv, edges), result(conv, other)) == (OF_BACK, OF_PATH)


@every_layer
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_most_changes_that_torch_cannot_count(make: Any, dtype: torch.dtype) -> None:
    def by_numpy(edges: Tensor) -> None:
        edges.numpy()[:] = BACK

    def by_data(edges: Tensor) -> None:
        edges.data.copy_(torch.tensor(BACK))

    def by_dlpack(edges: Tensor) -> None:
        torch.from_dlpack(edges.__dlpack__()).copy_(torch.tensor(BACK))

    for change in (by_numpy, by_data, by_dlpack):
        conv, edges = layer(make), torch.tensor(PATH, dtype=dtype)
        assert result(conv, edges) == OF_PATH
        change(edges)
        assert result(conv, edges) == OF_BACK, change


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "view"])
def test_another_batch_in_the_same_memory_is_noticed(layout: str) -> None:
    edges = {
        "contiguous": lambda: torch.zeros(2, 5000, dtype=torch.long),
        "transposed": lambda: torch.zeros(5000, 2, dtype=torch.long).t(),
        "view": lambda: torch.zeros(2, 9000, dtype=torch.long)[:, 100:5100],
    }[layout]()
    cached_graph(edges, 1000)
    batch = torch.randint(0, 1000, (2, 5000))
    edges.data.copy_(batch)
    assert torch.equal(cached_graph(edges, 1000).edge_index, batch)


def test_few_graphs_are_kept_of_one_tensor() -> None:
    edges = torch.randint(0, 5, (2, 4000))
    graphs = [weakref.ref(cached_graph(edges, 5 + step)) for step in range(50)]
    gc.collect()
    assert [graph() is not None for graph in graphs] == [False] * 46 + [True] * 4
    assert cached_graph(edges, 54) is graphs[-1]()
    edges[0, 0] = 0
    cached_graph(edges, 54)
    gc.collect()
    assert graphs[-1]() is None


@pytest.mark.parametrize("edges", [torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 3).long()])
def test_few_graphs_are_kept_of_tiny_tensors(edges: Tensor) -> None:
    graphs = [weakref.ref(cached_graph(edges, 5 + step)) for step in range(20)]
    gc.collect()
    assert sum(graph() is not None for graph in graphs) == 4


def test_graphs_of_many_views_of_one_tensor_are_all_kept() -> None:
    whole = torch.randint(0, 5, (2, 1000))
    views = whole.split(50, dim=1)
    graphs = [cached_graph(view, 5) for view in views]
    assert all(cached_graph(view, 5) is graph for view, graph in zip(views, graphs, strict=True))
    passing = [weakref.ref(cached_graph(whole[:, k:], 5)) for k in range(60)]
    gc.collect()
    assert sum(graph() is not None for graph in passing) < 10


def test_nothing_is_kept_of_dead_memory() -> None:
    before = len(_memo_of_graphs()._slots)
    for _ in range(20):
        edges = torch.randint(0, 5, (2, 10))
        cached_graph(edges, 5)
    del edges
    gc.collect()
    assert len(_memo_of_graphs()._slots) <= before


def _memo_of_graphs() -> memo.Memo[Graph]:
    from gatkernels import graph

    return graph._memo


def test_a_graph_lives_as_long_as_a_view_of_the_edges() -> None:
    edges = torch.tensor(PATH)
    view = edges[:, :1]
    graph = weakref.ref(cached_graph(edges, 3))
    del edges
    gc.collect()
    assert view.shape == (2, 1)
    assert graph() is not None
    del view
    gc.collect()
    assert graph() is None


def test_sparse_features_changed_in_place() -> None:
    one, two = torch.eye(3)[[0, 2, 1]], torch.eye(3)[[2, 1, 0]]
    matrix, weight = one.to_sparse_csr(), torch.randn(2, 3)
    torch.testing.assert_close(SparseRows.of(matrix).linear(weight), one @ weight.t())
    matrix.copy_(two.to_sparse_csr())
    torch.testing.assert_close(SparseRows.of(matrix).linear(weight), two @ weight.t())
    matrix.values().mul_(2.0)
    torch.testing.assert_close(SparseRows.of(matrix).linear(weight), 2 * two @ weight.t())


def test_the_structure_of_sparse_features_is_remembered() -> None:
    matrix = torch.eye(3).to_sparse_csr()
    first, second = SparseRows.of(matrix), SparseRows.of(matrix)
    assert first.t_order is second.t_order
    kept = weakref.ref(first.t_order)
    del first, second, matrix
    gc.collect()
    assert kept() is None


def test_a_sparse_adjacency_with_other_columns_in_the_same_memory() -> None:
    """Row pointers are shared, the tensors before are gone, their addresses come back."""
    pyg = pytest.importorskip("gatkernels.pyg", reason="PyG's layers take sparse adjacencies")
    conv, crow = layer(pyg.GATConv), torch.tensor([0, 1, 2, 3])
    x = torch.arange(3.0)[:, None]
    for step in range(200):
        col = torch.tensor([step % 3, (step + 1) % 3, (step + 2) % 3])
        adjacency = torch.sparse_csr_tensor(crow, col, torch.ones(3), (3, 3))
        assert conv(x, adjacency).flatten().tolist() == col.tolist()
        del adjacency, col


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("self_loops", [False, True])
def test_a_sparse_adjacency_changed_in_place(layout: str, self_loops: bool) -> None:
    pyg = pytest.importorskip("gatkernels.pyg", reason="PyG's layers take sparse adjacencies")
    theirs = pytest.importorskip("torch_geometric.nn", reason="compares with PyG")
    ours = pyg.GATConv(1, 1, add_self_loops=self_loops)
    other = theirs.GATConv(1, 1, add_self_loops=self_loops)
    other.load_state_dict(ours.state_dict())
    first, second = torch.eye(3)[[1, 2, 0]], torch.eye(3)[[2, 0, 1]]
    convert = Tensor.to_sparse_csr if layout == "csr" else Tensor.to_sparse
    adjacency = convert(first)
    for value in (first, second):
        adjacency.copy_(convert(value))
        torch.testing.assert_close(ours(X, adjacency), other(X, convert(value)))


def test_traced_programs_hold_no_graph_of_an_eager_call() -> None:
    class Sized(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layer(GATConv)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            out: Tensor = self.conv(x, edges, size=(3, 3))
            return out

    model, edges = Sized(), torch.tensor(PATH)
    with torch.no_grad():
        assert model(X, edges).flatten().tolist() == OF_PATH
        traced = torch.jit.trace(model, (X, edges), check_trace=False)
        assert traced(X, torch.tensor(BACK)).flatten().tolist() == OF_BACK


@pytest.mark.parametrize("within", ["inference", "torch.func"])
def test_a_graph_outlives_the_mode_it_was_made_in(within: str) -> None:
    conv, edges = layer(GATConv), torch.tensor(PATH)
    if within == "inference":
        with torch.inference_mode():
            conv(X, edges)
    else:
        torch.func.grad(lambda x: conv(x, edges).sum())(X)
    graph = cached_graph(edges, 3)
    assert not graph.rowptr.is_inference()
    assert copy.deepcopy(graph).rowptr.data_ptr() != graph.rowptr.data_ptr()
    assert graph.colptr.tolist() == [0, 1, 2, 2]
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(conv(x, edges).sum(), x)
    assert grad.flatten().tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_adjacencies_with_gradients_are_not_kept_alive(layout: str) -> None:
    pytest.importorskip("torch_geometric")
    from gatkernels.pyg import GATConv as Drop
    from gatkernels.pyg import adjacency

    conv = Drop(1, 1)
    gc.collect()
    before = len(adjacency._memo._slots)
    for _ in range(3):
        values = torch.ones(2, requires_grad=True)
        adj = torch.sparse_coo_tensor(torch.tensor(PATH), values, (3, 3)).coalesce()
        conv(X, adj if layout == "coo" else adj.to_sparse_csr())
    del adj, values
    gc.collect()
    assert len(adjacency._memo._slots) == before
