"""Is a peer's result right? Compared with the float64 reference before anything is timed."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from gatkernels import Graph, gat_attention
from gatkernels.bench.graphs import SEED, Case, Weights
from gatkernels.bench.peers import Step

#: Largest error allowed, relative to a value's own size plus the tensor's root mean square.
TOLERANCE = 5e-5
#: A graph with more edges is checked on rows that hold about this many.
EDGE_BUDGET = 2**20
CHUNK = 2**17
#: The LeakyReLU's slope jumps at 0, so rounding decides the gradient of a score this close to it
#: (relative to the scores' root mean square). Rows with such a score get no gradient to check.
TIE = 1e-5


@dataclass(frozen=True)
class Expected:
    """Float64 results; `gradients` are those of the gradient `grad_out` of the output."""

    rows: Tensor  # [R]
    out: Tensor  # [R, H * C]
    grad_out: Tensor  # [N, H * C], zero outside rows, and in rows with a tie
    gradients: Weights


def sample_rows(case: Case, edge_budget: int = EDGE_BUDGET) -> Tensor:
    """All rows where the budget allows; else random rows, the heaviest one and an empty one."""
    if case.num_edges <= edge_budget:
        return torch.arange(case.num_nodes)
    degree = torch.bincount(case.edge_index[1], minlength=case.num_nodes)
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(case.num_nodes, generator=generator)
    keep = order[degree[order].cumsum(0) <= edge_budget]
    chosen = torch.zeros(case.num_nodes, dtype=torch.bool)
    chosen[torch.cat([keep, degree.argmax()[None], degree.argmin()[None]])] = True
    return chosen.nonzero().flatten()


def expect(case: Case, edge_budget: int = EDGE_BUDGET) -> Expected:
    """Run the float64 reference over the edges into the sampled rows, a chunk of rows at a time."""
    rows = sample_rows(case, edge_budget)
    place = torch.full((case.num_nodes,), -1)
    place[rows] = torch.arange(rows.numel())
    src, row = case.edge_index[0], place[case.edge_index[1]]
    order = torch.argsort(row, stable=True)[int((row < 0).sum()) :]
    src, row = src[order], row[order]
    last_edge = torch.bincount(row, minlength=rows.numel()).cumsum(0)

    leaves = [
        getattr(case.weights, field.name).double().requires_grad_() for field in fields(Weights)
    ]
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    outs = []
    grad_out = torch.zeros_like(case.grad_out)
    first_row = first = 0
    while first_row < rows.numel():
        limit = torch.tensor(first + CHUNK)
        stop_row = max(first_row + 1, int(torch.searchsorted(last_edge, limit, right=True)))
        stop = int(last_edge[stop_row - 1])
        chunk = rows[first_row:stop_row]
        out, tied = _layer(case, leaves, src[first:stop], row[first:stop] - first_row, chunk)
        grad_out[chunk] = case.grad_out[chunk].masked_fill(tied[:, None], 0.0)
        gradients = torch.autograd.grad(out, leaves, grad_out[chunk].double())
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient
        outs.append(out.detach())
        first_row, first = stop_row, stop
    return Expected(rows, torch.cat(outs), grad_out, Weights(*totals))


def _layer(
    case: Case, leaves: list[Tensor], src: Tensor, dst: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Output at `rows` from edges `src -> rows[dst]` alone, and which rows have a tie."""
    lin, att_src, att_dst, bias = leaves
    used = torch.zeros(case.num_nodes, dtype=torch.bool)
    used[src] = True
    sources, src = used.nonzero().flatten(), used.cumsum(0)[src] - 1
    x_src = F.linear(case.x[sources].double(), lin).view(-1, case.heads, case.channels)
    x_dst = F.linear(case.x[rows].double(), lin).view(-1, case.heads, case.channels)
    score_src, score_dst = (x_src * att_src).sum(-1), (x_dst * att_dst).sum(-1)
    graph = Graph.from_edge_index(torch.stack([src, dst]), (sources.numel(), rows.numel()))
    out = gat_attention(graph, x_src, score_src, score_dst, backend="reference")

    tied = torch.zeros(rows.numel(), dtype=torch.bool)
    if src.numel():
        score = score_src.detach()[src] + score_dst.detach()[dst]
        close = score.abs() < TIE * score.square().mean().sqrt()
        tied[dst[close.any(1)]] = True
    return out.flatten(1) + bias, tied


def error(step: Step, expected: Expected) -> float:
    """Largest error of a peer's output and weight gradients; NaN and wrong shapes are infinite."""
    out = step.forward()
    worst = 0.0
    if out.shape != expected.grad_out.shape:
        return float("inf")
    pairs = [(out.detach()[expected.rows], expected.out)]
    gradients = step.backward(expected.grad_out)
    for field in fields(Weights):
        pairs.append((getattr(gradients, field.name), getattr(expected.gradients, field.name)))
    for have, want in pairs:
        if want.numel() == 0:
            continue
        scale = want.abs() + want.square().mean().sqrt() + torch.finfo(torch.float64).tiny
        difference = ((have.double().view_as(want) - want).abs() / scale).max().item()
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst
