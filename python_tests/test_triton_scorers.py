"""A scorer of one's own is a pair of functions: ``sum_c att[c] |x_j + edge - x_i|[c]``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import DEVICE, GRAPHS
from tolerance import BACKEND
from torch import Tensor

from gatkernels import gatv2_attention

pytestmark = pytest.mark.skipif(BACKEND != "triton", reason="for the Triton backend")
if BACKEND == "triton":
    import triton
    import triton.language as tl

    from gatkernels.backends.triton.scores import SCORERS, Scorer

    @triton.jit
    def distance_value(x_j, x_i, slope):  # type: ignore[no-untyped-def]
        return tl.abs(x_j - x_i)

    @triton.jit
    def distance_reach(x_j, x_i, slope):  # type: ignore[no-untyped-def]
        sign = tl.where(x_j > x_i, 1.0, -1.0)
        return sign, -sign


def by_hand(col: Tensor, row: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    x_src, x_dst, att, edge = inputs
    logits = ((x_src[col] + edge - x_dst[row]).abs() * att).sum(2).exp()
    total = logits.new_zeros(x_dst.shape[:2]).index_add(0, row, logits)
    alpha = logits / total[row]
    return torch.zeros_like(x_dst).index_add(0, row, alpha[:, :, None] * x_src[col])


@pytest.mark.parametrize("name", ["hub_chunks", "degrees"])
def test_a_scorer_needs_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCORERS, "gatv2", Scorer(distance_value, distance_reach))
    graph = GRAPHS[name]()
    heads, channels = 2, 5
    sizes = [(graph.num_src,), (graph.num_dst,), (), (graph.num_edges,)]
    inputs: Any = tuple(
        torch.randn(*size, heads, channels, dtype=torch.float64).to(DEVICE).requires_grad_()
        for size in sizes
    )
    row = torch.empty_like(graph.col)
    rows = torch.repeat_interleave(torch.arange(graph.num_dst, device=DEVICE), graph.rowptr.diff())
    col = torch.empty_like(row)
    row[graph.eid.long()], col[graph.eid.long()] = rows.to(row.dtype), graph.col
    found = gatv2_attention(graph, *inputs, backend=BACKEND)
    wanted = by_hand(col.long(), row.long(), inputs)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    pairs = (torch.autograd.grad(out, inputs, grad) for out in (found, wanted))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs)
