"""A call of an operator, held against the same in float64 by the rule of ``gatkernels.testing``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gatkernels import functional
from gatkernels.backends import INTERPRETED
from gatkernels.fuzz.edges import EdgeSpec
from gatkernels.graph import Graph
from gatkernels.ops import philox
from gatkernels.testing import (
    INPUTS,
    assert_within,
    input_shapes,
    is_within,
    longest_row,
    operator_scales,
)

OPERATORS: dict[str, Callable[..., Any]] = {
    "gat": functional.gat_attention,
    "gatv2": functional.gatv2_attention,
    "dot": functional.dot_attention,
}
#: How a tensor lies in memory: as it is, rows apart, the last two dimensions the other way round,
#: one row for all.
LAYOUTS = ("contiguous", "apart", "turned", "expanded")


def seed_generator(device: torch.device, seed: int) -> None:
    """Of ``device`` alone: ``torch.manual_seed`` asks every kind of device that there is."""
    generator = torch.cuda if device.type == "cuda" else torch.default_generator
    generator.manual_seed(seed)


def laid(tensor: Tensor, layout: str) -> Tensor:
    """The same values (one row of them where expanded), laid out so."""
    if layout == "apart":
        return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]
    if layout == "turned":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded" and tensor.shape[0]:
        return tensor[:1].expand_as(tensor)
    return tensor


@dataclass(frozen=True)
class OperatorCase:
    """A call, forward and backward, of :func:`gatkernels.gat_attention` or another operator.

    Attributes:
        size: Factor of standard normal inputs; scores may spread by as much.
        number: ``negative_slope``, or ``scale`` of dot products (None: the default).
        layout: Of every input, one of :data:`LAYOUTS`; ``grad_layout`` of the gradients given.
        frozen: Inputs, by name, that need no gradient.
        batch: Members of a static batch; 0 for none.
    """

    operator: str = "gat"
    edges: EdgeSpec = field(default_factory=EdgeSpec)
    heads: int = 1
    channels: int = 1
    value_channels: int = 1
    features: int = 1
    dtype: str = "float32"
    size: float = 1.0
    number: float | None = 0.2
    dropout: float = 0.0
    with_edge: bool = False
    attention: bool = False
    layout: str = "contiguous"
    grad_layout: str = "contiguous"
    frozen: tuple[str, ...] = ()
    batch: int = 0
    threads: int = 1
    seed: int = 0
    backend: str = "cpu"
    device: str = "cpu"

    def names(self) -> tuple[str, ...]:
        names = INPUTS[self.operator]
        return names if self.with_edge else names[:3]

    def inputs(self, graph: Graph) -> list[Tensor]:
        """In the case's dtype, where the graph is."""
        sizes = self.heads, self.channels, self.value_channels, self.features
        shapes = input_shapes(self.operator, graph, *sizes)
        generator = torch.Generator().manual_seed(self.seed)
        made = []
        for name in self.names():
            shape = shapes[name]
            if self.batch and name != "att" and (self.operator, name) != ("dot", "edge"):
                shape = (self.batch, *shape)
            values = self.size * torch.randn(shape, generator=generator)
            values = values.to(graph.device, getattr(torch, self.dtype))
            made.append(laid(values, self.layout))
        return made

    def call(self, graph: Graph, inputs: list[Tensor], backend: str) -> list[Tensor]:
        """Results and gradients, in the order of :meth:`results`."""
        leaves = [
            t.detach().requires_grad_(name not in self.frozen)
            for name, t in zip(self.names(), inputs, strict=True)
        ]
        number = "scale" if self.operator == "dot" else "negative_slope"
        seed_generator(graph.device, self.seed)
        outputs = OPERATORS[self.operator](
            graph,
            *leaves,
            **({} if self.number is None else {number: self.number}),
            dropout=self.dropout,
            return_attention=self.attention,
            backend=backend,
        )
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        used = [
            pair for pair in zip(outputs, self.grads(outputs), strict=True) if pair[0].requires_grad
        ]
        found: list[Tensor] = [torch.zeros_like(leaf) for leaf in wanted]
        if used and wanted:
            given, grads = zip(*used, strict=True)
            gradients = torch.autograd.grad(given, wanted, grads, allow_unused=True)
            found = [z if g is None else g for z, g in zip(found, gradients, strict=True)]
        return [t.detach() for t in (*outputs, *found)]

    def grads(self, outputs: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        made = [torch.randn(t.shape, generator=generator) for t in outputs]
        dtype = getattr(torch, self.dtype)  # the same values in float64
        return [
            laid(grad.to(dtype), self.grad_layout).to(t)
            for grad, t in zip(made, outputs, strict=True)
        ]

    def results(self) -> tuple[str, ...]:
        """Names of what :meth:`call` gives."""
        of_edges = ("edge_out",) if self.operator == "dot" and self.with_edge else ()
        gradients = (f"grad of {n}" for n in self.names() if n not in self.frozen)
        return ("out", *of_edges, *(("alpha",) if self.attention else ()), *gradients)

    def check(self) -> None:
        """Raises: AssertionError, that says which result is wrong and by how much."""
        graph = self.edges.graph(self.device)
        inputs = self.inputs(graph)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(self.threads)
            ours = self.call(graph, inputs, self.backend)
            again = self.call(graph, inputs, self.backend)
            torch.set_num_threads(1)
            self._compare(graph, inputs, ours, again)
        finally:
            torch.set_num_threads(before)

    def _compare(
        self, graph: Graph, inputs: list[Tensor], ours: list[Tensor], again: list[Tensor]
    ) -> None:
        truth = self.call(graph, [t.double() for t in inputs], "reference")
        scales = self._scales(graph, inputs, truth)
        dtype, longest_of_rows = getattr(torch, self.dtype), longest_row(graph)
        plain: list[Tensor] | None = None
        for place, (name, got) in enumerate(zip(self.results(), ours, strict=True)):
            if not torch.equal(got.nan_to_num(), again[place].nan_to_num()):
                raise AssertionError(f"{name}: other bits the second time")
            assert got.dtype == dtype, f"{name}: {got.dtype} instead of {dtype}"
            # every edge of the graph is a term of this one
            longest = graph.num_edges if name == "grad of att" else longest_of_rows
            scale = scales[name].cpu()
            if self.backend == "triton" and INTERPRETED and self.dtype == "bfloat16":
                scale = 2.0 * scale  # the interpreter cuts bfloat16 off where a GPU rounds
            got, exact = self._folded(name, got), self._folded(name, truth[place]).cpu()
            if is_within(got, None, exact, scale, longest):
                continue
            if plain is None:
                plain = self.call(graph, inputs, "reference")
            rough = self._folded(name, plain[place]).cpu()
            assert_within(name, got, rough, exact, scale, longest)

    def _folded(self, name: str, value: Tensor) -> Tensor:
        """Heads of a static batch's members as heads of one graph."""
        name = name.removeprefix("grad of ")
        if not self.batch or name == "att" or (self.operator, name) == ("dot", "edge"):
            return value
        return value.transpose(0, 1).flatten(1, 2)

    def _scales(self, graph: Graph, inputs: list[Tensor], truth: list[Tensor]) -> dict[str, Tensor]:
        """Of each result's elements, heads folded."""
        found = self._scales_of_heads(graph, inputs, truth)
        if self.batch and "grad of att" in found:
            found["grad of att"] = found["grad of att"].unflatten(0, (self.batch, -1)).sum(0)
        return found

    def _scales_of_heads(
        self, graph: Graph, inputs: list[Tensor], truth: list[Tensor]
    ) -> dict[str, Tensor]:
        seed_generator(graph.device, self.seed)
        seed = philox.draw_seed(graph.device) if self.dropout > 0.0 else None
        names = [name for name in self.results() if not name.startswith("grad")]
        made = self.grads(truth[: len(names)])
        grads = [self._folded(n, t).double() for n, t in zip(names, made, strict=True)]
        given = [self._folded(n, t).double() for n, t in zip(self.names(), inputs, strict=True)]
        if self.operator == "gatv2" and self.batch:
            given[2] = given[2].repeat(self.batch, 1)
        number = max(self.channels, 1) ** -0.5 if self.number is None else self.number
        of_results = dict(zip(names, grads, strict=True))
        how = number, self.dropout, seed
        return operator_scales(self.operator, graph, given, of_results, *how)
