"""Every rejection: its type, and a message that names the argument and what was wrong with it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gatkernels import BackendUnavailable, Graph, backends, gat_attention
from gatkernels.backends import BACKENDS, Case, explain, supports
from gatkernels.graph import cached_graph
from gatkernels.nn import GATConv, GATv2Conv, TransformerConv

EDGES = torch.tensor([[0, 1, 4, 4], [1, 0, 2, 1]])
GRAPH = Graph.from_edge_index(EDGES, (5, 3))  # 5 sources, 3 destinations, 4 edges
T, V = TypeError, ValueError
NAMES = ", ".join(("auto", *BACKENDS))
Rejections = list[tuple[Any, type[Exception], str]]


def ones(*size: int, **options: Any) -> torch.Tensor:
    return torch.ones(*size, **options)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def edges(*pairs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(pairs).t()


def cases(rejections: Rejections) -> Any:
    names = [f"{place}-{message.split()[0]}" for place, (*_, message) in enumerate(rejections)]
    return pytest.mark.parametrize(("given", "error", "message"), rejections, ids=names)


def attend(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "graph": GRAPH,
        "x": ones(5, 2, 6),
        "score_src": ones(5, 2),
        "score_dst": ones(3, 2),
        "edge_score": ones(4, 2),
    }
    return gat_attention(**(arguments | changes))


X = "'x' must have shape [num_src, heads, channels] with num_src=5, got "
SRC = "'score_src' must have shape [num_src, heads] with num_src=5, heads="
DST = "'score_dst' must have shape [num_dst, heads] with num_dst=3, heads=2, got "
EDGE = "'edge_score' must have shape [num_edges, heads] with num_edges=4, heads=2, got "


@cases(
    [
        (
            {"graph": EDGES},
            T,
            "'graph' must be a gatkernels.Graph, got Tensor; build one with Graph",
        ),
        ({"graph": None}, T, "'graph' must be a gatkernels.Graph, got NoneType"),
        ({"x": [[1.0]]}, T, "'x' must be a torch.Tensor, got list"),
        ({"x": ones(5, 2, 6).half()}, T, "'score_src' must have the dtype of 'x' (torch.float16)"),
        (
            {"x": ones(5, 2, 6).long()},
            T,
            "'x' must have dtype float32, float64, bf",
        ),
        (
            {"x": ones(5, 2, 6).cfloat()},
            T,
            "'x' must have dtype float32, float64, bf",
        ),
        ({"x": ones(5, 2, 6).to_sparse()}, T, "'x' must be a dense tensor"),
        ({"x": ones(5, 12)}, V, X + "(5, 12)"),
        (
            {"x": ones(5, 5, 2, 6)},
            V,
            "'score_src' must begin with the batch size 5 of the features, got",
        ),
        ({"x": ones(5, 2, 3, 2, 1)}, V, X + "(5, 2, 3, 2, 1)"),
        ({"x": ones(4, 2, 6)}, V, X + "(4, 2, 6)"),
        ({"x": ones(3, 2, 6)}, V, X + "(3, 2, 6)"),
        ({"x": ones(5, 3, 6)}, V, SRC + "3, got (5, 2)"),
        ({"x": ones(5, 2, 6).double()}, T, "'score_src' must have the dtype of 'x' (torch.float64"),
        (
            {"x": ones(5, 2, 6, device="meta")},
            V,
            "'x' must be on the device of the graph (cpu), got meta",
        ),
        (
            {"graph": GRAPH.to("meta")},
            V,
            "'x' must be on the device of the graph (meta), got cpu",
        ),
        ({"score_src": None}, T, "'score_src' must be a torch.Tensor, got NoneType"),
        ({"score_src": 1.0}, T, "'score_src' must be a torch.Tensor, got float"),
        ({"score_src": ones(5)}, V, SRC + "2, got (5,)"),
        ({"score_src": ones(5, 2, 1)}, V, SRC + "2, got (5, 2, 1)"),
        ({"score_src": ones(3, 2)}, V, SRC + "2, got (3, 2)"),
        ({"score_src": ones(5, 1)}, V, SRC + "2, got (5, 1)"),
        (
            {"score_src": ones(5, 2).int()},
            T,
            "'score_src' must have dtype float32,",
        ),
        ({"score_src": ones(5, 2).double()}, T, "'score_src' must have the dtype of 'x'"),
        ({"score_src": ones(5, 2, device="meta")}, V, "'score_src' must be on the device of"),
        ({"score_src": ones(5, 2).to_sparse()}, T, "'score_src' must be a dense tensor"),
        ({"score_dst": [1.0]}, T, "'score_dst' must be a torch.Tensor, got list"),
        ({"score_dst": ones(3)}, V, DST + "(3,)"),
        ({"score_dst": ones(5, 2)}, V, DST + "(5, 2)"),
        ({"score_dst": ones(3, 4)}, V, DST + "(3, 4)"),
        ({"score_dst": ones(3, 2).double()}, T, "'score_dst' must have the dtype of 'x'"),
        ({"score_dst": ones(3, 2, device="meta")}, V, "'score_dst' must be on the device of"),
        ({"edge_score": (1.0,)}, T, "'edge_score' must be a torch.Tensor, got tuple"),
        ({"edge_score": ones(4)}, V, EDGE + "(4,)"),
        ({"edge_score": ones(5, 2)}, V, EDGE + "(5, 2)"),
        ({"edge_score": ones(4, 1)}, V, EDGE + "(4, 1)"),
        ({"edge_score": ones(4, 2).double()}, T, "'edge_score' must have the dtype of 'x'"),
        ({"edge_score": ones(4, 2, device="meta")}, V, "'edge_score' must be on the device of"),
        ({"dropout": -0.1}, V, "'dropout' must be a probability between 0 and 1, got -0.1"),
        ({"dropout": 1.5}, V, "'dropout' must be a probability between 0 and 1, got 1.5"),
        ({"dropout": float("nan")}, V, "'dropout' must be a probability between 0 and 1, got nan"),
        ({"dropout": "0.5"}, T, "'dropout' must be a number, got str"),
        ({"dropout": None}, T, "'dropout' must be a number, got NoneType"),
        ({"negative_slope": "0.2"}, T, "'negative_slope' must be a number, got str"),
        ({"negative_slope": None}, T, "'negative_slope' must be a number, got NoneType"),
        ({"backend": "gpu"}, V, f"'backend' must be one of {NAMES}, got 'gpu'"),
        ({"backend": None}, V, f"'backend' must be one of {NAMES}, got 'None'"),
    ]
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gat_attention_rejects(
    given: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    with pytest.raises(error, match=re.escape("gat_attention: " + message)):
        attend(**({"backend": backend} | given))


def test_the_call_that_is_perturbed_works() -> None:
    assert attend(backend="cpu").shape == (3, 2, 6)


@cases(
    [
        (([[0], [1]], 2), T, "'edge_index' must be a torch.Tensor, got list"),
        ((ones(2, 3), 2), T, "'edge_index' must have dtype int32 or int64, got torch.float32"),
        ((ones(2, 3).bool(), 2), T, "'edge_index' must have dtype int32 or int64, got torch.bool"),
        (
            (ones(2, 3).short(), 2),
            T,
            "'edge_index' must have dtype int32 or int64, got torch.int16",
        ),
        ((ids(0, 1), 2), V, "'edge_index' must have shape [2, num_edges], got (2,)"),
        ((ones(3, 2).long(), 2), V, "'edge_index' must have shape [2, num_edges], got (3, 2)"),
        (
            (EDGES.to_sparse(), 5),
            T,
            "'edge_index' must be a dense tensor, got layout torch.sparse_c",
        ),
        ((edges((0, 0), (-7, 0)), 2), V, "'edge_index[0]' holds node id -7 at position 1, but ids"),
        ((edges((0, 1), (0, 0), (0, 2)), 2), V, "'edge_index[1]' holds node id 2 at position 2, "),
        ((edges((0, 4), (4, 0)), (5, 3)), V, "'edge_index[1]' holds node id 4 at position 0, but "),
        (
            (edges((0, 1), (1, 3)).int(), 3),
            V,
            "'edge_index[1]' holds node id 3 at position 1, but ",
        ),
        (
            (edges((0, 1), (2**31, 1)), 3),
            V,
            "'edge_index[0]' holds node id 2147483648 at position 1",
        ),
        (
            (edges((0, 1), (-1, 1)),),
            V,
            "'edge_index[0]' holds node id -1 at position 1, but ids mus",
        ),
        (
            (edges((0, 1), (2**40, 1)),),
            V,
            "'edge_index[0]' holds node id 1099511627776 at position 1",
        ),
        (
            (edges((0, 0)), 0),
            V,
            "'edge_index[0]' holds node id 0 at position 0, but ids must lie in",
        ),
        ((EDGES, 2.0), T, "'num_nodes' must be an int, got float"),
        ((EDGES, True), T, "'num_nodes' must be an int, got bool"),
        ((EDGES, "5"), T, "'num_nodes' must be an int, got str"),
        ((EDGES, (5, None)), T, "'num_nodes[1]' must be an int, got NoneType"),
        ((EDGES, (5,)), V, "'num_nodes' must be an int or (num_src, num_dst), got (5,)"),
        ((EDGES, -1), V, "'num_nodes' must not be negative, got -1"),
        ((EDGES, (5, -2)), V, "'num_nodes[1]' must not be negative, got -2"),
        ((EDGES, 2**31), V, "'num_nodes' must be below 2^31, got 2147483648"),
    ]
)
def test_from_edge_index_rejects(
    given: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape("Graph.from_edge_index: " + message)):
        Graph.from_edge_index(*given)


@cases(
    [
        (([0, 1], ids(0)), T, "'rowptr' must be a torch.Tensor, got list"),
        ((ids(0, 1), None), T, "'col' must be a torch.Tensor, got NoneType"),
        ((ones(2), ids(0)), T, "'rowptr' must have dtype int32 or int64, got torch.float32"),
        ((ids(0, 1), ones(1)), T, "'col' must have dtype int32 or int64, got torch.float32"),
        ((EDGES, ids(0)), V, "'rowptr' must have one dimension, got shape (2, 4)"),
        ((ids(0, 1), EDGES), V, "'col' must have one dimension, got shape (2, 4)"),
        (
            (ids(0, 1).to("meta"), ids(0)),
            V,
            "'rowptr' must be on the device of 'col' (cpu), got meta",
        ),
        ((ids(), ids()), V, "'rowptr' must have shape [num_dst + 1], got (0,)"),
        (
            (ids(1, 2), ids(0, 0)),
            V,
            "'rowptr' must rise from 0 to len(col)=2 without falling, got ",
        ),
        (
            (ids(0, 1), ids(0, 0)),
            V,
            "'rowptr' must rise from 0 to len(col)=2 without falling, got ",
        ),
        (
            (ids(0, 2, 1, 2), ids(0, 0)),
            V,
            "'rowptr' must rise from 0 to len(col)=2 without falling",
        ),
        (
            (ids(0, 1, 2), ids(0, 2)),
            V,
            "'col' holds node id 2 at position 1, but ids must lie in [0",
        ),
        (
            (ids(0, 1), ids(-1)),
            V,
            "'col' holds node id -1 at position 0, but ids must lie in [0, 1)",
        ),
        ((ids(0, 1), ids(0), -1), V, "'num_src' must not be negative, got -1"),
        ((ids(0, 1), ids(0), 1.0), T, "'num_src' must be an int, got float"),
    ]
)
def test_from_csr_rejects(given: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape("Graph.from_csr: " + message)):
        Graph.from_csr(*given)


@cases(
    [
        (3, T, "'adjacency' must be a torch.Tensor, got int"),
        (
            torch.eye(2),
            T,
            "'adjacency' must be a sparse COO, CSR or CSC tensor, got layout torch.st",
        ),
        (
            ones(2, 2, 2).to_sparse(),
            V,
            "'adjacency' must have shape [num_dst, num_src], got (2, 2, ",
        ),
    ]
)
def test_from_torch_sparse_rejects(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape("Graph.from_torch_sparse: " + message)):
        Graph.from_torch_sparse(given)


@pytest.mark.parametrize("place", [0, 99_999, 100_000, 199_999])
@pytest.mark.parametrize("side", [0, 1])
def test_a_bad_id_is_found_by_every_thread(place: int, side: int) -> None:
    edge_index = torch.zeros(2, 200_000, dtype=torch.int64)
    edge_index[side, place] = 50
    with pytest.raises(ValueError, match=rf"\[{side}\]' holds node id 50 at position {place},"):
        Graph.from_edge_index(edge_index, 50)


def test_a_bad_graph_is_not_cached() -> None:
    edge_index = EDGES.clone()
    for _ in range(2):
        with pytest.raises(ValueError, match="holds node id 4"):
            cached_graph(edge_index, 3)
    edge_index[0] = 0
    assert cached_graph(edge_index, 3).num_edges == 4


def test_an_explicit_backend_never_falls_back() -> None:
    graph = GRAPH.to("meta")
    x, score = ones(5, 2, 6, device="meta"), ones(5, 2, device="meta")
    message = "backend 'cpu' cannot run this: runs on CPU tensors, got device meta"
    with pytest.raises(BackendUnavailable, match=message):
        gat_attention(graph, x, score, backend="cpu")
    assert issubclass(BackendUnavailable, RuntimeError)


def test_triton_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the backend says what to install; its kernels are imported on first use."""
    command = "import sys, gatkernels; sys.exit('gatkernels.backends.triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
    monkeypatch.setattr(backends, "_TRITON_MISSING", True)
    cuda = Case(torch.device("cuda"), torch.float32)
    assert supports("triton", cuda) == "the package triton is missing: pip install triton"


def test_every_backend_explains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_TRITON_MISSING", False)
    reasons = dict(explain())
    assert set(reasons) == set(BACKENDS)
    assert reasons["cpu"] is None
    assert reasons["reference"] is None
    assert reasons["triton"] == "runs on CUDA and HIP devices, got device cpu"
    meta = Case(torch.device("meta"), torch.float32)
    assert supports("cpu", meta) == "runs on CPU tensors, got device meta"
    assert supports("reference", meta) is None


@cases(
    [
        (
            lambda layer: layer((ones(3, 4), None), EDGES),
            V,
            "GATConv: 'size' must be given where x",
        ),
        (lambda layer: layer(ones(3, 4), EDGES), V, "'edge_index[0]' holds node id 4"),
        (
            lambda layer: layer(ones(5, 4), [[0], [1]]),
            T,
            "'edge_index' must be a torch.Tensor, got",
        ),
        (
            lambda layer: layer(ones(5, 4), EDGES.float()),
            T,
            "'edge_index' must have dtype int32 or",
        ),
        (
            lambda layer: layer(ones(4, 4), GRAPH),
            V,
            "'x' must have shape [num_nodes, in_channels] with num_nodes=5, in_channels=4, g",
        ),
        (
            lambda layer: layer(ones(5, 3), EDGES),
            V,
            "GATConv: 'x' must have shape [num_nodes, in_channels] with in_channels=4, got (5, 3)",
        ),
        (
            lambda layer: layer(ones(2, 5, 4), EDGES),
            V,
            "'x' must have shape [num_nodes, in_channels] with in_channels=4, got (2, 5, 4)",
        ),
        (
            lambda layer: layer((ones(5, 4), ones(5, 3)), EDGES),
            V,
            "GATConv: 'x[1]' must have shape",
        ),
        (lambda layer: layer((ones(5, 4),) * 3, EDGES), V, "(x_src, x_dst), got 3 of them"),
        (lambda layer: layer([[1.0]], EDGES), T, "GATConv: 'x' must be a torch.Tensor, got list"),
        (
            lambda layer: GATConv(4, 2, backend="gpu")(ones(5, 4), EDGES),
            V,
            "'backend' must be one o",
        ),
    ]
)
def test_layer_rejects(
    given: Callable[[GATConv], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        given(GATConv(4, 2))


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": -1}, "'in_channels' must be a size, got -1"),
        ({"in_channels": (4, -1)}, "'in_channels' must be a size, got (4, -1)"),
        ({"out_channels": 0}, "'out_channels' must be a positive int, got 0"),
        ({"heads": -1}, "'heads' must be a positive int, got -1"),
        ({"heads": 2.0}, "'heads' must be a positive int, got 2.0"),
        ({"dropout": 1.5}, "'dropout' must be a probability between 0 and 1, got 1.5"),
    ],
)
def test_layer_rejects_options(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{kind.__name__}: {message}")):
        kind(**{"in_channels": 4, "out_channels": 2, **options})


@pytest.mark.parametrize("kind", [GATv2Conv, TransformerConv])
def test_layer_needs_destinations(kind: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"{kind.__name__}: 'x[1]' must be a torch.Ten")):
        kind(4, 2)((ones(5, 4), None), EDGES)
