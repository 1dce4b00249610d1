"""The public operators: check the inputs, choose a backend, apply."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gatkernels import backends
from gatkernels.graph import Graph
from gatkernels.ops import autograd, checks, library, philox, transforms
from gatkernels.ops.autograd import DotOptions, Options
from gatkernels.ops.call import DotInputs, GatInputs, RowwiseInputs
from gatkernels.ops.compact import compact, only_loops


def _promote(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """Under autocast, mixed dtypes come to the widest, as in torch's own arithmetic."""
    device = x.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return x, *others
    dtypes = {t.dtype for t in (x, *others) if t is not None}
    if len(dtypes) == 1:
        return x, *others
    widest = torch.float64 if torch.float64 in dtypes else torch.float32
    return tuple(None if t is None else t.to(widest) for t in (x, *others))


def _fold(x: Tensor) -> Tensor:
    """``[B, N, H, ...] -> [N, B * H, ...]``: graphs of a static batch are more heads."""
    return x.transpose(0, 1).flatten(1, 2)


def _unfold(x: Tensor, batch: int) -> Tensor:
    graphs: Tensor = x.unflatten(1, (batch, -1)).transpose(0, 1)
    return graphs


def _result(*results: Tensor | None, batch: int | None = None) -> Any:
    """What a public operator returns: the results there are; ``batch`` graphs unfolded."""
    found = [t for t in results if t is not None]
    if batch is not None:
        found = [_unfold(t, batch) for t in found]
    return found[0] if len(found) == 1 else tuple(found)


def gat_attention(
    graph: Graph,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    return_attention: bool = False,
    backend: str = "auto",
) -> Any:
    r"""Graph attention (GAT, Velickovic et al., ICLR 2018) in one pass over the graph.

    For an edge ``e`` from ``j`` to ``i``::

        s_e     = score_src[j] + score_dst[i] + edge_score[e]
        alpha_e = softmax of leaky_relu(s_e) over the edges into i
        out_i   = sum_e alpha_e * m_e * x[j]        m_e: 0 or 1 / (1 - dropout)

    Several feature sets on one graph (a static batch) come with one more dimension in front:
    ``x [batch, num_src, heads, channels]``, scores and results alike.

    Args:
        graph: The edges, ``num_src`` sources to ``num_dst`` destinations.
        x: Features ``[num_src, heads, channels]``, float32, float64, bfloat16 or float16. Sums
            and softmax are in float32, and in float64 for float64.
        score_src: ``[num_src, heads]``, dtype of ``x``.
        score_dst: ``[num_dst, heads]``, dtype of ``x``; None stands for zeros.
        edge_score: ``[num_edges, heads]`` in the user's edge order, dtype of ``x``.
        negative_slope: Slope of the LeakyReLU for ``s_e <= 0``.
        dropout: Probability of dropping an attention weight, drawn from torch's generator.
        return_attention: Also return ``alpha``.
        backend: "auto" or the name of one, see ``gatkernels info``.

    Returns:
        ``out [num_dst, heads, channels]``; zero rows where a node has no incoming edge. With
        ``return_attention`` also ``alpha [num_edges, heads]`` in the user's edge order, after
        dropout. Both are differentiable, twice as well.

    Raises:
        TypeError: An argument of the wrong type or dtype.
        ValueError: A wrong shape, device, probability or backend name.
        BackendUnavailable: The backend asked for cannot run here; the message says why.
    """
    op = "gat_attention"
    checks.dense(op, "x", x)
    checks.tensor(op, "score_src", score_src)
    x, score_src, score_dst, edge_score = _promote(x, score_src, score_dst, edge_score)
    options = Options(negative_slope, dropout, return_attention, backend)
    if x.dim() == 4:
        batch = x.shape[0]
        checks.batch(op, batch, score_src=score_src, score_dst=score_dst, edge_score=edge_score)
        folded = [None if t is None else _fold(t) for t in (x, score_src, score_dst, edge_score)]
        return _result(*_gat(op, graph, folded, options), batch=batch)
    inputs = [x, score_src, score_dst, edge_score]
    return _result(*_gat(op, graph, inputs, options))


def gat_attention_of_features(
    graph: Graph,
    x: Tensor,
    att_src: Tensor,
    att_dst: Tensor | None = None,
    score_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    return_attention: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """:func:`gat_attention` with scores of the features, ``score_src = <x, att_src>`` per head.

    Args:
        graph, x, edge_score, negative_slope, dropout, return_attention, backend: As there.
        att_src: ``[1, heads, channels]``.
        att_dst: The same for ``score_dst``, on a graph whose sources are its destinations.
        score_dst: ``[num_dst, heads]``, without ``att_dst``; zeros where both are None.

    Returns:
        ``out [num_dst, heads, channels]``, and ``alpha [num_edges, heads]`` or None.
    """
    op = "gat_attention_of_features"
    options = Options(negative_slope, dropout, return_attention, backend)
    x, att_src, att_dst, score_dst, edge_score = _promote(
        x, att_src, att_dst, score_dst, edge_score
    )
    inputs = [x, None, score_dst, edge_score]
    found: tuple[Tensor, Tensor | None] = _gat(op, graph, inputs, options, (att_src, att_dst))
    return found


def _select(op: str, backend: str, x: Tensor) -> str:
    if library.exporting_to_onnx():
        return "reference"
    return backends.select(op, backend, backends.Case(x.device, x.dtype))


def _choose(op: str, options: Options, x: Tensor) -> tuple[Options, Tensor | None]:
    """``options``, checked, with the backend that is to run the call on ``x``; dropout's seed."""
    checks.number(op, "negative_slope", options.negative_slope)
    checks.probability(op, options.dropout)
    backend = _select(op, options.backend, x)
    if backend != options.backend:
        options = options._replace(backend=backend)
    return options, _seed(options, x)


def _seed(options: Options | DotOptions, x: Tensor) -> Tensor | None:
    if options.dropout == 0.0:
        return None
    draw = transforms.draw_seed if transforms.active() else philox.draw_seed
    return draw(x.device)


def _apply(
    name: str, graph: Graph, inputs: Any, options: Options | DotOptions, seed: Tensor | None
) -> Any:
    """The results, by the backend that was chosen, or as transforms want it."""
    x = inputs[0]
    if graph.attend is not None:
        found = graph.attend(name, inputs, options, seed)
    elif options.backend == "reference":
        found = autograd.OPERATORS[name].formula(graph, inputs, options.scoring(seed))
    elif transforms.active():
        found = transforms.attend(transforms.Call(name, graph, options), inputs, seed)
    else:
        found = autograd.attend(name, graph, inputs, options, seed)
    *outs, alpha = found
    return *outs, alpha.to(x.dtype) if alpha is not None and options.return_attention else None


def _gat(
    op: str,
    graph: Graph,
    inputs: list[Any],
    options: Options,
    atts: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Any:
    x, score_src, score_dst, edge_score = inputs
    checks.gat_inputs(op, graph, x, score_src, score_dst, edge_score, atts)
    options, seed = _choose(op, options, x)
    if options.backend == "reference" or transforms.active():
        score_src, score_dst = _scores_of(x, atts[0], score_src), _scores_of(x, atts[1], score_dst)
        atts = None, None
    if options.backend == "reference":
        record = GatInputs(x, score_src, score_dst, edge_score, *atts)
        return _apply("gat", graph, record, options, seed)
    if score_dst is None and atts[1] is None:
        score_dst = x.new_zeros(1, x.shape[1]).expand(graph.num_dst, -1)
    scores = [score_src, score_dst, edge_score, *atts]
    sums = checks.SUM_DTYPES[x.dtype]
    if sums != x.dtype:
        scores = [None if t is None else t.to(sums) for t in scores]
    few = compact(graph)
    if few is None or not only_loops(graph, options, *scores, None if atts[0] is None else x):
        return _apply("gat", graph, GatInputs(x, *scores), options, seed)
    src, dst, edge, *vectors = scores
    rows = few.of_sources(x), few.of_sources(src), few.of_destinations(dst)
    record = GatInputs(*rows, few.of_edges(edge), *vectors)
    out, alpha = _apply("gat", few.graph, record, options, seed)
    return few.spread(out, x, graph.num_dst), alpha


def _scores_of(x: Tensor, att: Tensor | None, score: Tensor | None) -> Tensor | None:
    if att is None:
        return score
    sums = checks.SUM_DTYPES[x.dtype]
    return (x.to(sums) * att.to(sums)).sum(-1).to(x.dtype)


def gatv2_attention(
    graph: Graph,
    x_src: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None = None,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    return_attention: bool = False,
    backend: str = "auto",
) -> Any:
    r"""GATv2 attention (Brody, Alon, Yahav, ICLR 2022) in one pass over the graph.

    For an edge ``e`` from ``j`` to ``i``::

        l_e     = sum_c att[c] * leaky_relu(x_src[j] + x_dst[i] + edge[e])[c]
        alpha_e = softmax of l_e over the edges into i
        out_i   = sum_e alpha_e * m_e * x_src[j]    m_e: 0 or 1 / (1 - dropout)

    A static batch comes with one more dimension in front of ``x_src``, ``x_dst``, ``edge`` and of
    the results.

    Args:
        graph: The edges, ``num_src`` sources to ``num_dst`` destinations.
        x_src: ``[num_src, heads, channels]``, float32, float64, bfloat16 or float16.
        x_dst: ``[num_dst, heads, channels]``, dtype of ``x_src``.
        att: ``[heads, channels]``, dtype of ``x_src``.
        edge: ``[num_edges, heads, channels]`` in the user's edge order, dtype of ``x_src``.
        negative_slope, dropout, return_attention, backend: As in :func:`gat_attention`.

    Returns:
        ``out [num_dst, heads, channels]``, and ``alpha [num_edges, heads]`` where asked for.

    Raises:
        TypeError, ValueError, BackendUnavailable: As in :func:`gat_attention`.
    """
    options = Options(negative_slope, dropout, return_attention, backend)
    return _rowwise("gatv2", graph, (x_src, x_dst, att, edge), options)


def _rowwise(scorer: str, graph: Graph, given: tuple[Any, ...], options: Options) -> Any:
    """An attention whose scores read the rows ``x_src``, ``x_dst``, ``att`` and ``edge``."""
    op = f"{scorer}_attention"
    x_src, x_dst, att, _ = given
    checks.dense(op, "x_src", x_src)
    checks.tensor(op, "x_dst", x_dst)
    checks.tensor(op, "att", att)
    x_src, x_dst, att, edge = _promote(*given)
    if x_src.dim() != 4:
        inputs = RowwiseInputs(x_src, x_dst, att, edge)
        return _result(*_rowwise_of_one(op, scorer, graph, inputs, options))
    batch = x_src.shape[0]
    checks.batch(op, batch, x_dst=x_dst, edge=edge)
    rest = None if edge is None else _fold(edge)
    inputs = RowwiseInputs(_fold(x_src), _fold(x_dst), att.repeat(batch, 1), rest)
    return _result(*_rowwise_of_one(op, scorer, graph, inputs, options), batch=batch)


def _rowwise_of_one(
    op: str, scorer: str, graph: Graph, inputs: RowwiseInputs, options: Options
) -> Any:
    checks.rowwise_inputs(op, graph, *inputs)
    x_src, x_dst, att, edge = inputs
    options, seed = _choose(op, options, x_src)
    if options.backend == "reference":
        return _apply(scorer, graph, inputs, options, seed)
    att = att.to(checks.SUM_DTYPES[x_src.dtype])
    few = compact(graph)
    if few is None or not only_loops(graph, options, x_src, x_dst, att, edge):
        return _apply(scorer, graph, RowwiseInputs(x_src, x_dst, att, edge), options, seed)
    rows = few.of_sources(x_src), few.of_destinations(x_dst)
    inputs = RowwiseInputs(*rows, att, few.of_edges(edge))
    out, alpha = _apply(scorer, few.graph, inputs, options, seed)
    return few.spread(out, x_src, graph.num_dst), alpha


def dot_attention(
    graph: Graph,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge: Tensor | None = None,
    edge_query: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    return_attention: bool = False,
    backend: str = "auto",
) -> Any:
    r"""Attention by dot products (Vaswani et al., NeurIPS 2017; on graphs Shi et al., IJCAI 2021).

    For an edge ``e`` from ``j`` to ``i``::

        l_e        = scale * (<q[i], k[j]> + <edge_query[i], edge[e]>)
        alpha_e    = softmax of l_e over the edges into i
        out_i      = sum_e alpha_e * m_e * v[j]       m_e: 0 or 1 / (1 - dropout)
        edge_out_i = sum_e alpha_e * m_e * edge[e]

    Edge features of a layer that adds a projection ``W edge[e]`` to keys and values need not be
    projected: ``<q, k + W e> = <q, k> + <W^T q, e>``, and ``sum alpha (v + W e)`` is
    ``out + W edge_out``, so that nothing of size ``num_edges x heads x channels`` is made.

    A static batch comes with one more dimension in front of ``q``, ``k``, ``v``, ``edge_query`` and
    of the results; its members share ``edge``.

    Args:
        graph: The edges, ``num_src`` sources to ``num_dst`` destinations.
        q: Queries ``[num_dst, heads, channels]``, float32, float64, bfloat16 or float16.
        k: Keys ``[num_src, heads, channels]``, dtype of ``q``.
        v: Values ``[num_src, heads, value_channels]``, dtype of ``q``.
        edge: Features ``[num_edges, features]`` in the user's edge order, which all heads share,
            dtype of ``q``.
        edge_query: ``[num_dst, heads, features]``, with ``edge``, dtype of ``q``.
        scale: Of the dot products; None stands for ``1 / sqrt(channels)``.
        dropout, return_attention, backend: As in :func:`gat_attention`.

    Returns:
        ``out [num_dst, heads, value_channels]``, with ``edge`` also ``edge_out
        [num_dst, heads, features]``, with ``return_attention`` also ``alpha [num_edges, heads]``,
        in this order: a tuple where there is more than one. Zero rows where a node has no incoming
        edge. All are differentiable, twice as well.

    Raises:
        TypeError, ValueError, BackendUnavailable: As in :func:`gat_attention`.
    """
    op = "dot_attention"
    checks.dense(op, "q", q)
    checks.tensor(op, "k", k)
    checks.tensor(op, "v", v)
    q, k, v, edge, edge_query = _promote(q, k, v, edge, edge_query)
    how = scale, dropout, return_attention, backend
    if q.dim() != 4:
        return _result(*_dot(op, graph, DotInputs(q, k, v, edge, edge_query), *how))
    batch = q.shape[0]
    checks.batch(op, batch, k=k, v=v, edge_query=edge_query)
    query = None if edge_query is None else _fold(edge_query)
    inputs = DotInputs(_fold(q), _fold(k), _fold(v), edge, query)
    return _result(*_dot(op, graph, inputs, *how), batch=batch)


def _dot(
    op: str,
    graph: Graph,
    inputs: DotInputs,
    scale: float | None,
    dropout: float,
    return_attention: bool,
    backend: str,
) -> Any:
    checks.dot_inputs(op, graph, *inputs)
    q, k, v, edge, edge_query = inputs
    if scale is None:
        scale = 1.0 / math.sqrt(max(q.shape[2], 1))
    checks.number(op, "scale", scale)
    checks.probability(op, dropout)
    options = DotOptions(scale, dropout, return_attention, _select(op, backend, q))
    seed = _seed(options, q)
    few = None if options.backend == "reference" or graph.self_loops else compact(graph)
    if few is None:
        return _apply("dot", graph, inputs, options, seed)
    rows = few.of_destinations(q), few.of_sources(k), few.of_sources(v)
    inputs = DotInputs(*rows, few.of_edges(edge), few.of_destinations(edge_query))
    *outs, alpha = _apply("dot", few.graph, inputs, options, seed)
    spread = (None if t is None else few.spread(t, t, graph.num_dst) for t in outs)
    return *spread, alpha


def attention_weights(
    graph: Graph,
    score_src: Tensor,
    score_dst: Tensor | None = None,
    edge_score: Tensor | None = None,
    *,
    negative_slope: float = 0.2,
    dropout: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """``alpha [num_edges, heads]`` of :func:`gat_attention`, without the aggregation.

    Args, raises: As in :func:`gat_attention`.
    """
    op = "attention_weights"
    checks.tensor(op, "score_src", score_src)
    checks.graph_argument(op, graph)
    checks.shape(op, "score_src", score_src, num_src=graph.num_src, heads=None)
    no_features = score_src.new_empty(*score_src.shape, 0)
    inputs = [no_features, score_src, score_dst, edge_score]
    alpha: Tensor
    _, alpha = _gat(op, graph, inputs, Options(negative_slope, dropout, True, backend))
    return alpha
