"""``gatkernels verify``: are the kernels right on this machine?

Every backend that can run here is compared with the float64 reference on graphs made to break
kernels, its gradients with finite differences, and its dropout with the reference's own mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatkernels import functional, reference
from gatkernels.backends import INTERPRETED, Case, explain
from gatkernels.graph import Graph
from gatkernels.ops import checks, philox
from gatkernels.testing import (
    INPUTS,
    adversarial_graphs,
    input_shapes,
    longest_row,
    operator_scales,
    share_of_allowed,
)

_SLOPE, _SCALE, _DROPOUT = 0.2, 0.3, 0.6
#: Heads, channels, dropout probabilities.
_SHAPES = ((8, 8, (0.0, _DROPOUT, 1.0)), (1, 3, (0.0,)), (3, 7, (_DROPOUT,)))


class Check(NamedTuple):
    """One line of the table; ``worst`` is an error as a share of what is allowed."""

    backend: str
    name: str
    worst: float
    passed: bool


def run(device: torch.device | str = "cpu", backends: Sequence[str] = ()) -> Iterator[Check]:
    """All checks of ``backends``, or of every one that can run on ``device``, one at a time."""
    device = torch.device(device)
    case = Case(device, torch.float32)
    for backend in backends or [b for b, reason in explain(case) if reason is None]:
        yield from _checks_of(backend, device)


def _checks_of(backend: str, device: torch.device) -> Iterator[Check]:
    def check(name: str, measure: Callable[[], float]) -> Check:
        try:
            worst = measure()
        except Exception as error:
            return Check(backend, f"{name}: {type(error).__name__}: {error}", float("inf"), False)
        return Check(backend, name, worst, worst <= 1.0)

    for kind in INPUTS:
        for dtype in checks.DTYPE_CODES if backend != "reference" else ():
            name = f"{kind} parity, {str(dtype).removeprefix('torch.')}"
            yield check(name, lambda k=kind, d=dtype: _parity(k, backend, device, d))  # type: ignore[misc]
        yield check(f"{kind} gradcheck", lambda k=kind: _gradcheck(k, backend, device, False))  # type: ignore[misc]
        yield check(f"{kind} gradgradcheck", lambda k=kind: _gradcheck(k, backend, device, True))  # type: ignore[misc]
        yield check(f"{kind} same bits twice", lambda k=kind: _repeat(k, backend, device))  # type: ignore[misc]
    yield check("score spread of 1000", lambda: _spread(backend, device))
    yield check("dropout mask", lambda: _mask(backend, device))
    yield check("dropout rate", lambda: _rate(backend, device))


#: Of the graphs of the tests, those whose formulas take no second in float64.
_GRAPHS = (
    "no_nodes",
    "no_edges",
    "isolated",
    "parallel",
    "self_loops_replaced",
    "bipartite",
    "one_source",
    "hub_chunks",
    "hub_out",
)


def graphs(device: torch.device) -> dict[str, Graph]:
    """Graphs made to break kernels."""
    made = adversarial_graphs(device, hubs=(700, 2500))
    return {name: made[name]() for name in _GRAPHS}


def _inputs(kind: str, graph: Graph, heads: int, channels: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(heads * 1000 + channels)
    shapes = input_shapes(kind, graph, heads, channels, values=channels + 1, features=2)
    made = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes.values())
    return [t.to(dtype).to(graph.device) for t in made]


def _apply(kind: str, backend: str, graph: Graph, inputs: list[Tensor], dropout: float) -> Any:
    how: dict[str, Any] = {"dropout": dropout, "return_attention": True, "backend": backend}
    torch.manual_seed(7)
    if kind == "dot":
        return functional.dot_attention(graph, *inputs, scale=_SCALE, **how)
    call = functional.gat_attention if kind == "gat" else functional.gatv2_attention
    return call(graph, *inputs, negative_slope=_SLOPE, **how)


def _results(
    kind: str, backend: str, graph: Graph, inputs: list[Tensor], dropout: float
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = list(_apply(kind, backend, graph, leaves, dropout))
    found = torch.autograd.grad(outputs, leaves, _grads(outputs))
    return [t.detach() for t in (*outputs, *found)]


def _grads(outputs: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(o.shape, generator=generator).to(o) for o in outputs]


def _parity(kind: str, backend: str, device: torch.device, dtype: torch.dtype) -> float:
    worst = 0.0
    # Triton's interpreter cuts bfloat16 off where a GPU rounds
    cut_off = backend == "triton" and INTERPRETED and dtype == torch.bfloat16
    for graph in graphs(device).values():
        on_cpu = graph.to("cpu")
        longest = max(longest_row(on_cpu), graph.num_edges if kind == "gatv2" else 0)
        for heads, channels, dropouts in _SHAPES:
            for dropout in dropouts:
                inputs = _inputs(kind, graph, heads, channels, dtype)
                exact = [t.double() for t in inputs]
                ours = _results(kind, backend, graph, inputs, dropout)
                plain, truth = (
                    [t.cpu() for t in _results(kind, "reference", graph, given, dropout)]
                    for given in (inputs, exact)
                )
                torch.manual_seed(7)
                seed = philox.draw_seed(device).cpu()
                given = [t.cpu() for t in exact]
                grads = _grads(truth[: len(truth) - len(inputs)])
                names = ("out", "edge_out", "alpha") if kind == "dot" else ("out", "alpha")
                number = _SCALE if kind == "dot" else _SLOPE
                of_results = dict(zip(names, grads, strict=True))
                found = operator_scales(kind, on_cpu, given, of_results, number, dropout, seed)
                scales = [found[name] for name in (*names, *(f"grad of {n}" for n in INPUTS[kind]))]
                for four in zip(ours, plain, truth, scales, strict=True):
                    share = share_of_allowed(*four, longest)
                    share = share.nan_to_num(nan=float("inf")) / (2.0 if cut_off else 1.0)
                    worst = max(worst, float(share.max()) if share.numel() else 0.0)
    return worst


def _gradcheck(kind: str, backend: str, device: torch.device, second: bool) -> float:
    graph = graphs(device)["bipartite"]
    heads, channels = (1, 2) if second else (3, 3)
    leaves = [t.requires_grad_() for t in _inputs(kind, graph, heads, channels, torch.float64)]

    def call(*tensors: Tensor) -> Any:
        return _apply(kind, backend, graph, list(tensors), 0.3)

    run_check = torch.autograd.gradgradcheck if second else torch.autograd.gradcheck
    # the reference, which second derivatives go through, adds up by atomics on a GPU
    run_check(call, leaves, nondet_tol=1e-10, fast_mode=True)
    return 0.0


def _repeat(kind: str, backend: str, device: torch.device) -> float:
    for graph in graphs(device).values():
        inputs = _inputs(kind, graph, 8, 8, torch.float32)
        first = _results(kind, backend, graph, inputs, _DROPOUT)
        second = _results(kind, backend, graph, inputs, _DROPOUT)
        if backend != "reference" and not all(map(torch.equal, first, second)):
            return float("inf")
    return 0.0


def _spread(backend: str, device: torch.device) -> float:
    graph = graphs(device)["self_loops_replaced"]
    x, src, dst, _ = _inputs("gat", graph, 4, 8, torch.float64)
    dst = dst - 1000.0 * torch.arange(graph.num_dst, device=device)[:, None].remainder(2)
    ours = functional.gat_attention(graph, x.float(), src.float(), dst.float(), backend=backend)
    truth = reference.gat_attention(
        graph, x.float().double(), src.float().double(), dst.float().double()
    )[0]
    error = float((ours - truth).abs().max())
    return error / 1e-3


def _mask(backend: str, device: torch.device) -> float:
    graph = graphs(device)["hub_chunks"]
    for heads in (1, 3, 8):
        inputs = _inputs("gat", graph, heads, 2, torch.float32)
        mine = _apply("gat", backend, graph, inputs, _DROPOUT)[1] == 0
        if not torch.equal(mine, _apply("gat", "reference", graph, inputs, _DROPOUT)[1] == 0):
            return float("inf")
    return 0.0


def _rate(backend: str, device: torch.device) -> float:
    graph = graphs(device)["hub_chunks"]
    inputs = _inputs("gat", graph, 8, 2, torch.float32)
    dropped = (_apply("gat", backend, graph, inputs, _DROPOUT)[1] == 0).double()
    deviation = (_DROPOUT * (1 - _DROPOUT) / dropped.numel()) ** 0.5
    worst: float = abs(float(dropped.mean()) - _DROPOUT) / (5 * deviation)
    return worst
