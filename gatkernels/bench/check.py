"""Is a peer's result right? Compared with the float64 reference before anything is timed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels import Graph, reference
from gatkernels.bench.cases import Case
from gatkernels.bench.peers import Step

#: Largest error allowed in the output and in the weights' gradients, relative to a value's own size
#: plus the tensor's root mean square (of gradients, a tenth of the largest one's at least). In
#: 16-bit types twice the error of the naive formula in that type comes on top; gradients there are
#: long sums of both signs, which rounding hits hard.
TOLERANCES = {
    "float64": (1e-11, 1e-11),
    "float32": (5e-5, 5e-5),
    "float16": (1e-2, 0.1),
    "bfloat16": (5e-2, 0.5),
}
#: A graph is checked on rows that hold about this many elements `[edges, H, C]`.
BUDGET = 2**24
#: Elements `[edges, H, C]` of the reference at a time.
CHUNK = 2**22
#: The LeakyReLU's slope jumps at 0, so rounding decides the gradient of a score this close to it
#: (relative to the scores' root mean square). Rows with such a score get no gradient to check.
TIE = 1e-5


@dataclass(frozen=True)
class Expected:
    """Float64 results; `gradients` are those of the gradient `grad_out` of the output."""

    rows: Tensor  # [R]
    out: Tensor  # [R, H * C]
    grad_out: Tensor  # [num_dst, H * C], zero outside rows, and in rows with a tie
    gradients: list[Tensor]  # in the order of case.weights
    sizes: list[float]  # what is large in the output and in each gradient
    allowed: list[float]  # error in each


def sample_rows(case: Case, edge_budget: int) -> Tensor:
    """All rows where the budget allows; else random rows, the heaviest one and an empty one."""
    count = case.edges.num_dst
    if case.num_edges <= edge_budget:
        return torch.arange(count)
    return choose_rows(torch.bincount(case.edges.edge_index[1], minlength=count), edge_budget)


def choose_rows(degree: Tensor, edge_budget: int) -> Tensor:
    """Random rows of about that many edges, the heaviest and a lightest row, ascending."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(degree.numel(), generator=generator).to(degree.device)
    keep = order[degree[order].cumsum(0) <= edge_budget]
    chosen = torch.zeros_like(degree, dtype=torch.bool)
    chosen[torch.cat([keep, degree.argmax()[None], degree.argmin()[None]])] = True
    return chosen.nonzero().flatten()


def expect(case: Case, edge_budget: int | None = None) -> Expected:
    """The float64 reference over the edges into the sampled rows."""
    rows = sample_rows(case, edge_budget or BUDGET // case.width)
    src, row = edges_into(case.edges.edge_index, case.edges.num_dst, rows)
    out, grad_out, gradients = _formula(case, torch.float64, rows, src, row)
    rough = None
    if case.dtype in (torch.float16, torch.bfloat16):
        rough_out, _, rough_gradients = _formula(case, case.dtype, rows, src, row)
        rough = [rough_out, *rough_gradients]
    sizes, allowed = allowances(case.spec.dtype, [out, *gradients], rough)
    return Expected(rows, out, grad_out.to(case.spec.device), gradients, sizes, allowed)


def allowances(
    dtype: str, wanted: list[Tensor], rough: list[Tensor] | None
) -> tuple[list[float], list[float]]:
    """What is large in, and which error is allowed of, the output and then each gradient.

    `rough` is what the naive formula gives in a 16-bit type.
    """
    out, *gradients = wanted
    first, rest = TOLERANCES[dtype]
    allowed = [first, *[rest] * len(gradients)]
    sizes = [_rms(out), *_sizes(gradients)]
    if rough is not None:
        triples = zip(rough, wanted, sizes, strict=True)
        allowed = [
            limit + 2 * difference(*triple) for limit, triple in zip(allowed, triples, strict=True)
        ]
    return sizes, allowed


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0


def _sizes(gradients: list[Tensor]) -> list[float]:
    """Root mean squares, at least a tenth of the largest: some gradients are 0 but for rounding."""
    sizes = [_rms(gradient) for gradient in gradients]
    return [max(size, 0.1 * max(sizes)) for size in sizes]


def edges_into(edge_index: Tensor, num_dst: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sources and places in `rows` of the edges into them, by row."""
    place = torch.full((num_dst,), -1, device=rows.device)
    place[rows] = torch.arange(rows.numel(), device=rows.device)
    src, dst = edge_index
    row = place[dst]
    if rows.numel() < num_dst:
        sampled = row >= 0
        src, row = src[sampled], row[sampled]
    order = torch.argsort(row, stable=True)
    return src[order], row[order]


def _formula(
    case: Case, dtype: torch.dtype, rows: Tensor, src: Tensor, row: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, the gradient it is given, and the weights' gradients, a chunk of rows at a time."""
    last_edge = torch.bincount(row, minlength=rows.numel()).cumsum(0)
    leaves = [value.cpu().to(dtype).requires_grad_() for value in case.weights.values()]
    totals = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves]
    outs = []
    given = case.grad_out.cpu()
    grad_out = torch.zeros_like(given)
    first_row = first = 0
    while first_row < rows.numel():
        limit = torch.tensor(first + CHUNK // case.width)
        stop_row = max(first_row + 1, int(torch.searchsorted(last_edge, limit, right=True)))
        stop = int(last_edge[stop_row - 1])
        chunk = rows[first_row:stop_row]
        out, tied = _layer(case, leaves, src[first:stop], row[first:stop] - first_row, chunk)
        grad_out[chunk] = given[chunk].masked_fill(tied[:, None], 0.0)
        gradients = torch.autograd.grad(out, leaves, grad_out[chunk].to(dtype))
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient
        outs.append(out.detach())
        first_row, first = stop_row, stop
    return torch.cat(outs), grad_out, totals


def _layer(
    case: Case, leaves: list[Tensor], src: Tensor, dst: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Output at `rows` from edges `src -> rows[dst]` alone, and which rows have a tie."""
    x_src, x_dst = (x.cpu() for x in (case.x if isinstance(case.x, tuple) else (case.x, case.x)))
    sources, src = torch.unique(src, return_inverse=True)
    graph = Graph.from_edge_index(torch.stack([src, dst]), (sources.numel(), rows.numel()))

    def project(x: Tensor, weight: Tensor) -> Tensor:
        flat = F.linear(x.to(weight.dtype), weight)
        return flat.view(-1, case.heads, case.channels)

    if case.spec.layer == "gat":
        lin, att_src, att_dst, bias = leaves
        source, target = project(x_src[sources], lin), project(x_dst[rows], lin)
        score_src, score_dst = (source * att_src).sum(-1), (target * att_dst).sum(-1)
        out = reference.gat_attention(graph, source, score_src, score_dst)[0].flatten(1) + bias
    elif case.spec.layer == "dot":
        q, k, v, skip = (
            project(x, lin)
            for x, lin in zip(
                (x_dst[rows], x_src[sources], x_src[sources], x_dst[rows]), leaves, strict=True
            )
        )
        out = reference.dot_attention(graph, q, k, v, scale=case.channels**-0.5)[0] + skip
        return out.flatten(1), torch.zeros(rows.numel(), dtype=torch.bool)
    else:
        lin_src, lin_dst, att = leaves
        source, target = project(x_src[sources], lin_src), project(x_dst[rows], lin_dst)
        score_src, score_dst = source, target
        out = reference.gatv2_attention(graph, source, target, att[0])[0].flatten(1)

    tied = torch.zeros(rows.numel(), dtype=torch.bool)
    if src.numel() and case.spec.dtype in ("float32", "float64"):
        score = (score_src.detach()[src] + score_dst.detach()[dst]).flatten(1)
        close = score.abs() < TIE * score.square().mean().sqrt()
        tied[dst[close.any(1)]] = True
    return out, tied


@dataclass(frozen=True)
class Verdict:
    """`error` is the largest difference, `excess` the largest one over what is allowed there."""

    error: float
    excess: float
    seconds: float  # of the first call, the graph's building included


def first_call(step: Step, expected: Expected) -> Verdict:
    """Run the step for the first time and compare its output and weight gradients."""
    step.hold = True
    start = time.perf_counter()
    out = step.forward()
    if out.shape != expected.grad_out.shape:
        return Verdict(float("inf"), float("inf"), 0.0)
    gradients = step.backward(expected.grad_out)
    if out.device.type == "cuda":
        torch.cuda.synchronize(out.device)
    seconds = step.graph_seconds + time.perf_counter() - start
    step.hold = False
    rows = out.detach()[expected.rows.to(out.device)]
    wanted = [expected.out, *expected.gradients]
    triples = zip([rows, *gradients], wanted, expected.sizes, strict=True)
    errors = [difference(*triple) for triple in triples]
    excess = max(error / allowed for error, allowed in zip(errors, expected.allowed, strict=True))
    return Verdict(max(errors), excess, seconds)


def difference(have: Tensor, want: Tensor, size: float) -> float:
    """Largest difference, in units of the value plus `size`; NaN is infinite."""
    if want.numel() == 0:
        return 0.0
    scale = want.abs() + size + torch.finfo(torch.float64).tiny
    worst = float(((have.detach().to(want).view_as(want) - want).abs() / scale).max())
    return worst if worst == worst else float("inf")
