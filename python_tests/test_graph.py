"""Building a Graph: every constructor, against torch ops, and the forms it survives."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from graphs import GRAPHS
from torch import Tensor

from gatkernels import Graph
from gatkernels.graph import cached_graph
from gatkernels.nn import GATConv
from gatkernels.ops import build

ARRAYS = ("rowptr", "col", "eid", "colptr", "row", "ceid")


def same(a: Graph, b: Graph) -> bool:
    used = slice(int(a.rowptr[-1]))
    pairs = [(getattr(a, name), getattr(b, name)) for name in ARRAYS]
    pairs = [(s, t) if name.endswith("ptr") else (s[used], t[used])
             for name, (s, t) in zip(ARRAYS, pairs, strict=True)]  # fmt: skip
    counts = [(g.num_src, g.num_dst, g.num_edges, g.self_loops) for g in (a, b)]
    return counts[0] == counts[1] and all(torch.equal(s, t) for s, t in pairs)


def by_torch(edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool = False) -> Graph:
    src, dst = edge_index
    csr = build.one_side(dst, src, num_dst, num_src, self_loops)
    csc = build.one_side(src, dst, num_src, num_dst, self_loops)
    return Graph(num_src, num_dst, csr, csc, self_loops)


def test_a_small_graph_by_hand() -> None:
    graph = Graph.from_edge_index(torch.tensor([[2, 0, 2, 1], [1, 2, 1, 0]]), (3, 4))
    assert graph.rowptr.tolist() == [0, 1, 3, 4, 4]
    assert graph.col.tolist() == [1, 2, 2, 0]
    assert graph.eid.tolist() == [3, 0, 2, 1]
    assert graph.colptr.tolist() == [0, 1, 2, 4]
    assert graph.row.tolist() == [2, 0, 1, 1]
    assert graph.ceid.tolist() == [1, 3, 0, 2]
    assert (graph.rowptr.dtype, graph.col.dtype, graph.eid.dtype) == (
        torch.int64,
        torch.int32,
        torch.int32,
    )


def test_self_loops_by_hand() -> None:
    """The loop 1 -> 1 keeps its place among per-edge tensors but is no edge any more."""
    graph = Graph.from_edge_index(torch.tensor([[0, 1, 2], [1, 1, 0]]), 3, self_loops=True)
    assert graph.num_edges == 6
    assert graph.rowptr.tolist() == [0, 2, 4, 5]
    assert graph.col[:5].tolist() == [2, 0, 0, 1, 2]
    assert graph.eid[:5].tolist() == [2, 3, 0, 4, 5]
    assert graph.used_edge_ids().tolist() == [0, 2, 3, 4, 5]
    assert graph.edge_index.tolist() == [[0, 2, 0, 1, 2], [1, 0, 0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize(
    ("num_src", "num_dst", "edges"),
    [(1, 1, 3), (9, 4, 50), (4, 9, 50), (700, 700, 9000), (5, 30_000, 70_000), (30_000, 5, 70_000),
     (20_000, 20_000, 200_000)],
)  # fmt: skip
def test_random_graphs_equal_the_torch_build(
    dtype: torch.dtype, self_loops: bool, num_src: int, num_dst: int, edges: int
) -> None:
    generator = torch.Generator().manual_seed(edges)
    src = torch.randint(0, num_src, (edges,), generator=generator)
    dst = (torch.rand(edges, generator=generator) ** 3 * num_dst).long()  # skewed towards 0
    edge_index = torch.stack([src, dst])
    built = Graph.from_edge_index(edge_index.to(dtype), (num_src, num_dst), self_loops)
    assert same(built, by_torch(edge_index, num_src, num_dst, self_loops))


@pytest.mark.parametrize("name", GRAPHS)
def test_rows_keep_the_order_of_the_edges(name: str) -> None:
    graph = GRAPHS[name]()
    for pointer, eid in ((graph.rowptr, graph.eid), (graph.colptr, graph.ceid)):
        rises = eid[: int(pointer[-1])].diff() > 0
        starts = torch.zeros(max(int(pointer[-1]), 1), dtype=torch.bool)
        starts[pointer[:-1][pointer.diff() > 0]] = True
        assert bool((rises | starts[1:]).all())


@pytest.mark.parametrize("shape", [(8, 8), (5, 8), (8, 5)], ids=str)
def test_self_loops_as_pyg(shape: tuple[int, int]) -> None:
    utils = pytest.importorskip("torch_geometric.utils", reason="torch_geometric is not installed")
    src, dst = torch.randint(0, shape[0], (60,)), torch.randint(0, shape[1], (60,))
    edge_index = torch.stack([src, dst])
    expected, _ = utils.add_self_loops(utils.remove_self_loops(edge_index)[0], num_nodes=min(shape))
    graph = Graph.from_edge_index(edge_index, shape, self_loops=True)
    assert torch.equal(graph.edge_index, expected)
    assert graph.num_edges == 60 + min(shape)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "int32"])
def test_edge_index_comes_back(layout: str) -> None:
    edge_index = torch.randint(0, 12, (2, 80))
    given = {
        "contiguous": edge_index,
        "transposed": edge_index.t().contiguous().t(),
        "strided": edge_index.repeat_interleave(2, dim=1)[:, ::2],
        "int32": edge_index.int(),
    }[layout]
    graph = Graph.from_edge_index(given, 12)
    assert torch.equal(graph.edge_index, edge_index)
    assert graph.edge_index.dtype == torch.int64
    assert same(Graph.from_edge_index(graph.edge_index, 12), graph)


def test_node_counts_are_read_from_the_ids_where_not_given() -> None:
    graph = Graph.from_edge_index(torch.tensor([[0, 6], [2, 1]]))
    assert (graph.num_src, graph.num_dst) == (7, 7)
    empty = Graph.from_edge_index(torch.empty(2, 0, dtype=torch.int64))
    assert (empty.num_src, empty.num_dst, empty.num_edges) == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_from_csr(dtype: torch.dtype) -> None:
    rowptr, col = torch.tensor([0, 2, 2, 5], dtype=dtype), torch.tensor([4, 1, 0, 0, 3])
    graph = Graph.from_csr(rowptr, col.to(dtype), num_src=6)
    assert (graph.num_src, graph.num_dst) == (6, 3)
    assert graph.rowptr.tolist() == [0, 2, 2, 5]
    assert graph.col.tolist() == [4, 1, 0, 0, 3]
    assert graph.eid.tolist() == [0, 1, 2, 3, 4]
    assert graph.edge_index.tolist() == [[4, 1, 0, 0, 3], [0, 0, 2, 2, 2]]


def test_from_csr_takes_the_destinations_for_the_sources() -> None:
    graph = Graph.from_csr(torch.tensor([0, 1, 1]), torch.tensor([1]))
    assert (graph.num_src, graph.num_dst) == (2, 2)


def _adjacency() -> Tensor:
    """``[num_dst, num_src] = [5, 7]``, destinations unordered, one entry twice."""
    indices = torch.tensor([[3, 0, 3, 4, 3, 0], [6, 2, 1, 0, 6, 5]])
    return torch.sparse_coo_tensor(indices, torch.ones(6), (5, 7), is_coalesced=False)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "coalesced", "csr", "csc"])
def test_from_torch_sparse(layout: str) -> None:
    coo = _adjacency()
    matrix = {
        "coo": lambda: coo,
        "coalesced": coo.coalesce,
        "csr": coo.to_sparse_csr,
        "csc": coo.to_sparse_csc,
    }[layout]()
    # The edges in the order of the stored values.
    order = {
        "coo": [[6, 2, 1, 0, 6, 5], [3, 0, 3, 4, 3, 0]],
        "coalesced": [[2, 5, 1, 6, 0], [0, 0, 3, 3, 4]],
        "csr": [[2, 5, 1, 6, 0], [0, 0, 3, 3, 4]],
        "csc": [[0, 1, 2, 5, 6], [4, 3, 0, 0, 3]],
    }[layout]
    graph = Graph.from_torch_sparse(matrix)
    assert graph.edge_index.tolist() == order
    assert (graph.num_src, graph.num_dst) == (7, 5)
    looped = Graph.from_torch_sparse(matrix, self_loops=True)
    assert same(looped, Graph.from_edge_index(torch.tensor(order), (7, 5), self_loops=True))


@pytest.mark.parametrize("name", GRAPHS)
def test_reverse(name: str) -> None:
    graph = GRAPHS[name]()
    back = graph.reverse()
    assert torch.equal(back.edge_index, graph.edge_index.flip(0))
    assert (back.num_src, back.num_dst) == (graph.num_dst, graph.num_src)
    assert back.rowptr.data_ptr() == graph.colptr.data_ptr()
    assert same(back.reverse(), graph)


@pytest.mark.parametrize("name", ["no_nodes", "random", "self_loops_bipartite"])
def test_copies(name: str) -> None:
    graph = GRAPHS[name]()
    assert same(pickle.loads(pickle.dumps(graph)), graph)
    deep = copy.deepcopy(graph)
    assert same(deep, graph)
    assert deep.rowptr.data_ptr() != graph.rowptr.data_ptr()


def test_to_a_device() -> None:
    graph = GRAPHS["self_loops_replaced"]()
    assert graph.to("cpu") is graph
    moved = graph.to("meta")
    assert moved.device == torch.device("meta")
    assert {getattr(moved, name).device.type for name in ARRAYS} == {"meta"}
    assert (moved.num_edges, moved.self_loops) == (graph.num_edges, True)


def test_number_of_nodes() -> None:
    edges = torch.tensor([[0, 2], [1, 1]])
    assert Graph.from_edge_index(edges, 4).num_nodes == 4
    with pytest.raises(ValueError, match=r"num_nodes: the graph has 3 source and 2 destination"):
        Graph.from_edge_index(edges, (3, 2)).num_nodes  # noqa: B018


def test_repr() -> None:
    bipartite = Graph.from_edge_index(torch.tensor([[0], [1]]), (2, 3))
    assert repr(bipartite) == "Graph(num_src=2, num_dst=3, num_edges=1, device='cpu')"
    looped = Graph.from_edge_index(torch.tensor([[0], [1]]), 2, self_loops=True)
    assert repr(looped) == "Graph(num_src=2, num_dst=2, num_edges=3, self_loops=True, device='cpu')"


def test_cache_remembers_a_tensor() -> None:
    edge_index = torch.tensor([[0, 1], [1, 2]])
    graph = cached_graph(edge_index, 3)
    assert cached_graph(edge_index, 3) is graph
    assert cached_graph(edge_index, 3, True) is not graph
    assert cached_graph(edge_index, (3, 4)).num_dst == 4
    assert cached_graph(edge_index, 3) is graph
    assert cached_graph(edge_index.clone(), 3) is not graph


def test_cache_notices_a_change_in_place() -> None:
    edge_index = torch.tensor([[0, 1], [1, 2]])
    cached_graph(edge_index, 3)
    edge_index[0, 0] = 2
    assert cached_graph(edge_index, 3).edge_index.tolist() == [[2, 1], [1, 2]]
    view = edge_index[1]
    view[1] = 0
    assert cached_graph(edge_index, 3).edge_index.tolist() == [[2, 1], [1, 0]]
    edge_index.data = torch.tensor([[0, 0], [2, 1]])
    assert cached_graph(edge_index, 3).edge_index.tolist() == [[0, 0], [2, 1]]


def test_cache_forgets_a_dead_tensor() -> None:
    edge_index = torch.tensor([[0, 1], [1, 2]])
    graph = weakref.ref(cached_graph(edge_index, 3))
    gc.collect()
    assert graph() is not None
    del edge_index
    gc.collect()
    assert graph() is None


def test_cache_is_not_fooled_by_a_reused_address() -> None:
    for place in range(2000):  # freed objects' addresses come back sooner or later
        node = place % 60
        edge_index = torch.tensor([[node], [0]])
        assert cached_graph(edge_index, 60).col.tolist() == [node]
        del edge_index


def test_cache_lets_inference_tensors_pass() -> None:
    with torch.inference_mode():
        edge_index = torch.tensor([[0, 1], [1, 2]])
        assert cached_graph(edge_index, 3).edge_index.tolist() == [[0, 1], [1, 2]]
        edge_index[0, 0] = 2
        assert cached_graph(edge_index, 3).edge_index.tolist() == [[2, 1], [1, 2]]


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("shape", [(7, 7), (9, 4), (4, 9)], ids=str)
def test_edges_by_source_are_built_when_asked_for(shape: tuple[int, int], self_loops: bool) -> None:
    edge_index = torch.stack([torch.randint(0, shape[0], (60,)), torch.randint(0, shape[1], (60,))])
    at_once = Graph.from_edge_index(edge_index, shape, self_loops)
    with torch.no_grad():
        later = Graph.from_edge_index(edge_index, shape, self_loops)
    assert "colptr" in at_once.__dict__
    assert "colptr" not in later.__dict__
    assert "colptr" not in later.to("meta").__dict__
    edge_index.zero_()
    assert same(copy.deepcopy(later), at_once)
    assert same(pickle.loads(pickle.dumps(later)), at_once)
    assert same(later, at_once)
    assert "colptr" in later.__dict__
    with pytest.raises(AttributeError, match="'Graph' object has no attribute 'columns'"):
        later.columns  # noqa: B018


def test_a_graph_made_without_gradients_serves_a_backward() -> None:
    edge_index = torch.randint(0, 9, (2, 40))
    layer, x = GATConv(3, 4), torch.randn(9, 3)
    with torch.no_grad():
        expected = layer(x, edge_index)
    out = layer(x, edge_index)
    assert torch.equal(out, expected)
    found = torch.autograd.grad(out.sum(), layer.lin.weight)
    again = torch.autograd.grad(layer(x, edge_index.clone()).sum(), layer.lin.weight)
    assert torch.equal(*found, *again)


def test_edge_ids_are_sorted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers ask for them at every call that returns attention."""
    graph = GRAPHS["self_loops_replaced"]()
    first = graph.edge_index, graph.used_edge_ids()
    monkeypatch.setattr(torch, "argsort", None)
    assert torch.equal(graph.edge_index, first[0])
    assert torch.equal(graph.used_edge_ids(), first[1])
    first[0].zero_()  # what a caller does with them is none of the graph's business
    assert graph.edge_index.any()
