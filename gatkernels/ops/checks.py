"""Every error about a user's input, and the table of dtypes.

Checks read metadata only (shape, dtype, device), so they cost no device synchronisation and work
on fake tensors. Index ranges are checked once, when a :class:`gatkernels.Graph` is built.
"""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gatkernels.graph import Graph

#: dtypes the operators take, with the code the compiled kernels know them by.
DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
}
#: Below float64, scores, statistics and sums are float32.
SUM_DTYPES = {d: torch.float64 if d == torch.float64 else torch.float32 for d in DTYPE_CODES}
INDEX_DTYPES = (torch.int32, torch.int64)


def usable_device(name: str) -> torch.device:
    """The device of that name, on which tensors can be made and computed with.

    Raises: ValueError, which says why it cannot be used.
    """
    try:
        device = torch.device(name)
        torch.ones(2, device=device).sum().item()
    except Exception as error:  # each device that is absent has its own kind of error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"--device {name} cannot be used: {lines[0]}") from error
    return device


def tensor(op: str, name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: '{name}' must be a torch.Tensor, got {type(value).__name__}")
    return value


def dense(op: str, name: str, value: Any) -> Tensor:
    tensor(op, name, value)
    if value.layout != torch.strided:
        raise TypeError(f"{op}: '{name}' must be a dense tensor, got layout {value.layout}")
    return value  # type: ignore[no-any-return]


def shape(op: str, name: str, value: Tensor, **sizes: int | None) -> None:
    """``sizes`` names each dimension with the size it must have, None where any will do."""
    have = value.shape
    if len(have) == len(sizes):
        for size, want in zip(have, sizes.values(), strict=True):
            if want is not None and size != want:
                break
        else:
            return
    known = ", ".join(f"{symbol}={size}" for symbol, size in sizes.items() if size is not None)
    raise ValueError(
        f"{op}: '{name}' must have shape [{', '.join(sizes)}] with {known}, got {tuple(have)}"
    )


def same_device(op: str, name: str, value: Tensor, device: torch.device, where: str) -> None:
    if value.device != device:
        raise ValueError(
            f"{op}: '{name}' must be on the device of {where} ({device}), got {value.device}"
        )


def graph_argument(op: str, graph: Any) -> None:
    if not hasattr(graph, "rowptr"):  # Graph's module imports this one
        raise TypeError(
            f"{op}: 'graph' must be a gatkernels.Graph, got {type(graph).__name__}; "
            "build one with Graph.from_edge_index(edge_index, num_nodes)"
        )


def floating(op: str, name: str, value: Tensor, like: Tensor | None, whose: str = "x") -> None:
    if value.dtype not in DTYPE_CODES:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in DTYPE_CODES)
        raise TypeError(f"{op}: '{name}' must have dtype {allowed}, got {value.dtype}")
    if like is not None and value.dtype != like.dtype:
        raise TypeError(
            f"{op}: '{name}' must have the dtype of '{whose}' ({like.dtype}), got {value.dtype}"
        )


def batch(op: str, size: int, **companions: Tensor | None) -> None:
    """Companions of a static batch begin with its size; the rest is checked behind it."""
    for name, value in companions.items():
        if value is None:
            continue
        tensor(op, name, value)
        if value.dim() < 3 or value.shape[0] != size:
            raise ValueError(
                f"{op}: '{name}' must begin with the batch size {size} of the features, "
                f"got {tuple(value.shape)}"
            )


def number(op: str, name: str, value: Any) -> None:
    if not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{op}: '{name}' must be a number, got {type(value).__name__}")


def probability(op: str, value: Any, name: str = "dropout") -> None:
    number(op, name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{op}: '{name}' must be a probability between 0 and 1, got {value}")


def layer_sizes(layer: str, in_channels: Any, **sizes: Any) -> None:
    """``sizes`` are positive; ``in_channels`` may be nothing, and one for each side."""
    for size in in_channels if isinstance(in_channels, (tuple, list)) else (in_channels,):
        if not isinstance(size, Integral) or size < 0:
            raise ValueError(f"{layer}: 'in_channels' must be a size, got {in_channels}")
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{layer}: '{name}' must be a positive int, got {size}")


def gat_inputs(
    op: str,
    graph: Graph,
    x: Tensor,
    score_src: Tensor | None,
    score_dst: Tensor | None,
    edge_score: Tensor | None,
    atts: tuple[Tensor | None, Tensor | None],
) -> None:
    """For ``x`` that is a dense tensor; the others may be anything."""
    graph_argument(op, graph)
    device = graph.device
    floating(op, "x", x, None)
    shape(op, "x", x, num_src=graph.num_src, heads=None, channels=None)
    heads, channels = x.shape[1:]
    same_device(op, "x", x, device, "the graph")
    for name, att in zip(("att_src", "att_dst"), atts, strict=True):
        if att is not None:
            _like_x(op, name, att, x, one=1, heads=heads, channels=channels)
    if atts[0] is None:
        _like_x(op, "score_src", score_src, x, num_src=graph.num_src, heads=heads)
    if atts[1] is not None and graph.num_src != graph.num_dst:
        raise ValueError(
            f"{op}: 'att_dst' needs a graph whose sources are its destinations, "
            f"got num_src={graph.num_src}, num_dst={graph.num_dst}; give features of both sides"
        )
    if atts[1] is not None and score_dst is not None:
        raise ValueError(f"{op}: give 'att_dst' or 'score_dst', not both")
    if score_dst is not None:
        _like_x(op, "score_dst", score_dst, x, num_dst=graph.num_dst, heads=heads)
    if edge_score is not None:
        _like_x(op, "edge_score", edge_score, x, num_edges=graph.num_edges, heads=heads)


def rowwise_inputs(
    op: str, graph: Graph, x_src: Tensor, x_dst: Tensor, att: Tensor, edge: Tensor | None
) -> None:
    graph_argument(op, graph)
    floating(op, "x_src", x_src, None)
    shape(op, "x_src", x_src, num_src=graph.num_src, heads=None, channels=None)
    same_device(op, "x_src", x_src, graph.device, "the graph")
    heads, channels = x_src.shape[1:]
    _like_x(op, "x_dst", x_dst, x_src, num_dst=graph.num_dst, heads=heads, channels=channels)
    _like_x(op, "att", att, x_src, heads=heads, channels=channels)
    if edge is not None:
        sizes = {"num_edges": graph.num_edges, "heads": heads, "channels": channels}
        _like_x(op, "edge", edge, x_src, **sizes)


def dot_inputs(
    op: str,
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge: Tensor | None,
    edge_query: Tensor | None,
) -> None:
    """For ``q`` that is a dense tensor; the others may be anything."""
    graph_argument(op, graph)
    floating(op, "q", q, None)
    shape(op, "q", q, num_dst=graph.num_dst, heads=None, channels=None)
    same_device(op, "q", q, graph.device, "the graph")
    heads, channels = q.shape[1:]
    _like_q(op, "k", k, q, num_src=graph.num_src, heads=heads, channels=channels)
    _like_q(op, "v", v, q, num_src=graph.num_src, heads=heads, channels=None)
    if (edge is None) != (edge_query is None):
        given, missing = ("edge_query", "edge") if edge is None else ("edge", "edge_query")
        raise ValueError(f"{op}: '{given}' was given without '{missing}'; give both or neither")
    if edge is not None:
        _like_q(op, "edge", edge, q, num_edges=graph.num_edges, features=None)
        sizes = {"num_dst": graph.num_dst, "heads": heads, "features": edge.shape[1]}
        _like_q(op, "edge_query", edge_query, q, **sizes)


def _like_q(op: str, name: str, value: Any, q: Tensor, **sizes: int | None) -> None:
    dense(op, name, value)
    shape(op, name, value, **sizes)
    floating(op, name, value, q, "q")
    same_device(op, name, value, q.device, "the graph")


def _like_x(op: str, name: str, value: Any, x: Tensor, **sizes: int | None) -> None:
    """A companion of ``x``: its dtype and device, and a shape of its own."""
    if (
        isinstance(value, Tensor)
        and value.shape == tuple(sizes.values())
        and value.dtype == x.dtype
        and value.device == x.device
        and value.layout == torch.strided
    ):
        return
    dense(op, name, value)
    shape(op, name, value, **sizes)
    floating(op, name, value, x)
    same_device(op, name, value, x.device, "the graph")


def edge_index(op: str, value: Any, name: str = "edge_index") -> None:
    tensor(op, name, value)
    if value.layout != torch.strided:
        raise TypeError(
            f"{op}: '{name}' must be a dense tensor, got layout {value.layout}; "
            "use Graph.from_torch_sparse for sparse adjacencies"
        )
    if value.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: '{name}' must have dtype int32 or int64, got {value.dtype}")
    if value.dim() != 2 or value.shape[0] != 2:
        raise ValueError(f"{op}: '{name}' must have shape [2, num_edges], got {tuple(value.shape)}")


def index_vector(op: str, name: str, value: Any) -> None:
    tensor(op, name, value)
    if value.dtype not in INDEX_DTYPES:
        raise TypeError(f"{op}: '{name}' must have dtype int32 or int64, got {value.dtype}")
    if value.dim() != 1:
        raise ValueError(f"{op}: '{name}' must have one dimension, got shape {tuple(value.shape)}")


def node_count(op: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: '{name}' must be an int, got {type(value).__name__}")
    if torch.compiler.is_compiling():  # a size of a tensor; a bound would be one of the program
        return value  # type: ignore[return-value]
    if value < 0:
        raise ValueError(f"{op}: '{name}' must not be negative, got {value}")
    if value >= 2**31:
        raise ValueError(f"{op}: '{name}' must be below 2^31, got {value}")
    return value  # type: ignore[return-value]


def edge_count(op: str, edge_index: Tensor, num_src: int, num_dst: int) -> None:
    """Where the arrays are built, so that an exported program has no bound on its sizes."""
    if edge_index.shape[1] + min(num_src, num_dst) >= 2**31:
        raise ValueError(f"{op}: 'edge_index' must hold fewer than 2^31 edges, loops included")
    if max(num_src, num_dst) >= 2**31:
        raise ValueError(f"{op}: 'num_nodes' must be below 2^31, got {max(num_src, num_dst)}")


def node_id_out_of_range(op: str, name: str, bad: int, position: int, count: int) -> ValueError:
    return ValueError(
        f"{op}: '{name}' holds node id {bad} at position {position}, "
        f"but ids must lie in [0, {count})"
    )
