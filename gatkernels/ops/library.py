"""The registered torch ops: the only file that knows torch.library.

Kernels are reached only through these ops, so that fake tensors never reach a pointer. The schemas
below are the one place that names an op's arguments; ``backend`` names the module of kernels that
runs it (see :mod:`gatkernels.backends`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatkernels import backends
from gatkernels.backends import native, schedule
from gatkernels.ops import build
from gatkernels.ops.build import Built

# The lists are the parts of a schedule for GPUs (gatkernels/backends/schedule.py); empty elsewhere.
_GRAPH = "Tensor rowptr, Tensor col, Tensor eid, Tensor[] by_row"
_TRANSPOSE = "Tensor colptr, Tensor row, Tensor ceid, Tensor[] by_column"
_OPTIONS = "float negative_slope, float dropout, Tensor? seed"
_SCORES = f"Tensor score_src, Tensor score_dst, Tensor? edge_score, {_OPTIONS}"
# Scores come from x where there are attention vectors [1, H, C].
_FROM_X = f"Tensor? score_src, Tensor? score_dst, Tensor? edge_score, {_OPTIONS}"
_ATTS = "Tensor? att_src, Tensor? att_dst"
_GATV2 = f"Tensor x, Tensor x_dst, Tensor att, Tensor? edge, {_OPTIONS}"
_GRADS = "Tensor? alpha, Tensor grad, Tensor? grad_alpha, str backend"

_library = torch.library.Library("gatkernels", "DEF")
for _schema in (
    "build_csr(Tensor edge_index, SymInt num_src, SymInt num_dst, bool by_source, bool self_loops)"
    " -> (Tensor rowptr, Tensor col, Tensor eid)",
    "build_graph(Tensor edge_index, SymInt num_src, SymInt num_dst, bool self_loops)"
    " -> (Tensor rowptr, Tensor col, Tensor eid, Tensor colptr, Tensor row, Tensor ceid,"
    " Tensor chunk_ends, Tensor chunks)",
    "bounded_schedule(Tensor rowptr, SymInt edges)"
    " -> (Tensor chunk_row, Tensor chunk_end, Tensor order, Tensor bigs)",
    f"gat_forward({_GRAPH}, Tensor x, {_FROM_X}, {_ATTS}, bool training, bool statistics,"
    " str backend) -> (Tensor out, Tensor out_pos, Tensor stats, Tensor scores)",
    f"gat_alpha({_GRAPH}, {_SCORES}, Tensor stats, str backend) -> Tensor",
    f"gat_backward({_GRAPH}, {_TRANSPOSE}, Tensor x, {_SCORES}, {_ATTS}, Tensor out,"
    f" Tensor out_pos, Tensor stats, {_GRADS}) -> (Tensor grad_x, Tensor grad_src,"
    " Tensor grad_dst, Tensor grad_edge, Tensor grad_att)",
    f"gatv2_forward({_GRAPH}, {_GATV2}, bool statistics, str backend)"
    " -> (Tensor out, Tensor stats)",
    f"gatv2_alpha({_GRAPH}, {_GATV2}, Tensor stats, str backend) -> Tensor",
    f"gatv2_backward({_GRAPH}, {_TRANSPOSE}, {_GATV2}, Tensor out, Tensor stats, {_GRADS})"
    " -> (Tensor grad_x, Tensor grad_dst, Tensor grad_att, Tensor grad_edge)",
    "sparse_product(Tensor rowptr, Tensor col, Tensor? order, Tensor values, Tensor dense)"
    " -> Tensor",
    "sparse_transposed_product(Tensor crow, Tensor col, Tensor values, Tensor dense,"
    " SymInt columns) -> Tensor",
    "feature_dropout(Tensor x, float p, Tensor seed) -> Tensor",
    "elu_dropout(Tensor x, float p, Tensor? seed) -> Tensor",
    "elu_dropout_backward(Tensor grad, Tensor x, float p, Tensor? seed) -> Tensor",
):
    _library.define(_schema)
_library.define("draw_seed(Tensor like) -> Tensor", tags=torch.Tag.nondeterministic_seeded)


def build_graph(edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool) -> Built:
    """CSR and CSC; and on a GPU :func:`schedule.chunk_ends` of all destinations, then a place for
    none, then all sources, with the last value of each side ``[2]`` in the CPU's memory: one wait
    brings these and what the ids are checked by. Both are empty where they are not known."""
    result: Built = torch.ops.gatkernels.build_graph(edge_index, num_src, num_dst, self_loops)
    return result


def build_csr(
    edge_index: Tensor, num_src: int, num_dst: int, by_source: bool, self_loops: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One side of a graph."""
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.gatkernels.build_csr(
        edge_index, num_src, num_dst, by_source, self_loops
    )
    return result


def bounded_schedule(rowptr: Tensor, edges: int) -> tuple[Tensor, ...]:
    """As :func:`schedule.bounded`, from an op that compiled functions can hold."""
    result: tuple[Tensor, ...] = torch.ops.gatkernels.bounded_schedule(rowptr, edges)
    return result


def _grad_of_edges(x: Tensor, edge: Tensor | None) -> Tensor:
    """Zeros: a removed self loop has a place here, but no edge. Empty where there is no input."""
    return x.new_empty(0) if edge is None else edge.new_zeros(edge.shape)


def _gat_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    csr, x, given, atts, (training, statistics, backend) = (
        args[:4], args[4], args[5:11], args[11:13], args[13:],
    )  # fmt: skip
    kernels = backends.kernels(backend)
    scores = kernels.node_scores(csr, x, atts) if atts[0] is not None else x.new_empty(0)
    given = (*node_scores(scores, *given[:2]), *given[2:])
    return (*kernels.gat_forward(csr, x, given, training, statistics), scores)


def node_scores(
    scores: Tensor, score_src: Tensor | None, score_dst: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``score_src`` and ``score_dst``: those given, and of ``scores [vectors, N, H]`` the rest."""
    src = scores[0] if score_src is None else score_src
    return src, scores[1] if score_dst is None else score_dst


def _gat_alpha(*args: Any) -> Tensor:
    csr, scores, (stats, backend) = args[:4], args[4:10], args[10:]
    return backends.kernels(backend).gat_alpha(csr, scores, stats)  # type: ignore[no-any-return]


def _gat_backward(*args: Any) -> tuple[Tensor, ...]:
    x, score_src, score_dst, edge_score = args[8:12]
    atts = args[15:17]
    results = (
        native.empty(x, *x.shape),
        native.empty(score_src, *score_src.shape),
        native.empty(score_dst, *score_dst.shape),
        _grad_of_edges(x, edge_score),
        _grad_of_atts(score_src, x, atts),
    )
    backends.kernels(args[-1]).gat_backward(
        args[:4], args[4:8], x, args[9:15], atts, args[17:21], args[21:23], results
    )
    return results


def _grad_of_atts(sums: Tensor, x: Tensor, atts: tuple[Tensor | None, ...]) -> Tensor:
    """``[vectors, H, C]``."""
    return sums.new_empty(sum(att is not None for att in atts), *x.shape[1:])


def _gatv2_forward(*args: Any) -> tuple[Tensor, Tensor]:
    csr, x, scores, (statistics, backend) = args[:4], args[4], args[5:11], args[11:]
    kernels = backends.kernels(backend)
    return kernels.gatv2_forward(csr, x, scores, statistics)  # type: ignore[no-any-return]


def _gatv2_alpha(*args: Any) -> Tensor:
    csr, x, scores, (stats, backend) = args[:4], args[4], args[5:11], args[11:]
    kernels = backends.kernels(backend)
    return kernels.gatv2_alpha(csr, x, scores, stats)  # type: ignore[no-any-return]


def _gatv2_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, x_dst, att, edge = args[8:12]
    results = (
        native.empty(x, *x.shape),
        native.empty(x, *x_dst.shape),
        att.new_empty(att.shape),
        _grad_of_edges(x, edge),
    )
    backends.kernels(args[-1]).gatv2_backward(
        args[:4], args[4:8], x, args[9:15], args[15:18], args[18:20], results
    )
    return results


def native_product(values: Tensor, dense: Tensor) -> bool:
    """Whether a kernel of ours multiplies them."""
    on_cpu = dense.device.type == "cpu" and dense.dtype in (torch.float32, torch.float64)
    return on_cpu and dense.dtype == values.dtype and native.cpu_missing is None


def sparse_product(
    rowptr: Tensor, col: Tensor, order: Tensor | None, values: Tensor, dense: Tensor
) -> Tensor:
    """A CSR matrix times ``dense [columns, width]``; ``values[order]`` are in the order of col."""
    result: Tensor = torch.ops.gatkernels.sparse_product(rowptr, col, order, values, dense)
    return result


def _sparse_product(
    rowptr: Tensor, col: Tensor, order: Tensor | None, values: Tensor, dense: Tensor
) -> Tensor:
    if native_product(values, dense):
        return native.sparse_product(rowptr, col, order, values, dense)
    size = (rowptr.shape[0] - 1, dense.shape[0])
    values = values if order is None else values[order.long()]
    matrix = torch.sparse_csr_tensor(rowptr.int(), col, values, size, check_invariants=False)
    return matrix.to(dense.dtype) @ dense


def sparse_transposed_product(
    crow: Tensor, col: Tensor, values: Tensor, dense: Tensor, columns: int
) -> Tensor:
    """The transpose of a CSR matrix times ``dense [rows, width]``; only a ``native_product``."""
    arguments = (crow, col, values, dense, columns)
    result: Tensor = torch.ops.gatkernels.sparse_transposed_product(*arguments)
    return result


def _sparse_transposed_product(
    crow: Tensor, col: Tensor, values: Tensor, dense: Tensor, columns: int
) -> Tensor:
    return native.sparse_transposed_product(crow, col, values, dense, columns)


def feature_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """On the CPU, float32 or float64; value 64 b + 16 w + l: word w of counter (16 b + l, 0)."""
    result: Tensor = torch.ops.gatkernels.feature_dropout(x, p, seed)
    return result


def _feature_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    return native.feature_dropout(x, p, seed)


def _elu_dropout(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    return native.feature_dropout(x, p, seed, native.ELU)


def _elu_dropout_backward(grad: Tensor, x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    return native.feature_dropout(x, p, seed, native.ELU_GRAD, grad)


def exporting_to_onnx() -> bool:
    """Whether the program is for runtimes that have torch's ops alone."""
    traced = torch.compiler.is_compiling() or torch._C._is_tracing()
    return traced and torch.onnx.is_in_onnx_export()


def draw_seed(device: torch.device) -> Tensor:
    """A fresh 64-bit dropout seed ``[1]`` from torch's generator of ``device``.

    An op of its own where compiled, so that eager and compiled code draw the same. Its argument
    says the device, and is a fresh ``torch.empty``, which compilers never take for another, so that
    no two calls are taken for one.
    """
    if torch.compiler.is_compiling():
        like = _empty(0, dtype=torch.int64, device=device)
        seed: Tensor = torch.ops.gatkernels.draw_seed(like)
        return seed
    return _draw_seed(_empty(0, dtype=torch.int64, device=device))


def _draw_seed(like: Tensor) -> Tensor:
    return like.new_empty(1).random_()


_empty = torch.empty


for _name, _kernel in {
    "gat_forward": _gat_forward,
    "gat_alpha": _gat_alpha,
    "gat_backward": _gat_backward,
    "gatv2_forward": _gatv2_forward,
    "gatv2_alpha": _gatv2_alpha,
    "gatv2_backward": _gatv2_backward,
}.items():
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _kernel, _key)
_library.impl("build_csr", build.build_csr, "CompositeExplicitAutograd")
_library.impl("draw_seed", _draw_seed, "CompositeExplicitAutograd")
_library.impl("build_graph", build.build_graph, "CompositeExplicitAutograd")
_library.impl("bounded_schedule", schedule.bounded, "CompositeExplicitAutograd")
_library.impl("sparse_product", _sparse_product, "CPU")
_library.impl("sparse_product", _sparse_product, "CUDA")
_library.impl("sparse_transposed_product", _sparse_transposed_product, "CPU")
_library.impl("feature_dropout", _feature_dropout, "CPU")
_library.impl("elu_dropout", _elu_dropout, "CPU")
_library.impl("elu_dropout_backward", _elu_dropout_backward, "CPU")


@torch.library.register_fake("gatkernels::sparse_product", lib=_library)
def _(rowptr: Tensor, col: Tensor, order: Tensor | None, values: Tensor, dense: Tensor) -> Tensor:
    return dense.new_empty(rowptr.shape[0] - 1, dense.shape[1])


@torch.library.register_fake("gatkernels::sparse_transposed_product", lib=_library)
def _(crow: Tensor, col: Tensor, values: Tensor, dense: Tensor, columns: int) -> Tensor:
    return dense.new_empty(columns, dense.shape[1])


@torch.library.register_fake("gatkernels::feature_dropout", lib=_library)
@torch.library.register_fake("gatkernels::elu_dropout", lib=_library)
@torch.library.register_fake("gatkernels::elu_dropout_backward", lib=_library)
def _(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("gatkernels::draw_seed", lib=_library)
def _(like: Tensor) -> Tensor:
    return like.new_empty(1)


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


@torch.library.register_fake("gatkernels::build_graph", lib=_library)
def _(edge_index: Tensor, num_src: int, num_dst: int, self_loops: bool) -> Built:
    edges = edge_index.shape[1] + (torch.sym_min(num_src, num_dst) if self_loops else 0)
    found: list[Tensor] = []
    for rows in (num_dst, num_src):
        found.append(edge_index.new_empty(rows + 1, dtype=torch.int64))
        found += [edge_index.new_empty(edges, dtype=torch.int32) for _ in range(2)]
    known = not build.sides_apart(edge_index.device) and 0 < edges < build.SORTED
    ends = edge_index.new_empty(num_dst + 1 + num_src if known else 0, dtype=torch.int64)
    return (*found, ends, torch.empty(2 if known else 0, dtype=torch.int64))


@torch.library.register_fake("gatkernels::bounded_schedule", lib=_library)
def _(rowptr: Tensor, edges: int) -> tuple[Tensor, ...]:
    rows = rowptr.shape[0] - 1
    sizes = schedule.most_chunks(rows, edges), rows, rows, 1
    kinds = torch.int32, torch.int64, torch.int32, torch.int32
    return tuple(rowptr.new_empty(n, dtype=kind) for n, kind in zip(sizes, kinds, strict=True))


@torch.library.register_fake("gatkernels::gat_forward", lib=_library)
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rowptr, x, atts, (training, statistics, _) = args[0], args[4], args[11:13], args[13:]
    sums = args[5] if atts[0] is None else atts[0]
    num_dst, (heads, channels) = rowptr.shape[0] - 1, x.shape[1:]
    out = x.new_empty(num_dst, heads, channels)
    out_pos = sums.new_empty(num_dst, heads, channels) if training else sums.new_empty(0)
    stats = sums.new_empty(num_dst, 3, heads) if statistics else sums.new_empty(0)
    if atts[0] is None:
        return out, out_pos, stats, x.new_empty(0)
    return out, out_pos, stats, sums.new_empty(1 if atts[1] is None else 2, x.shape[0], heads)


@torch.library.register_fake("gatkernels::gat_alpha", lib=_library)
def _(*args: Any) -> Tensor:
    col, stats = args[1], args[10]
    return stats.new_empty(col.shape[0], stats.shape[2])  # type: ignore[no-any-return]


@torch.library.register_fake("gatkernels::gat_backward", lib=_library)
def _(*args: Any) -> tuple[Tensor, ...]:
    x, score_src, score_dst, edge_score = args[8:12]
    inputs = (x, score_src, score_dst)
    grads = (t.new_empty(t.shape) for t in inputs)
    return *grads, _grad_of_edges(x, edge_score), _grad_of_atts(score_src, x, args[15:17])


@torch.library.register_fake("gatkernels::gatv2_forward", lib=_library)
def _(*args: Any) -> tuple[Tensor, Tensor]:
    x, x_dst, att, statistics = args[4], args[5], args[6], args[11]
    stats = att.new_empty(x_dst.shape[0], 3, x.shape[1]) if statistics else att.new_empty(0)
    return x.new_empty(x_dst.shape), stats


@torch.library.register_fake("gatkernels::gatv2_alpha", lib=_library)
def _(*args: Any) -> Tensor:
    col, stats = args[1], args[11]
    return stats.new_empty(col.shape[0], stats.shape[2])  # type: ignore[no-any-return]


@torch.library.register_fake("gatkernels::gatv2_backward", lib=_library)
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, x_dst, att, edge = args[8:12]
    inputs = (x, x_dst, att)
    return (*(t.new_empty(t.shape) for t in inputs), _grad_of_edges(x, edge))
