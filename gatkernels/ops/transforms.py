"""The operators under ``torch.func`` transforms and forward-mode differentiation.

Forward mode runs the formulas of the reference. ``vmap`` over features folds them into heads, and
``torch.func.grad`` keeps the fused forward; its backward is that of the reference, which any
transform can go through again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gatkernels.graph import Graph
from gatkernels.ops import autograd
from gatkernels.ops.autograd import Results


class Call(NamedTuple):
    """An operator on a graph, with all but its tensors."""

    name: str
    graph: Graph
    options: Any

    def has(self, inputs: tuple[Tensor | None, ...]) -> tuple[bool, ...]:
        operator = autograd.OPERATORS[self.name]
        return operator.has(operator.inputs(*inputs), self.options.return_attention)


def active() -> bool:
    """Whether a call is being transformed; torch.compile has its own ways."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def draw_seed(device: torch.device) -> Tensor:
    """As ``vmap(randomness=...)`` says: an error, one for all, or one for each."""
    return torch.randint(2**63 - 1, (1,), device=device)


def attend(call: Call, inputs: tuple[Tensor | None, ...], seed: Tensor | None) -> Results:
    """The operator's results, whatever is transformed; None where one is not asked for.

    Args:
        call: The operator.
        inputs: The fields of its record of inputs.
        seed: Of the dropout, ``[1]``, or None.
    """
    if torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0:
        found: Any = iter(_Attention.apply(call, seed, *inputs))  # type: ignore[no-untyped-call]
    elif active():
        found = iter(_by_reference(call, seed, *inputs))
    else:
        record = autograd.OPERATORS[call.name].inputs(*inputs)
        results: Results = autograd.attend(call.name, call.graph, record, call.options, seed)
        return results
    return tuple(next(found) if there else None for there in call.has(inputs))


def _by_reference(call: Call, seed: Tensor | None, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """The results that there are."""
    x = inputs[0]
    assert x is not None
    operator, sums = autograd.OPERATORS[call.name], torch.promote_types(x.dtype, torch.float32)
    wide = operator.inputs(*(None if t is None else t.to(sums) for t in inputs))
    *outs, alpha = operator.formula(call.graph, wide, call.options.scoring(seed))
    results = (*(None if t is None else t.to(x.dtype) for t in outs), alpha)
    return tuple(
        r for r, there in zip(results, call.has(inputs), strict=True) if there and r is not None
    )


class _Attention(torch.autograd.Function):
    """The results that there are, of one level of transforms."""

    @staticmethod
    def forward(call: Call, seed: Tensor | None, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(r for r in attend(call, inputs, seed) if r is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        seed, *inputs = ctx.saved_tensors
        present = [place for place, t in enumerate(inputs) if t is not None]

        def formula(*given: Tensor) -> tuple[Tensor, ...]:
            full = list(inputs)
            for place, t in zip(present, given, strict=True):
                full[place] = t
            return _by_reference(ctx.call, seed, *full)

        pull = torch.func.vjp(formula, *(inputs[place] for place in present))[1]
        found = dict(zip(present, pull(grads), strict=True))
        return None, None, *(found.get(place) for place in range(len(inputs)))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], call: Call, seed: Tensor | None, *inputs: Tensor | None
    ) -> Any:
        size = info.batch_size
        seed_dim, dims = in_dims[1], in_dims[2:]
        front = [_in_front(t, dim, size) for t, dim in zip(inputs, dims, strict=True)]
        heads = autograd.OPERATORS[call.name].heads
        shared = any(
            head is None and dim is not None for head, dim in zip(heads, dims, strict=True)
        )
        # a mask is drawn by head: folded heads would have others
        if call.options.dropout > 0.0 or shared:
            each = []
            for place in range(size):
                own_seed = (
                    seed if seed is None or seed_dim is None else seed.select(seed_dim, place)
                )
                parts = tuple(None if t is None else t[place] for t in front)
                each.append(attend(call, parts, own_seed))
            stacked = [torch.stack(r) for r in zip(*each, strict=True) if r[0] is not None]
            return tuple(stacked), (0,) * len(stacked)
        folded = tuple(
            given if head is None or t is None else _fold(t, head)
            for given, t, head in zip(inputs, front, heads, strict=True)
        )
        found = [r for r in attend(call, folded, seed) if r is not None]
        unfolded = tuple(r.unflatten(1, (size, -1)).movedim(1, 0) for r in found)
        return unfolded, (0,) * len(unfolded)


def _in_front(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """``tensor`` with the mapped dimension in front, the same for all where it has none."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold(tensor: Tensor, heads: int) -> Tensor:
    """``[B, N, H, ...] -> [N, B * H, ...]``: what is mapped over is more ``heads``, a dimension."""
    return tensor.movedim(0, heads).flatten(heads, heads + 1)
