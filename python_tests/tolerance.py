"""The one tolerance rule of all tests, and the results it compares.

A result may be ``RATIO`` times as far from the float64 reference as the same formula in the
result's own dtype is, plus a few roundings on the element's own scale: the sum of the absolute
values of the terms it is made of, or where nobody worked that out, the result's largest value.
Both formulas run on the CPU, so that the rule is the same for every device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from graphs import Inputs
from torch import Tensor

from gatkernels import Graph, reference
from gatkernels.ops import autograd, checks
from gatkernels.ops.call import GatInputs

#: The backend under test.
BACKEND = os.environ.get("GATKERNELS_TEST_BACKEND", "cpu")
RATIO = 2.0
#: Roundings of an element's scale allowed on top: about as many as operations in a row make it.
UNITS: dict[torch.dtype, float] = dict.fromkeys(checks.DTYPE_CODES, 8.0)
#: The same per edge of the longest row: adding n equal terms drifts by up to n / 8 roundings, in
#: the softmax's denominator and again in the sum of rows. In float32 the plain formula drifts as
#: far, so RATIO covers most of it; in float64 the truth drifts as well and nothing else covers it.
UNITS_PER_EDGE = {d: 1 / 2 if d == torch.float64 else 1 / 32 for d in UNITS}
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
    """For each element of each result the sum of its terms' absolute values, in float64."""
    x, score_src, score_dst, edge, grad, grad_alpha = inputs.to(torch.float64)
    _, alpha = reference.gat_attention(
        graph, x[..., :0], score_src, score_dst, edge, negative_slope=options.slope
    )
    src, dst, eid = (t[: int(graph.rowptr[-1])] for t in graph.csr_edges())
    alpha = alpha[eid]  # [used edges, H]
    keep = torch.ones_like(alpha)
    if options.dropout > 0.0:
        assert options.seed is not None
        sizes = (graph.num_edges, alpha.shape[1])
        keep = reference.dropout_scale(*sizes, options.dropout, options.seed)[eid]
    weight = (alpha * keep)[..., None]
    gain = torch.einsum("ehc,ehc->eh", x.abs()[src], grad.abs()[dst])
    if grad_alpha is not None:
        gain = gain + grad_alpha.abs()[eid]
    gain = gain * keep
    row = torch.zeros_like(score_dst).index_add(0, dst, alpha * gain)
    # The kernels split leaky'(s) into slope + (1 - slope) [s > 0].
    score = alpha * (gain + row[dst]) * (abs(options.slope) + abs(1.0 - options.slope))
    found = {
        "out": torch.zeros_like(grad).index_add(0, dst, weight * x.abs()[src]),
        "alpha": alpha.new_zeros(graph.num_edges, alpha.shape[1]).index_add(0, eid, weight[..., 0]),
        "grad of x": torch.zeros_like(x).index_add(0, src, weight * grad.abs()[dst]),
        "grad of score_src": torch.zeros_like(score_src).index_add(0, src, score),
        "grad of score_dst": torch.zeros_like(score_dst).index_add(0, dst, score),
    }
    if edge is not None:
        found["grad of edge_score"] = torch.zeros_like(edge).index_add(0, eid, score)
    return found


def gatv2_scales(
    graph: Graph, inputs: Sequence[Tensor], grads: Sequence[Tensor], options: Options
) -> Results:
    """The same for GATv2: ``inputs`` x_src, x_dst, att (, edge), ``grads`` of out (, alpha)."""
    x_src, x_dst, att, *rest = (t.double() for t in inputs)
    grad, *grad_alpha = (t.double() for t in grads)
    slopes = {"negative_slope": options.slope}
    _, alpha = reference.gatv2_attention(graph, x_src, x_dst, att, *rest, **slopes)
    src, dst, eid = (t[: int(graph.rowptr[-1])] for t in graph.csr_edges())
    alpha, steepest = alpha[eid], max(1.0, abs(options.slope))
    keep = torch.ones_like(alpha)
    if options.dropout > 0.0:
        assert options.seed is not None
        sizes = (graph.num_edges, alpha.shape[1])
        keep = reference.dropout_scale(*sizes, options.dropout, options.seed)[eid]

    def by_row(terms: Tensor) -> Tensor:
        return terms.new_zeros(graph.num_dst, *terms.shape[1:]).index_add(0, dst, terms)

    # A logit is a sum of channels; its error multiplies the edge's weight, and the row's sum.
    total = x_src.abs()[src] + x_dst.abs()[dst]  # [used edges, H, C]
    for edge in rest:
        total = total + edge.abs()[eid]
    logit = (att.abs() * total).sum(-1) * steepest
    alpha = alpha * (1.0 + logit + by_row(alpha * logit)[dst])
    weight = (alpha * keep)[..., None]
    gain = torch.einsum("ehc,ehc->eh", x_src.abs()[src], grad.abs()[dst])
    for one in grad_alpha:
        gain = gain + one.abs()[eid]
    gain = gain * keep
    score = (alpha * (gain + by_row(alpha * gain)[dst]))[..., None] * steepest
    slopes_of = score * att.abs()
    found = {
        "out": by_row(weight * x_src.abs()[src]),
        "alpha": alpha.new_zeros(graph.num_edges, alpha.shape[1]).index_add(0, eid, weight[..., 0]),
        "grad of x_src": torch.zeros_like(x_src).index_add(
            0, src, slopes_of + weight * grad.abs()[dst]
        ),
        "grad of x_dst": by_row(slopes_of),
        "grad of att": (score * total).sum(0),
    }
    for edge in rest:
        found["grad of edge"] = torch.zeros_like(edge).index_add(0, eid, slopes_of)
    return found


def allowance(dtype: torch.dtype, scale: Tensor, longest: int) -> Tensor:
    """The absolute part of the rule; values below the normal range of the dtype may be flushed."""
    info = torch.finfo(dtype)
    units = UNITS[dtype] + UNITS_PER_EDGE[dtype] * longest
    floor = info.tiny * (1.0 + (float(scale.max()) if scale.numel() else 0.0))
    return units * info.eps * scale + floor


def longest_row(graph: Graph) -> int:
    degrees = torch.cat([graph.rowptr.diff(), graph.colptr.diff()])
    return int(degrees.max()) if degrees.numel() else 0


def assert_within(
    name: str, value: Tensor, plain: Tensor, truth: Tensor, scale: Tensor, longest: int
) -> None:
    """The rule for one result, given that of the plain formula in its dtype and in float64."""
    __tracebackhide__ = True
    assert value.shape == truth.shape, name
    value = value.cpu()
    error = (value.double() - truth).abs()
    theirs = (plain.double() - truth).abs()
    limit = allowance(value.dtype, scale, longest)
    if theirs.numel():
        limit = limit + RATIO * theirs.max()
    right = error <= limit  # False where error is NaN
    if not bool(right.all()):
        worst = int((~right).int().argmax())
        raise AssertionError(
            f"{name}: {int((~right).sum())} of {right.numel()} elements wrong, e.g. "
            f"{value.flatten()[worst]} instead of {truth.flatten()[worst]} "
            f"(allowed error {limit.expand_as(truth).flatten()[worst]:.3g})"
        )


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
