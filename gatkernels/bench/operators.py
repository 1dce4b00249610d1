"""The attention operators alone, on ready features, scores and graph: checked, then timed.

A layer's time holds its projection's. The operators' does not, and is held against the gather
floor: the bytes of `traffic.attention` over the copy bandwidth measured in the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import gatkernels
from gatkernels import Graph, reference
from gatkernels.bench import check, drawn, process, traffic
from gatkernels.bench.cases import DTYPES, SEED, Spec, parse_shape
from gatkernels.bench.graphs import Edges
from gatkernels.bench.limits import Rotating, copy_bandwidth
from gatkernels.bench.measure import (
    PHASES,
    REPLAY_BELOW,
    copies_for_cold_caches,
    interleave,
)
from gatkernels.bench.process import Tick
from gatkernels.bench.results import Measured


def _naive_dot(graph: Graph, q: Tensor, k: Tensor, v: Tensor) -> Any:
    return reference.dot_attention(graph, q, k, v, scale=q.shape[2] ** -0.5)


OPERATORS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "gat": (gatkernels.gat_attention, reference.gat_attention),
    "gatv2": (gatkernels.gatv2_attention, reference.gatv2_attention),
    "dot": (gatkernels.dot_attention, _naive_dot),
}


class Operator:
    """A training step of an operator, with gradients to all inputs, on inputs in rotation."""

    def __init__(self, spec: Spec, edges: Edges, graph: Graph, backend: str) -> None:
        self.spec, self.edges, self.graph, self.backend = spec, edges, graph, backend
        device, dtype = graph.device, DTYPES[spec.dtype]
        self.heads, self.channels = parse_shape(spec.shape, 8)
        generator = torch.Generator(device).manual_seed(SEED)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        source, target = (edges.num_src, self.heads), (edges.num_dst, self.heads)
        if spec.layer == "gat":
            inputs = [normal(*source, self.channels), normal(*source), normal(*target)]
        elif spec.layer == "dot":
            inputs = [normal(*ends, self.channels) for ends in (target, source, source)]
        else:
            inputs = [normal(*source, self.channels), normal(*target, self.channels)]
            inputs.append(normal(self.heads, self.channels) / self.channels**0.5)
        tensors = [*inputs, normal(*target, self.channels)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        turns = [tensors]
        for turn in range(1, copies_for_cold_caches(size, device)):
            turns.append([tensor.roll(turn, 0) for tensor in tensors])
        self.rotation = Rotating(
            [([tensor.requires_grad_() for tensor in first], last) for *first, last in turns]
        )
        self.inputs, self.grad_out = self.rotation.items[0]
        self._out: Tensor | None = None

    def forward(self) -> Tensor:
        self.inputs, self.grad_out = self.rotation.next()
        operator = OPERATORS[self.spec.layer][0]
        out: Tensor = operator(self.graph, *self.inputs, backend=self.backend)
        self._out = out
        return out

    def backward(self, grad_out: Tensor | None = None) -> tuple[Tensor, ...]:
        if self._out is None:
            raise RuntimeError("backward() needs a forward() before it")
        out, self._out = self._out, None
        grad = self.grad_out if grad_out is None else grad_out
        gradients: tuple[Tensor, ...] = torch.autograd.grad(out, self.inputs, grad)
        return gradients

    def floor(self, bandwidth: float) -> dict[str, float]:
        """Seconds by phase that gathering the rows takes at `bandwidth`."""
        row = self.heads * self.channels * DTYPES[self.spec.dtype].itemsize
        counts = self.edges.num_src, self.edges.num_dst
        edges = self.edges.edge_index.shape[1]
        moved = traffic.attention(self.spec.layer, counts, edges, self.heads, row)
        return {phase: moved[phase] / bandwidth for phase in PHASES}


def excess(step: Operator) -> float:
    """The largest error of output and gradients over what is allowed there; right up to 1.

    Compared with the float64 formulas on all rows or, in big graphs, on some: the output's gradient
    is zero elsewhere, and so must be what flows to nodes that have no edge into these rows.
    """
    spec, edges = step.spec, step.edges
    edge_index, count = edges.edge_index, edges.num_dst
    budget = check.BUDGET // (step.heads * step.channels)
    if edge_index.shape[1] <= budget:
        rows = torch.arange(count, device=edge_index.device)
    else:
        rows = check.choose_rows(torch.bincount(edge_index[1], minlength=count), budget)
    src, row = check.edges_into(edge_index, count, rows)
    sources, src = torch.unique(src, return_inverse=True)
    part = Graph.from_edge_index(torch.stack([src, row]), (sources.numel(), rows.numel()))

    step.rotation.hold = True
    out = step.forward().detach()
    given = torch.zeros_like(step.grad_out).index_copy_(0, rows, step.grad_out[rows])
    gradients = step.backward(given)
    step.rotation.hold = False

    heads = torch.arange(step.heads, device=rows.device)
    nodes = {
        "gat": (sources, sources, rows),
        "gatv2": (sources, rows, heads),
        "dot": (rows, sources, sources),
    }[spec.layer]
    have = [out[rows], *(grad[ids] for grad, ids in zip(gradients, nodes, strict=True))]
    leaves = [tensor.detach()[ids] for tensor, ids in zip(step.inputs, nodes, strict=True)]
    wanted = _formula(spec.layer, part, leaves, given[rows], torch.float64)
    rough = None
    if spec.dtype in ("bfloat16", "float16"):
        rough = _formula(spec.layer, part, leaves, given[rows], DTYPES[spec.dtype])
    sizes, allowed = check.allowances(spec.dtype, wanted, rough)
    for gradient, ids in zip(gradients, nodes, strict=True):
        if not bool((gradient.index_fill(0, ids, 0) == 0).all()):
            return float("inf")
    errors = [check.difference(*triple) for triple in zip(have, wanted, sizes, strict=True)]
    return max(error / limit for error, limit in zip(errors, allowed, strict=True))


def _formula(
    layer: str, graph: Graph, inputs: Sequence[Tensor], grad_out: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Output and gradients by the naive formula, a head at a time, which takes less memory."""
    results = []
    for head in range(grad_out.shape[1]):
        one = slice(head, head + 1)
        leaves = [
            (value[one] if layer == "gatv2" and place == 2 else value[:, one]).to(dtype)
            for place, value in enumerate(inputs)
        ]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        out = OPERATORS[layer][1](graph, *leaves)[0]
        gradients = torch.autograd.grad(out, leaves, grad_out[:, one].to(dtype))
        results.append([out.detach(), *gradients])
    *by_node, last = zip(*results, strict=True)
    joined = [torch.cat(parts, 1) for parts in by_node]
    return [*joined, torch.cat(last, 0 if layer == "gatv2" else 1)]


def prepare(
    spec: Spec, edges: Edges, graph: Graph, backend: str, found: Measured
) -> tuple[Operator | None, float]:
    """The step if its results are right, else None, and `found` says so; and :func:`excess`."""
    step = Operator(spec, edges, graph, backend)
    wrong = excess(step)
    if not wrong <= 1.0:
        found.status, found.reason = "FAIL", f"off by {wrong:.1f} times what is allowed"
        return None, wrong
    return step, wrong


@contextmanager
def noted(found: Measured) -> Iterator[None]:
    """What fails inside costs this result alone."""
    try:
        yield
    except Exception as error:
        failed = process.failure(error)
        found.status, found.reason = failed.status, failed.reason


def time_floors(backend: str, specs: Sequence[Spec], seconds: float, tick: Tick) -> None:
    """The operator on each case, all of one graph, told to `tick` one by one: seconds by phase,
    those of the floor, and, of a short one on a GPU, those of a call that the GPU waits for."""
    device = torch.device(specs[0].device)
    tick("copy bandwidth")
    bandwidth = copy_bandwidth(device)
    drawn_at, edges, graph = 0.0, None, None
    for spec in specs:
        if edges is None or graph is None or spec.scale != drawn_at:
            tick("graph drawn")
            drawn_at, edges, graph = spec.scale, *_graph(spec)
        found = Measured("operator", backend, spec.graph, spec.shape, spec.layer, spec.dtype)
        found.size = [edges.num_dst, edges.edge_index.shape[1]]
        tick(f"{spec.shape} {spec.layer} {spec.dtype}")
        with noted(found):
            step, wrong = prepare(spec, edges, graph, backend, found)
            if step is not None:
                timings = interleave({backend: step}, device, seconds, ahead=True)[backend]
                floor = step.floor(bandwidth)
                for phase in PHASES:
                    found.figures[phase] = timings[phase].median
                    found.figures[f"floor {phase}"] = floor[phase]
                found.figures["bandwidth"] = bandwidth
                found.figures["excess"] = wrong
                if device.type == "cuda" and timings["step"].median < REPLAY_BELOW:
                    called = interleave({backend: step}, device, seconds / 3)[backend]
                    found.figures["called step"] = called["step"].median
            del step  # its tensors make room for the next case's
        tick(found)


def time_hub(backend: str, specs: Sequence[Spec], seconds: float, tick: Tick) -> None:
    """A step on the graph with the hub (of which `specs` are) and on an even one, in turns; told
    to `tick`."""
    (spec,) = specs
    found = Measured("hub", backend, spec.graph, spec.shape, spec.layer, spec.dtype)
    steps = {}
    with noted(found):
        for name in ("hub", "even"):
            tick(f"{name} graph")
            edges, graph = _graph(spec, name)
            found.size = [edges.num_dst, edges.edge_index.shape[1]]
            step, _ = prepare(spec, edges, graph, backend, found)
            if step is None:
                tick(found)
                return
            steps[name] = step
        tick("timed")
        times = interleave(steps, torch.device(spec.device), seconds, ahead=True)
        found.figures = {name: timings["step"].median for name, timings in times.items()}
    tick(found)


def _graph(spec: Spec, name: str | None = None) -> tuple[Edges, Graph]:
    edges = drawn.draw(name or spec.graph, spec.graph_scale, spec.device)
    counts = edges.num_src, edges.num_dst
    return edges, Graph.from_edge_index(edges.edge_index, counts)
