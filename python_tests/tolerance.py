"""Results of an operator by the backend under test, and by the rule of ``gatkernels.testing``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from graphs import Inputs
from torch import Tensor

from gatkernels import Graph, reference
from gatkernels.ops import autograd
from gatkernels.ops.call import GatInputs, OutGrads, Scoring
from gatkernels.testing import assert_within, gat_scales, longest_row

#: The backend under test.
BACKEND = os.environ.get("GATKERNELS_TEST_BACKEND", "cpu")
DTYPES = (torch.float32, torch.float64)

Results = dict[str, Tensor]


class Options(NamedTuple):
    slope: float = 0.2
    dropout: float = 0.0
    seed: Tensor | None = None


def differentiate(call: Callable[..., Any], inputs: Inputs) -> Results:
    """``out``, ``alpha`` where its gradient is given, and the gradients of the inputs."""
    given = {k: v for k, v in inputs._asdict().items() if not k.startswith("grad")}
    leaves = {k: None if v is None else v.detach().requires_grad_() for k, v in given.items()}
    out, alpha = call(*leaves.values())
    outputs, grads = [out], [inputs.grad_out]
    results = {"out": out.detach()}
    if inputs.grad_alpha is not None:
        outputs.append(alpha)
        grads.append(inputs.grad_alpha)
        results["alpha"] = alpha.detach()
    wanted = {k: v for k, v in leaves.items() if v is not None}
    found = torch.autograd.grad(outputs, list(wanted.values()), grads)
    return results | {f"grad of {k}": g for k, g in zip(wanted, found, strict=True)}


def by_kernel(graph: Graph, inputs: Inputs, options: Options) -> Results:
    def call(x: Tensor, src: Tensor, dst: Tensor, edge: Tensor | None) -> Any:
        attention = inputs.grad_alpha is not None
        how = autograd.Options(options.slope, options.dropout, attention, BACKEND)
        given = GatInputs(x, src, dst, edge, None, None)
        return autograd.attend("gat", graph, given, how, options.seed)

    return differentiate(call, inputs)


def by_reference(graph: Graph, inputs: Inputs, options: Options) -> Results:
    def call(*tensors: Tensor) -> Any:
        return reference.gat_attention(
            graph,
            *tensors,
            negative_slope=options.slope,
            dropout=options.dropout,
            seed=options.seed,
        )

    return differentiate(call, inputs)


def scales(graph: Graph, inputs: Inputs, options: Options) -> Results:
    x, src, dst, edge, *grads = inputs
    scoring = Scoring(options.slope, options.dropout, options.seed)
    return gat_scales(graph, GatInputs(x, src, dst, edge, None, None), OutGrads(*grads), scoring)


def assert_right(
    graph: Graph,
    inputs: Inputs,
    options: Options | None = None,
    got: Results | None = None,
) -> None:
    """Every result of the kernel (or ``got``) keeps the rule."""
    __tracebackhide__ = True
    options = options or Options()
    got = by_kernel(graph, inputs, options) if got is None else got
    graph, inputs = graph.to("cpu"), inputs.to(torch.device("cpu"))
    options = options._replace(seed=None if options.seed is None else options.seed.cpu())
    plain = by_reference(graph, inputs, options)
    truth = by_reference(graph, inputs.to(torch.float64), options)
    scale = scales(graph, inputs, options)
    assert set(got) <= set(truth)
    longest = longest_row(graph)
    for name, value in got.items():
        assert value.dtype == inputs.x.dtype, name
        assert_within(name, value, plain[name], truth[name], scale[name], longest)
