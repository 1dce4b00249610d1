"""The registered torch ops: the only file that knows torch.library.

Kernels are reached only through these ops, so that fake tensors never reach a pointer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gatkernels import _checks, _native

_GRAPH = "Tensor rowptr, Tensor col, Tensor eid"
_TRANSPOSE = "Tensor colptr, Tensor row, Tensor ceid"
_SCORES = (
    "Tensor score_src, Tensor score_dst, Tensor? edge_score, float negative_slope, "
    "float dropout, Tensor? seed"
)
_SAVED = "Tensor out, Tensor out_pos, Tensor stats, Tensor? alpha, Tensor grad, Tensor? grad_alpha"

_library = torch.library.Library("gatkernels", "DEF")
_library.define(
    "build_csr(Tensor edge_index, int num_src, int num_dst, bool by_source, bool self_loops)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"gat_forward({_GRAPH}, Tensor x, {_SCORES}, bool training, bool statistics)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(f"gat_alpha({_GRAPH}, {_SCORES}, Tensor stats) -> Tensor")
_library.define(
    f"gat_backward({_GRAPH}, {_TRANSPOSE}, Tensor x, {_SCORES}, {_SAVED})"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    f"gat_packed_backward({_GRAPH}, {_TRANSPOSE}, Tensor packed, int heads, int channels,"
    f" float negative_slope, float dropout, Tensor? seed, {_SAVED}) -> Tensor"
)
_SCORES2 = (
    "Tensor x, Tensor x_dst, Tensor att, Tensor? edge, float negative_slope, float dropout, "
    "Tensor? seed"
)
_library.define(f"gatv2_forward({_GRAPH}, {_SCORES2}, bool statistics) -> (Tensor, Tensor)")
_library.define(f"gatv2_alpha({_GRAPH}, {_SCORES2}, Tensor stats) -> Tensor")
_library.define(
    f"gatv2_backward({_GRAPH}, {_TRANSPOSE}, {_SCORES2}, Tensor out, Tensor stats, Tensor? alpha,"
    " Tensor grad, Tensor? grad_alpha) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _build_csr_torch(
    row: Tensor, other: Tensor, num_rows: int, num_others: int, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from torch ops, on any device; sizes do not depend on the data."""
    row, other = row.long(), other.long()
    if self_loops:
        loops = torch.arange(min(num_rows, num_others), device=row.device)
        row = torch.cat([torch.where(row == other, num_rows, row), loops])
        other = torch.cat([other, loops])
    order = torch.argsort(row, stable=True)
    degree = torch.zeros(num_rows + 1, dtype=torch.int64, device=row.device)
    degree.index_add_(0, row, torch.ones_like(row))
    rowptr = torch.zeros_like(degree)
    torch.cumsum(degree[:-1], 0, out=rowptr[1:])
    return rowptr, other[order].int(), order.int()


def build_csr(
    edge_index: Tensor, num_src: int, num_dst: int, by_source: bool, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.gatkernels.build_csr(
        edge_index, num_src, num_dst, by_source, self_loops
    )
    return result


def _build_csr(
    edge_index: Tensor, num_src: int, num_dst: int, by_source: bool, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    src, dst = edge_index[0], edge_index[1]
    row, other, num_rows, num_others = (
        (src, dst, num_src, num_dst) if by_source else (dst, src, num_dst, num_src)
    )
    if edge_index.device.type == "cpu" and _native.cpu_missing is None:
        rowptr, col, eid, bad = _native.build_csr(row, other, num_rows, num_others, self_loops)
        if bad >= 0:
            _raise_bad_id(edge_index, num_src, num_dst)
        return rowptr, col, eid
    if edge_index.numel() and not by_source:
        low, high = torch.aminmax(edge_index, dim=1)
        limits = torch.tensor([num_src, num_dst], device=edge_index.device)
        if bool(((low < 0) | (high >= limits)).any()):
            _raise_bad_id(edge_index, num_src, num_dst)
    return _build_csr_torch(row, other, num_rows, num_others, self_loops)


def _raise_bad_id(edge_index: Tensor, num_src: int, num_dst: int) -> None:
    for side, count in enumerate((num_src, num_dst)):
        wrong = (edge_index[side] < 0) | (edge_index[side] >= count)
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise _checks.node_id_out_of_range(
                "Graph.from_edge_index",
                f"edge_index[{side}]",
                int(edge_index[side, place]),
                place,
                count,
            )


def _gat_forward(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor,
    edge_score: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    training: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = (score_src, score_dst, edge_score, negative_slope, dropout, seed)
    return _native.gat_forward((rowptr, col, eid), x, scores, training, statistics)


def _gat_alpha(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    score_src: Tensor,
    score_dst: Tensor,
    edge_score: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    stats: Tensor,
) -> Tensor:
    scores = (score_src, score_dst, edge_score, negative_slope, dropout, seed)
    return _native.gat_alpha((rowptr, col, eid), scores, stats)


def _gat_backward(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    colptr: Tensor,
    row: Tensor,
    ceid: Tensor,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor,
    edge_score: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    out: Tensor,
    out_pos: Tensor,
    stats: Tensor,
    alpha: Tensor | None,
    grad: Tensor,
    grad_alpha: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x = _native.empty(x, *x.shape)
    grad_src = _native.empty(score_src, *score_src.shape)
    grad_dst = _native.empty(score_dst, *score_dst.shape)
    # zeros: a removed self loop has a place here, but no edge
    grad_edge = x.new_empty(0) if edge_score is None else edge_score.new_zeros(edge_score.shape)
    _native.gat_backward(
        (rowptr, col, eid),
        (colptr, row, ceid),
        x,
        (score_src, score_dst, edge_score, negative_slope, dropout, seed),
        (out, out_pos, stats, alpha),
        (grad, grad_alpha),
        (grad_x, grad_src, grad_dst, None if edge_score is None else grad_edge),
    )
    return grad_x, grad_src, grad_dst, grad_edge


def split_packed(packed: Tensor, heads: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of ``packed [N, H*C + 2H]``: x ``[N, H, C]``, score_src and score_dst ``[N, H]``."""
    width = heads * channels
    x = packed[:, :width].unflatten(1, (heads, channels))
    return x, packed[:, width : width + heads], packed[:, width + heads :]


def _gat_packed_backward(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    colptr: Tensor,
    row: Tensor,
    ceid: Tensor,
    packed: Tensor,
    heads: int,
    channels: int,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    out: Tensor,
    out_pos: Tensor,
    stats: Tensor,
    alpha: Tensor | None,
    grad: Tensor,
    grad_alpha: Tensor | None,
) -> Tensor:
    x, score_src, score_dst = split_packed(packed, heads, channels)
    result = _native.empty(packed, *packed.shape)
    _native.gat_backward(
        (rowptr, col, eid),
        (colptr, row, ceid),
        x,
        (score_src, score_dst, None, negative_slope, dropout, seed),
        (out, out_pos, stats, alpha),
        (grad, grad_alpha),
        (*split_packed(result, heads, channels), None),
    )
    return result


def _gatv2_forward(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, Tensor]:
    scores = (x_dst, att, edge, negative_slope, dropout, seed)
    return _native.gatv2_forward((rowptr, col, eid), x, scores, statistics)


def _gatv2_alpha(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    stats: Tensor,
) -> Tensor:
    scores = (x_dst, att, edge, negative_slope, dropout, seed)
    return _native.gatv2_alpha((rowptr, col, eid), x, scores, stats)


def _gatv2_backward(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    colptr: Tensor,
    row: Tensor,
    ceid: Tensor,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    out: Tensor,
    stats: Tensor,
    alpha: Tensor | None,
    grad: Tensor,
    grad_alpha: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _native.gatv2_backward(
        (rowptr, col, eid),
        (colptr, row, ceid),
        x,
        (x_dst, att, edge, negative_slope, dropout, seed),
        (out, stats, alpha),
        (grad, grad_alpha),
    )


for _name, _kernel in {
    "gat_forward": _gat_forward,
    "gat_alpha": _gat_alpha,
    "gat_backward": _gat_backward,
    "gat_packed_backward": _gat_packed_backward,
    "gatv2_forward": _gatv2_forward,
    "gatv2_alpha": _gatv2_alpha,
    "gatv2_backward": _gatv2_backward,
}.items():
    _library.impl(_name, _kernel, "CPU")
_library.impl("build_csr", _build_csr, "CompositeExplicitAutograd")


@torch.library.register_fake("gatkernels::build_csr", lib=_library)
def _(
    edge_index: Tensor, num_src: int, num_dst: int, by_source: bool, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    places = edge_index.shape[1] + (torch.sym_min(num_src, num_dst) if self_loops else 0)
    rows = num_src if by_source else num_dst
    return (
        edge_index.new_empty(rows + 1, dtype=torch.int64),
        edge_index.new_empty(places, dtype=torch.int32),
        edge_index.new_empty(places, dtype=torch.int32),
    )


@torch.library.register_fake("gatkernels::gat_forward", lib=_library)
def _(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor,
    edge_score: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    training: bool,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    num_dst, (heads, channels) = rowptr.shape[0] - 1, x.shape[1:]
    out = x.new_empty(num_dst, heads, channels)
    sums = score_src
    out_pos = sums.new_empty(num_dst, heads, channels) if training else sums.new_empty(0)
    stats = sums.new_empty(num_dst, 3, heads) if statistics else sums.new_empty(0)
    return out, out_pos, stats


@torch.library.register_fake("gatkernels::gat_alpha", lib=_library)
def _(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    score_src: Tensor,
    score_dst: Tensor,
    edge_score: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    stats: Tensor,
) -> Tensor:
    return stats.new_empty(col.shape[0], stats.shape[2])


@torch.library.register_fake("gatkernels::gat_backward", lib=_library)
def _(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    colptr: Tensor,
    row: Tensor,
    ceid: Tensor,
    x: Tensor,
    score_src: Tensor,
    score_dst: Tensor,
    edge_score: Tensor | None,
    *args: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        score_src.new_empty(score_src.shape),
        score_dst.new_empty(score_dst.shape),
        x.new_empty(0) if edge_score is None else edge_score.new_empty(edge_score.shape),
    )


@torch.library.register_fake("gatkernels::gat_packed_backward", lib=_library)
def _(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    colptr: Tensor,
    row: Tensor,
    ceid: Tensor,
    packed: Tensor,
    *args: object,
) -> Tensor:
    return packed.new_empty(packed.shape)


@torch.library.register_fake("gatkernels::gatv2_forward", lib=_library)
def _(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None,
    negative_slope: float,
    dropout: float,
    seed: Tensor | None,
    statistics: bool,
) -> tuple[Tensor, Tensor]:
    heads = x.shape[1]
    stats = att.new_empty(x_dst.shape[0], 3, heads) if statistics else att.new_empty(0)
    return x.new_empty(x_dst.shape), stats


@torch.library.register_fake("gatkernels::gatv2_alpha", lib=_library)
def _(rowptr: Tensor, col: Tensor, eid: Tensor, x: Tensor, *args: Tensor) -> Tensor:
    stats = args[-1]
    return stats.new_empty(col.shape[0], stats.shape[2])


@torch.library.register_fake("gatkernels::gatv2_backward", lib=_library)
def _(
    rowptr: Tensor,
    col: Tensor,
    eid: Tensor,
    colptr: Tensor,
    row: Tensor,
    ceid: Tensor,
    x: Tensor,
    x_dst: Tensor,
    att: Tensor,
    edge: Tensor | None,
    *args: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x.new_empty(x_dst.shape),
        att.new_empty(att.shape),
        x.new_empty(0) if edge is None else edge.new_empty(edge.shape),
    )
